"""The client's edge of a private model: hooks that check the request, protect what leaves the client, reveal what returns."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from torch import Tensor, nn

from privtensors.core.backend import TechniqueSpec
from privtensors.core.safetensor import SafeTensor, protect, reveal_outputs
from privtensors.core.session import Session
from privtensors.errors import InvalidInput, PlaintextLeak
from privtensors.hf.attention import choose
from privtensors.hf.checks import check_inputs
from privtensors.hf.families import Family

# Everything else, such as hidden states, attentions and key-value caches, stays protected.
TASK_OUTPUTS: Final = (
    "logits",
    "last_hidden_state",
    "pooler_output",
    "start_logits",
    "end_logits",
    "prediction_logits",
    "seq_relationship_logits",
    "mc_logits",
)


@dataclass(frozen=True)
class Boundary:
    """What the hooks of one private model need.

    Attributes:
        family: The model's family.
        technique: Holds the computation.
        session: Whose backend and recorder are used.
        receiver: The party that gets task outputs.
    """

    family: Family
    technique: TechniqueSpec
    session: Session
    receiver: str

    def install(self, model: nn.Module, fronts: dict[str, nn.Module]) -> None:
        """Register the hooks on the private copy and on the client's submodules. Order with the user's own hooks is torch's."""
        for front in fronts.values():
            front.register_forward_hook(self.leave)
        model.register_forward_pre_hook(self.enter, prepend=True, with_kwargs=True)
        model.register_forward_hook(self.answer)

    def enter(self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[()], dict[str, Any]]:
        """Before the forward: name the arguments, check them, protect pixels, choose the attention.

        Raises:
            InvalidInput: As :func:`check_inputs`, or the model is in training mode: dropout would act on the answer.
            OutOfRange: As :func:`check_inputs`.
        """
        if any(module.training for module in model.modules()):
            raise InvalidInput(
                "a private model answers in evaluation mode only", where=type(model).__name__, fix="call private.model.eval()"
            )
        names = list(inspect.signature(model.forward).parameters)
        inputs = {**dict(zip(names, args, strict=False)), **kwargs}
        check_inputs(model, self.family, inputs)
        wanted = inputs.get("output_attentions")
        choose(model.config, weights=bool(model.config.output_attentions if wanted is None else wanted))
        if "pixel_values" in inputs:
            inputs["pixel_values"] = self._share(inputs["pixel_values"])
        return (), inputs

    def leave(self, _front: nn.Module, _args: Any, output: Any) -> SafeTensor:
        """After a submodule of the client: protect what it gives to the rest of the model."""
        if not isinstance(output, Tensor) or isinstance(output, SafeTensor):
            what = f"the client's submodule returned {type(output).__name__}"
            raise InvalidInput(what, where="wrap", fix="a family's client submodules take plain tensors and return one")
        return self._share(output)

    def answer(self, _model: nn.Module, _args: Any, output: Any) -> Any:
        """After the forward: reveal the task outputs to the receiver, one ledger row for all of them."""
        found = {name: output[name] for name in TASK_OUTPUTS if isinstance(output.get(name), SafeTensor)}
        if found:
            for name, plain in reveal_outputs(found, to=self.receiver, session=self.session).items():
                output[name] = plain
        return output

    def __reduce_ex__(self, _protocol: Any) -> NoReturn:
        what = "copying or pickling a private model would take its weights out of protection"
        raise PlaintextLeak(what, where="PrivateModel", fix="call save_pretrained of the PrivateModel, or wrap the plain model again")

    def _share(self, x: Tensor) -> SafeTensor:
        return protect(x.detach(), self.technique, owner="client", session=self.session)
