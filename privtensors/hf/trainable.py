"""``TrainableModel``: what ``wrap`` returns where the policy's train stage is DP. The model stays in plain with the data's owner."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from privtensors.core.backend import TechniqueSpec
from privtensors.core.session import Session
from privtensors.errors import InvalidInput, PolicyError
from privtensors.hf.card import save_card
from privtensors.hf.families import Family, family_for
from privtensors.hf.fit import fit
from privtensors.hf.fit_options import FitOptions
from privtensors.hf.model import PrivateModel
from privtensors.hf.obfuscated import ObfuscatedModel
from privtensors.policy import Explanation, Policy, Role
from privtensors.train.preparation import Promise, ledger_of
from privtensors.train.result import FitResult

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import GenerationConfig
    from transformers.utils.generic import ModelOutput


class TrainableModel(PrivateModel):
    """A stock model that is trained under differential privacy, and then computed by the ``infer`` stage's technique, if there is one.

    Attributes:
        plain: The model that was given, trained in place by :meth:`fit`; its ``generate``, ``save_pretrained`` and PEFT methods
            are its own.
        runs: The runs so far, those that ended by an error included, oldest first.
    """

    def __init__(
        self,
        plain: Any,
        policy: Policy,
        promise: Promise,
        technique: TechniqueSpec | None,
        session: Session,
        serve: Callable[[], PrivateModel] | None,
    ) -> None:
        model_type = plain.config.model_type
        family = Family(model_type) if technique is None else family_for(model_type, technique)
        holder: Any = promise if technique is None else technique
        super().__init__(plain, policy, family, holder, session, ())
        self.plain, self.runs = plain, tuple[FitResult, ...]()
        self._promise, self._serve = promise, serve
        self._served: PrivateModel | None = None

    @property
    def model(self) -> Any:
        """The private copy under the ``infer`` stage, made when first asked for and after every run; without that stage the plain model."""
        return self.plain if self._serve is None else self._inference().model

    @property
    def served(self) -> PrivateModel:
        """What computes the ``infer`` stage: made when first asked for and after every run. Its ``save_pretrained`` is that technique's.

        Raises:
            PolicyError: The policy has no ``infer`` stage.
        """
        if self._serve is None:
            raise PolicyError("it has no infer stage", where="served", fix="Policy(train=[DP(...)], infer=[...])")
        return self._inference()

    def __call__(self, *args: Any, **inputs: Any) -> ModelOutput:
        """As :meth:`PrivateModel.__call__` under the ``infer`` stage; without one, the plain model's answer, without gradients."""
        if self._serve is not None:
            return self._inference()(*args, **inputs)
        with torch.no_grad():
            output: ModelOutput = self.plain(*args, **inputs)
        return output

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The plain parameters that train, with their names. A step of your own on them is not covered by the promise."""
        return ((name, parameter) for name, parameter in self.plain.named_parameters() if parameter.requires_grad)

    def generate(
        self,
        input_ids: Tensor,
        *,
        attention_mask: Tensor | None = None,
        max_new_tokens: int | None = None,
        do_sample: bool | None = None,
        generation_config: GenerationConfig | None = None,
    ) -> Tensor:
        """As :meth:`PrivateModel.generate`; without an ``infer`` stage the plain model's."""
        if self._serve is not None:
            found = self._inference()
            return found.generate(
                input_ids,
                attention_mask=attention_mask,
                max_new_tokens=max_new_tokens,
                do_sample=do_sample,
                generation_config=generation_config,
            )
        options = {"attention_mask": attention_mask, "max_new_tokens": max_new_tokens, "do_sample": do_sample}
        given = {name: value for name, value in options.items() if value is not None}
        tokens: Tensor = self.plain.generate(input_ids, generation_config=generation_config, **given)
        return tokens

    def explain(self, *, collude: Iterable[str] = frozenset(), deployment: Literal["simulated", "deployed"] = "simulated") -> Explanation:
        """Who sees what under the policy; with an ``infer`` stage also what is particular to this model."""
        if self._serve is not None:
            return self._inference().explain(collude=collude, deployment=deployment)
        return self.policy.explain(collude=collude, deployment=deployment)

    def save_pretrained(self, save_directory: str | Path, *, party: str = "client") -> None:
        """Write the trained model as its own class does (safetensors; of a PEFT model the adapter), the policy and the privacy card.

        The card holds every run's spent ε and the ledger's head.

        Args:
            save_directory: Folder; made if it does not exist.
            party: Who is calling; only ``"client"``, who trained it.

        Raises:
            InvalidInput: Another party, or ``save_directory`` is a file.
        """
        folder = Path(save_directory)
        if party != "client":
            what = f"the model was trained by the client, and nothing of it belongs to {party!r}"
            raise InvalidInput(what, where="save_pretrained(party=...)", fix="drop party=")
        if folder.is_file():
            raise InvalidInput("there is a file of that name", where=f"save_pretrained({str(folder)!r})", fix="give a folder")
        self.plain.save_pretrained(folder)
        save_card(self, folder)

    def _fit(self, dataset: Any, options: FitOptions) -> FitResult:
        def report(result: FitResult) -> None:
            self.runs = (*self.runs, result)

        self._served = None  # it holds the weights as they were
        return fit(self.plain, self._promise, ledger_of(self.session.recorder), dataset, options, report)

    def _inference(self) -> PrivateModel:
        if self._served is None:
            assert self._serve is not None
            self._served = self._serve()
            if isinstance(self._served, ObfuscatedModel):
                self._served.runs = self.runs
            self._fronts = self._served._fronts
        return self._served


def promise_of(policy: Policy) -> Promise:
    """The technique of the train stage that bounds and noises gradients.

    Raises:
        PolicyError: It is combined with another technique, or is no DP-SGD.
    """
    technique = policy.holder("train", Role.NOISER)
    if len(policy.train) > 1 or not isinstance(technique, Promise):
        names = " and ".join(t.name for t in policy.train)
        fix = "Policy(train=[DP(...)], infer=[...])"
        raise PolicyError(f"fit trains with DP alone, and the train stage is {names}", where="wrap, policy.train", fix=fix)
    return technique
