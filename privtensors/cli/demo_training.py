"""A sentiment classifier out of MiniLM in seconds, in plain: the head and the last layer are trained on real reviews.

Only the first token's output of the last layer reaches the head, so that layer is trained on that token alone: keys and
values of every token, but one query. The layers below stay as they were, and run once per review.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional

from privtensors.testing.assets import Review

# The best of 24 settings on 2,000 further reviews of the training split; the held-out reviews chose nothing.
BATCH: Final = 32
LEARNING_RATE: Final = 1e-3
EPOCHS: Final = 3
SEED: Final = 0

Tick = Callable[[int], None]


@dataclass(frozen=True)
class Batch:
    """Reviews of similar length after the frozen layers.

    Attributes:
        hidden: float32, (batch, tokens, width): the input of the last layer.
        mask: bool, (batch, tokens): True for tokens, False for padding.
        labels: int64, (batch,).
    """

    hidden: Tensor
    mask: Tensor
    labels: Tensor


def stock_classifier(path: Path) -> Any:
    """MiniLM as the stock ``BertForSequenceClassification`` with two labels; pooler as shipped, classifier at random.

    Args:
        path: Folder with MiniLM's ``config.json`` and ``model.safetensors``.
    """
    from transformers import BertForSequenceClassification

    names = {0: "negative", 1: "positive"}
    labels = {name: index for index, name in names.items()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model: Any = BertForSequenceClassification.from_pretrained(
            path, num_labels=2, id2label=names, label2id=labels, local_files_only=True
        )
    return model.eval()


def encode(tokenizer: Any, texts: Sequence[str], *, tokens: int, batch: int) -> list[tuple[list[int], Any]]:
    """Tokenised batches of texts of similar length, shortest first.

    Returns:
        Pairs of positions in ``texts`` and the tokenizer's output: ``input_ids`` and ``attention_mask``, int64,
        (batch, longest of the batch), at most ``tokens`` wide.
    """
    ids = tokenizer(list(texts), truncation=True, max_length=tokens)["input_ids"]
    order = sorted(range(len(ids)), key=lambda index: len(ids[index]))
    groups = [order[start : start + batch] for start in range(0, len(order), batch)]
    return [(group, tokenizer.pad({"input_ids": [ids[index] for index in group]}, return_tensors="pt")) for group in groups]


def frozen_part(model: Any, tokenizer: Any, reviews: Sequence[Review], *, tokens: int, tick: Tick) -> list[Batch]:
    """Run everything below the last layer once per review."""
    batches = []
    encoder = model.bert.encoder
    layers = encoder.layer
    encoder.layer = layers[:-1]
    try:
        with torch.no_grad():
            for group, inputs in encode(tokenizer, [review.text for review in reviews], tokens=tokens, batch=BATCH):
                hidden = model.bert(**inputs).last_hidden_state
                labels = torch.tensor([reviews[index].label for index in group])
                batches.append(Batch(hidden, inputs["attention_mask"].bool(), labels))
                tick(len(group))
    finally:
        encoder.layer = layers
    return batches


def trained_part(model: Any, hidden: Tensor, mask: Tensor) -> Tensor:
    """The last layer for the first token, then pooler, dropout and classifier: what the stock forward computes, cheaper.

    Args:
        model: A ``BertForSequenceClassification``.
        hidden: float32, (batch, tokens, width).
        mask: bool, (batch, tokens).

    Returns:
        Logits, float32, (batch, labels).
    """
    layer = model.bert.encoder.layer[-1]
    attention = layer.attention.self
    batch, _, width = hidden.shape

    def heads(x: Tensor) -> Tensor:
        return x.view(batch, -1, model.config.num_attention_heads, width // model.config.num_attention_heads).transpose(1, 2)

    first = hidden[:, :1]
    query, key, value = heads(attention.query(first)), heads(attention.key(hidden)), heads(attention.value(hidden))
    context = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None, None])
    attended = layer.attention.output(context.transpose(1, 2).reshape(batch, 1, width), first)
    pooled = model.bert.pooler(layer.output(layer.intermediate(attended), attended))
    logits: Tensor = model.classifier(model.dropout(pooled))
    return logits


def train(model: Any, batches: Sequence[Batch], *, tick: Tick) -> tuple[int, float]:
    """Fit last layer, pooler and classifier by AdamW (Loshchilov and Hutter, 2019); a seed of its own, so runs repeat.

    Returns:
        Number of trained parameters, and the accuracy on the same reviews afterwards.
    """
    trained = (model.bert.encoder.layer[-1], model.bert.pooler, model.dropout, model.classifier)
    parameters = [parameter for module in trained for parameter in module.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.01)
    steps = EPOCHS * len(batches)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, 10 * (step + 1) / steps) * (1 - step / steps))
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(SEED)
        for module in trained:
            module.train()
        for _ in range(EPOCHS):
            for position in torch.randperm(len(batches)).tolist():
                batch = batches[position]
                optimizer.zero_grad()
                functional.cross_entropy(trained_part(model, batch.hidden, batch.mask), batch.labels).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
                tick(len(batch.labels))
    model.eval()
    with torch.no_grad():
        right = sum(int((trained_part(model, b.hidden, b.mask).argmax(1) == b.labels).sum()) for b in batches)
    return sum(p.numel() for p in parameters), right / sum(len(b.labels) for b in batches)


class Stopwatch:
    """Wall and CPU seconds since it was made."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    @property
    def wall_seconds(self) -> float:
        return time.perf_counter() - self._wall

    @property
    def cpu_seconds(self) -> float:
        return time.process_time() - self._cpu
