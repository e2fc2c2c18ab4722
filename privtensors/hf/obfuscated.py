"""``wrap`` under ``Obfuscation``: a transformed stock model between hooks that key what goes in and put in order what comes out.

Guarantee class: heuristic. It stops a reader of traffic or logs who lacks the weights; it does not stop a server that holds the
transformed weights of an open model: that server recovers the key.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn

from torch import Tensor

from privtensors.core.backend import TechniqueSpec
from privtensors.core.recorder import Disclosure
from privtensors.core.session import Session
from privtensors.errors import InvalidInput, ObfuscationError, PlaintextLeak, PolicyError
from privtensors.hf.boundary import TASK_OUTPUTS
from privtensors.hf.card import save_card
from privtensors.hf.checks import check_inputs
from privtensors.hf.families import Family, family_of
from privtensors.hf.model import PrivateModel
from privtensors.obfuscation.keys import ObfuscationKey, load_key
from privtensors.obfuscation.technique import Obfuscation
from privtensors.policy import Explanation, Policy

if TYPE_CHECKING:
    from privtensors.obfuscation.equivariant import BlockMap, PatchKey
    from privtensors.obfuscation.vocabulary import Labels, Vocabulary
    from privtensors.train.result import FitResult

_LOG: Final = logging.getLogger("privtensors")
_INSIDE: Final = ("output_hidden_states", "output_attentions")


class ObfuscatedModel(PrivateModel):
    """What ``wrap`` returns under ``Obfuscation``. It takes plain ids or pixels and gives plain logits, exactly those of the stock model.

    Guarantee class: heuristic. One process plays client and server here; ``save_pretrained`` writes a folder for each, to be run apart.

    Attributes:
        model: The transformed model with the client's hooks: it can stand wherever the stock model could. Its weights are the server's.
        key_id: The key's public name.
        processor: The tokenizer or image processor for :meth:`save_pretrained`, where it was given none; ``pipeline`` sets it.
        runs: Training runs under ``DP`` that made the weights, for the privacy card.
    """

    def __init__(
        self, plain: Any, transformed: Any, policy: Policy, family: Family, technique: TechniqueSpec, session: Session, key: ObfuscationKey
    ) -> None:
        super().__init__(transformed, policy, family, technique, session, ())
        self._plain, self._key = plain, key
        self.processor: Any = None
        self.runs: tuple[FitResult, ...] = ()

    @property
    def key_id(self) -> str:
        """16 hexadecimal digits, as in the manifests of both folders."""
        return self._key.id

    def explain(self, *, collude: Iterable[str] = frozenset(), deployment: Literal["simulated", "deployed"] = "simulated") -> Explanation:
        """Who sees what under the policy, with what is particular to this model. See ``Policy.explain``."""
        found = self.policy.explain(collude=collude, deployment=deployment)
        keys = "token ids" if self.family.vocabulary else "pixels"
        mine = [
            f"The client keys the {keys} and puts the outputs back in order; the server runs a stock {type(self.model).__name__}"
            f" whose every parameter was transformed with key {self.key_id}",
            "Token types and position numbers are sent as they are" if self.family.vocabulary else "The number of patches is public",
        ]
        if self.family.decoder and self.model.can_generate():
            mine.append(f"generate asks the server once per token, and {self.policy.receiver} gets the logits of every step")
        return dataclasses.replace(found, remarks=(*found.remarks, *(("infer", text) for text in mine)))

    def save_pretrained(self, save_directory: str | Path, *, party: str = "client", processor: Any = None) -> None:
        """Write ``client/`` (tokenizer, key, label names) and ``server/`` (transformed weights), the policy and the privacy card.

        The server folder is made from the model that was wrapped, as it is now, with the key of this wrapping. Give the server its
        folder and nothing else: the client folder holds the key.

        Args:
            save_directory: Folder; made if it does not exist. Its ``client`` and ``server`` must not be there yet.
            party: Who is calling; only ``"client"``, who holds the plain model and the key.
            processor: Tokenizer or image processor; default that of the pipeline the model stands in.

        Raises:
            InvalidInput: Another party, no processor, or ``save_directory`` is a file.
            ObfuscationError: As ``obfuscation.convert.convert``.
        """
        folder, chosen = Path(save_directory), self.processor if processor is None else processor
        if party != "client":
            what = f"the plain model and the key are the client's; nothing here belongs to {party!r}"
            raise InvalidInput(what, where="save_pretrained(party=...)", fix="drop party=, and give the server its folder")
        if folder.is_file():
            raise InvalidInput("there is a file of that name", where=f"save_pretrained({str(folder)!r})", fix="give a folder")
        if chosen is None:
            what = "the client's folder needs the model's tokenizer or image processor"
            raise InvalidInput(what, where="save_pretrained(processor=...)", fix="save_pretrained(folder, processor=tokenizer)")
        from privtensors.obfuscation.convert import convert

        convert(self._plain, chosen, client=folder / "client", server=folder / "server", key=self._key)
        save_card(self, folder)

    def __repr__(self) -> str:
        return f"ObfuscatedModel({type(self.model).__name__}, technique={self.technique.name!r}, key={self.key_id})"


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Edge:
    """The client's edge: what it does to a request and to an answer. Its tables are as secret as the key, so it has no repr and no copy.

    Attributes:
        family: The model's family.
        technique: For the ledger.
        session: Whose recorder is used.
        receiver: The party that gets task outputs.
        key_id: For the ledger.
        vocabulary: Bijection of token ids; None for pixels.
        patches: What is done to pixels; None for text.
        decoders: By task output, how its plain value is computed.
    """

    family: Family
    technique: TechniqueSpec
    session: Session
    receiver: str
    key_id: str
    vocabulary: Vocabulary | None
    patches: PatchKey | None
    decoders: Mapping[str, Callable[[Tensor], Tensor]]

    def __repr__(self) -> str:
        return f"Edge(key={self.key_id})"

    def __reduce_ex__(self, _protocol: Any) -> NoReturn:
        what = "copying or pickling an obfuscated model would put its key beside its weights"
        raise PlaintextLeak(what, where="ObfuscatedModel", fix="call its save_pretrained, which writes a folder for each party")

    __deepcopy__ = __copy__ = __reduce_ex__

    def install(self, model: Any) -> None:
        """Register the hooks, and close the stock way to disk."""
        model.register_forward_pre_hook(self.enter, prepend=True, with_kwargs=True)
        model.register_forward_hook(self.answer)
        model.save_pretrained = self.refuse_to_save

    def refuse_to_save(self, *_args: Any, **_options: Any) -> NoReturn:
        """In place of the stock ``save_pretrained``, which would mix what is the client's with what is the server's.

        Raises:
            PlaintextLeak: Always.
        """
        what = "the stock save_pretrained would write the names of the labels beside the server's weights"
        raise PlaintextLeak(
            what, where="ObfuscatedModel.model", fix="call save_pretrained of the ObfuscatedModel, which writes two folders"
        )

    def enter(self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[()], dict[str, Any]]:
        """Before the forward: check the request, key its ids or pixels.

        Raises:
            InvalidInput: Malformed, not supported, or it asks for hidden states or attentions, which would come out transformed.
            OutOfRange: An id outside the vocabulary, or too many tokens.
        """
        if any(module.training for module in model.modules()):
            raise InvalidInput("it answers in evaluation mode only", where=type(model).__name__, fix="call private.model.eval()")
        names = list(inspect.signature(model.forward).parameters)
        inputs = {**dict(zip(names, args, strict=False)), **kwargs}
        for name in _INSIDE:
            wanted = inputs.get(name)
            if getattr(model.config, name, False) if wanted is None else wanted:
                what = "hidden states and attentions of an obfuscated model are those of its keyed basis and heads, not the plain model's"
                raise InvalidInput(what, where=name, fix="ask the plain model for them")
        # A stock classifier finds the last token by the padding id, here keyed, as ever: nothing more than the ids shows its place.
        check_inputs(model, dataclasses.replace(self.family, decoder=False), inputs)
        if self.vocabulary is not None:
            inputs["input_ids"] = self.vocabulary.encode(inputs["input_ids"])
        if self.patches is not None:
            inputs["pixel_values"] = self.patches.key_pixels(inputs["pixel_values"])
        return (), inputs

    def answer(self, _model: Any, _args: Any, output: Any) -> Any:
        """After the forward: record the disclosure, then put the task outputs in plain order."""
        found = {name: output[name] for name in TASK_OUTPUTS if isinstance(output.get(name), Tensor)}
        missing = [name for name in found if name not in self.decoders]
        if missing:
            raise ObfuscationError(f"nobody knows how to undo the key on {missing[0]}", where="answer", fix="This is a defect: report it")
        kinds = {name: (tuple(x.shape), str(x.dtype).removeprefix("torch.")) for name, x in found.items()}
        shape, dtype = next(iter(kinds.values()))
        details = [(name, f"{kind}[{', '.join(map(str, size))}]") for name, (size, kind) in kinds.items()]
        self.session.recorder.record(
            Disclosure(
                backend=self.technique.name,
                shape=shape,
                dtype=dtype,
                receiver=self.receiver,
                label=", ".join(kinds),
                simulated=True,
                guarantee=str(Obfuscation.guarantee),
                details=(*details, ("key id", self.key_id)),
            )
        )
        for name, value in found.items():
            output[name] = self.decoders[name](value)
        return output


def key_of(technique: Obfuscation) -> ObfuscationKey:
    """The key that the technique names, or a fresh one.

    Raises:
        PolicyError: The scheme is one that a wrapped model cannot run.
        WrongKey, FileFormatError: The file cannot be used; see ``load_key``. One wrapped by a passphrase has no place in a policy.
    """
    if technique.scheme != "equivariant":
        what = f"the scheme {technique.scheme!r} rewrites the text before the tokenizer and fine-tunes the model on it"
        fix = "privtensors convert --scheme sentinel and privtensors train --scheme sentinel, or wrap with Obfuscation('equivariant')"
        raise PolicyError(what, where="wrap, policy.infer", fix=fix)
    return ObfuscationKey.generate() if technique.key is None else load_key(technique.key)


def check_model(model: Any) -> None:
    """Refuse a model that cannot be transformed, before anything is spent on it.

    Raises:
        UnknownFamily, ObfuscationError, InvalidInput: As ``obfuscation.equivariant.transform``.
    """
    from privtensors.obfuscation.equivariant import basis_of

    basis_of(_stock(model))


def obfuscate(
    model: Any, policy: Policy, technique: Obfuscation, session: Session, key: ObfuscationKey, *, progress: bool | None = None
) -> ObfuscatedModel:
    """The obfuscated copy of ``model``, which is left as it is. In one process: it warns SIMULATED.

    Args:
        model: A stock model of a known family, or a PEFT model around one (a merged copy is transformed).
        policy: With ``technique`` in its infer stage.
        technique: ``Obfuscation("equivariant")``.
        session: Its recorder is told of every answer.
        key: See :func:`key_of`.
        progress: Show a progress bar; default only where stderr is a terminal.

    Raises:
        UnknownFamily, ObfuscationError, InvalidInput: As ``obfuscation.equivariant.transform``; or the session computes on a device.
    """
    from privtensors.obfuscation.equivariant import maps_of, transform

    if session.device is not None:
        fix = "use a session without device="
        raise InvalidInput("an obfuscated model runs where the model given is", where="Session(device=…)", fix=fix)
    plain = _stock(model)
    vocabulary, labels = maps_of(plain, key)
    with _bar(progress) as advance:
        transformed: Any = transform(plain, key, vocabulary=vocabulary, labels=labels, progress=advance)
    transformed.requires_grad_(False)
    edge = _edge(plain, policy, technique, session, key, vocabulary, labels)
    # What only the client reads is plain again; the token ids in the configuration are the server's, and its forward uses them.
    transformed.config.id2label, transformed.config.label2id = dict(plain.config.id2label), dict(plain.config.label2id)
    transformed.config.return_dict = True
    if getattr(plain, "generation_config", None) is not None:
        transformed.generation_config = copy.deepcopy(plain.generation_config)
    edge.install(transformed)
    _LOG.warning("SIMULATED: one process holds every party's view (technique %s)", technique.name)
    return ObfuscatedModel(plain, transformed, policy, edge.family, technique, session, key)


def _stock(model: Any) -> Any:
    """The stock model, adapters merged into a copy."""
    if hasattr(model, "merge_and_unload"):
        return copy.deepcopy(model).merge_and_unload()
    return model


def _edge(
    plain: Any,
    policy: Policy,
    technique: Obfuscation,
    session: Session,
    key: ObfuscationKey,
    vocabulary: Vocabulary | None,
    labels: Labels | None,
) -> Edge:
    from privtensors.obfuscation.equivariant import PatchKey, hidden_map, pooler_map
    from privtensors.obfuscation.equivariant.layout import layout_of

    family = family_of(plain.config.model_type)
    patches = None if family.vocabulary else PatchKey.from_config(key, plain.config)
    layout = layout_of(plain)
    stream, pooled = hidden_map(key, layout.width, layout.basis).inverse, pooler_map(key, layout.width).inverse

    def hidden(values: Tensor) -> Tensor:
        found = _undone(stream, values)
        return found if patches is None else patches.plain_tokens(found)

    words = vocabulary if any("vocab" in axes for axes in layout.head.parameters.values()) else None
    decoders = {name: _same for name in TASK_OUTPUTS} | {
        "logits": labels.decode_logits if labels is not None else _words(words),
        "prediction_logits": _words(words),
        "last_hidden_state": hidden,
        "pooler_output": lambda values: _undone(pooled, values),
    }
    return Edge(family, technique, session, policy.receiver, key.id, vocabulary, patches, decoders)


def _words(vocabulary: Vocabulary | None) -> Callable[[Tensor], Tensor]:
    if vocabulary is None:
        return _same
    keyed = vocabulary.keyed
    return lambda logits: logits.index_select(-1, keyed.to(logits.device))


def _same(values: Tensor) -> Tensor:
    return values


def _undone(inverse: BlockMap, values: Tensor) -> Tensor:
    return inverse.apply(values.double()).to(values.dtype)


@contextmanager
def _bar(wanted: bool | None) -> Iterator[Callable[[int, int], None] | None]:
    """A progress bar on stderr: by default where that is a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    if not (console.is_terminal if wanted is None else wanted):
        yield None
        return
    with Progress(console=console) as bar:
        task = bar.add_task("transforming weights", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
