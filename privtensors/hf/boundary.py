"""The client's edge of a private model: hooks that check the request, protect what leaves the client, reveal what returns."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, NoReturn, Protocol

from torch import Tensor, nn

from privtensors.core.backend import TechniqueSpec
from privtensors.core.safetensor import SafeTensor, protect, reveal_outputs
from privtensors.core.session import Session
from privtensors.errors import InvalidInput, PlaintextLeak, RangeExceeded
from privtensors.hf import argmax
from privtensors.hf.attention import choose
from privtensors.hf.checks import check_inputs
from privtensors.hf.families import Family
from privtensors.hf.training import check_labels
from privtensors.policy.assets import Outputs

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


class Requests(Protocol):
    """What the client of a deployment does around each forward."""

    def begin(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Announce a checked request to the other parties; returns the arguments to run on. Nothing was protected yet."""

    def done(self) -> None:
        """The task outputs are here."""

    def failed(self) -> None:
        """The forward raised: tell the others, where a request was under way. Never raises."""


@dataclass(frozen=True)
class Boundary:
    """What the hooks of one private model need.

    Attributes:
        family: The model's family.
        technique: Holds the computation.
        session: Whose backend and recorder are used.
        receiver: The party that gets task outputs.
        outputs: How much of them, as in the policy: "full", or "argmax" for the index of the largest logit only.
        client_here: Whether this process holds the client's inputs. Where not, they are stand-ins and are not checked.
        requests: Told of each forward, at the client of a deployment.
        trains: Whether a forward may have labels. One that has opens nothing: loss and logits stay protected.
    """

    family: Family
    technique: TechniqueSpec
    session: Session
    receiver: str
    outputs: str
    client_here: bool = True
    requests: Requests | None = None
    trains: bool = False

    def install(self, model: nn.Module, fronts: dict[str, nn.Module], tables: Mapping[str, nn.Module] = MappingProxyType({})) -> None:
        """Register the hooks on the private copy, on the client's submodules, and on tables in which the client looks rows up.

        Order with the user's own hooks is torch's.
        """
        for front in fronts.values():
            front.register_forward_hook(self.leave)
        for table in tables.values():
            table.register_forward_pre_hook(self.ask)
        model.register_forward_pre_hook(self.enter, prepend=True, with_kwargs=True)
        model.register_forward_hook(self.answer, with_kwargs=True)
        if self.requests is not None:
            model.register_forward_hook(self.settle, always_call=True)
        if getattr(self.technique, "diagnose", False):
            for name, module in model.named_modules():
                module.register_forward_pre_hook(functools.partial(self.locate, name), prepend=True)
                module.register_forward_hook(functools.partial(self.locate, name.rpartition(".")[0]))

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
        labels = inputs.pop("labels", None)
        if self.client_here:
            check_inputs(model, self.family, inputs)
        if labels is not None:
            rows = next((len(inputs[name]) for name in ("input_ids", "pixel_values") if isinstance(inputs.get(name), Tensor)), None)
            labels = check_labels(model, self.family, labels, allowed=self.trains, rows=rows)
            inputs["labels"] = labels if isinstance(labels, SafeTensor) else self._share(labels)
        if self.requests is not None:
            inputs = self.requests.begin(inputs)
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

    def ask(self, _table: nn.Module, args: tuple[Any, ...]) -> tuple[SafeTensor]:
        """Before a lookup in a table of the server: protect the positions, which only the client knows."""
        (ids,) = args
        return (self._share(ids if self.client_here else ids.to("meta")),)

    def answer(self, model: Any, _args: Any, inputs: dict[str, Any], output: Any) -> Any:
        """After the forward: reveal the task outputs to the receiver, one ledger row for all of them.

        Where the policy reveals the index of the largest logit only, that is added as ``predictions`` and all else stays protected.
        """
        if inputs.get("labels") is not None:
            found: dict[str, Tensor] = {}
        elif self.outputs == Outputs.ARGMAX:
            last = self.family.decoder and bool(model.can_generate())
            found = argmax.predictions(output, inputs.get("attention_mask"), last=last)
        else:
            found = {name: output[name] for name in TASK_OUTPUTS if isinstance(output.get(name), SafeTensor)}
        try:
            plain = reveal_outputs(found, to=self.receiver, session=self.session) if found else {}
        except RangeExceeded:  # all messages were exchanged: to the other parties the request was answered
            self._done()
            raise
        for name, value in plain.items():
            output[name] = value
        self._done()
        return output

    def locate(self, layer: str, *_: Any) -> None:
        """Tell the backend which layer runs."""
        locate = getattr(self.session.backend(self.technique), "locate", None)
        if locate is not None:
            locate(layer)

    def _done(self) -> None:
        if self.requests is not None:
            self.requests.done()

    def settle(self, _model: nn.Module, _args: Any, _output: Any) -> None:
        """After the forward, also after one that raised."""
        if self.requests is not None:
            self.requests.failed()  # nothing to do after done()

    def __reduce_ex__(self, _protocol: Any) -> NoReturn:
        what = "copying or pickling a private model would take its weights out of protection"
        raise PlaintextLeak(what, where="PrivateModel", fix="call save_pretrained of the PrivateModel, or wrap the plain model again")

    def _share(self, x: Tensor) -> SafeTensor:
        return protect(x.detach(), self.technique, owner="client", session=self.session)
