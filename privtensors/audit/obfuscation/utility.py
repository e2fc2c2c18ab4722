"""What a scheme costs: the answers of its model against those of the plain one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from privtensors.audit.obfuscation.targets import Answers

_BATCH: Final = 32
_RIDGE: Final = 1e-2


@dataclass(frozen=True, eq=False)
class Examples:
    """Labelled texts as plain ids.

    Attributes:
        train: For the classifier that sits on the plain model.
        train_labels: int64.
        test: Texts that are compared.
        test_labels: int64; None where there are none: then only ``fidelity`` is measured.
    """

    train: Sequence[Tensor]
    train_labels: Tensor | None
    test: Sequence[Tensor]
    test_labels: Tensor | None


@dataclass(frozen=True)
class Utility:
    """Of one scheme at one noise.

    Attributes:
        fidelity: Mean cosine of a text's pooled hidden states with the plain model's, -1 to 1.
        agreement: Share of the texts that the plain classifier labels as before; None without labels.
        accuracy: Share that it labels right; None without labels.
    """

    fidelity: float
    agreement: float | None
    accuracy: float | None


class Classifier:
    """Logistic regression on the plain model's mean-pooled hidden states; every scheme is judged by it.

    Args:
        plain: The plain model's answers.
        examples: To fit and to judge.
        padding: The plain id that fills up a batch.
    """

    def __init__(self, plain: Answers, examples: Examples, padding: int = 0) -> None:
        self._examples = examples
        self._padding = padding
        self._reference = self._pooled(plain, examples.test)
        self._weights: Tensor | None = None
        if examples.train_labels is not None:
            features = self._pooled(plain, examples.train)
            self._weights = _logistic(_with_one(features), examples.train_labels)

    def judge(self, answers: Answers) -> Utility:
        """Of a scheme's answers."""
        features = self._pooled(answers, self._examples.test)
        fidelity = float(torch.nn.functional.cosine_similarity(features, self._reference).mean())
        if self._weights is None or self._examples.test_labels is None:
            return Utility(fidelity, None, None)
        labels, before = ((_with_one(one) @ self._weights).argmax(1) for one in (features, self._reference))
        agreement, accuracy = ((labels == one).float().mean() for one in (before, self._examples.test_labels))
        return Utility(fidelity, float(agreement), float(accuracy))

    def _pooled(self, answers: Answers, texts: Sequence[Tensor]) -> Tensor:
        found: list[Tensor] = [torch.empty(0)] * len(texts)
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        for start in range(0, len(order), _BATCH):
            chosen = order[start : start + _BATCH]
            ids = torch.nn.utils.rnn.pad_sequence([texts[one] for one in chosen], batch_first=True, padding_value=-1)
            mask = (ids >= 0).long()
            states = answers(ids.where(mask.bool(), self._padding), mask)
            pooled = (states * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
            for place, one in zip(chosen, pooled, strict=True):
                found[place] = one
        return torch.stack(found)


def _with_one(features: Tensor) -> Tensor:
    return torch.cat([features, torch.ones(len(features), 1)], 1)


def _logistic(features: Tensor, labels: Tensor) -> Tensor:
    weights = torch.zeros(features.shape[1], int(labels.max()) + 1, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(features @ weights, labels) + _RIDGE * weights[:-1].square().sum() / 2
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return weights.detach()
