"""From a plain model to a client folder and a server folder, and from those to the same under another key.

Guarantee class: heuristic. It stops a reader of traffic or logs who lacks the weights. It does not stop a server that holds the
transformed weights of an open model: that server recovers the key (100 % of the tokens).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from privtensors.errors import FileFormatError, ObfuscationError, WrongKey
from privtensors.obfuscation.client import Client, bijections_of, load_client, options_of, tokenizer_digest
from privtensors.obfuscation.equivariant import basis_of, maps_of, rekey, transform
from privtensors.obfuscation.equivariant.convert import bijections_between
from privtensors.obfuscation.fidelity import largest_difference, tolerance
from privtensors.obfuscation.folders import Manifest, check_pair, check_weights, weights_digest, write_folders
from privtensors.obfuscation.keys import KEY_FILE, ObfuscationKey, save_key
from privtensors.obfuscation.loading import load_model, load_processor, without_bars
from privtensors.obfuscation.repair import repair
from privtensors.obfuscation.vocabulary import Vocabulary, keyed_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Client", "Converted", "convert", "load_client", "rotate"]

Progress = Callable[[int, int], None]
"""Called with the number of parameters done and their total."""

_SERVER_FILES: Final = ("config.json", "generation_config.json", "model.safetensors.index.json")


@dataclass(frozen=True)
class Converted:
    """What a conversion or rotation wrote. Nothing in it is secret.

    Attributes:
        key_id: ``ObfuscationKey.id``.
        scheme: ``"equivariant"``.
        model_type: Of the configuration.
        architecture: The stock class that loads the server folder.
        parameters: How many numbers the weights have: as many as before.
        dtype: Of the weights, e.g. ``"float32"``.
        rows: Rows of the embedding, that is keyed token ids; 0 for a model of pixels.
        labels: Keyed class labels; 0 for a model without.
        error: Largest |Δ| between the decoded answers before and after, for one random input; None for a class with other answers, or
            where there was nothing to compare with.
        seconds: Wall time.
        client: The client folder.
        server: The server folder.
        finished: Whether this only completed a rotation that was interrupted.
    """

    key_id: str
    scheme: str
    model_type: str
    architecture: str
    parameters: int
    dtype: str
    rows: int
    labels: int
    error: float | None
    seconds: float
    client: str
    server: str
    finished: bool = False

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def convert(
    model: PreTrainedModel | str | Path,
    processor: Any = None,
    *,
    client: str | Path,
    server: str | Path,
    key: ObfuscationKey | None = None,
    passphrase: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Converted:
    """Write a client folder and a server folder: both whole, or neither. Guarantee class: heuristic.

    The server folder has the same stock class, the same number of parameters, no tokenizer, no key and no name of a label or file.
    Before the folders take their places the server's is loaded back and its decoded answer for a random input is compared with the
    plain model's.

    Args:
        model: A stock BERT, DistilBERT, RoBERTa, GPT-2, Llama or ViT, or its folder or name. It is left untouched.
        processor: Its tokenizer, or its image processor; default: that of the folder or name.
        client: Where the key, the keyed tokenizer and the names of the labels go; its owner alone may enter it.
        server: Where the weights go.
        key: Default: a fresh one from the operating system.
        passphrase: Wraps the key in the client folder.
        overwrite: Replace folders that an earlier conversion wrote.
        progress: Called as parameters are done.

    Raises:
        UnknownFamily: The family or class has no table.
        InvalidInput: A folder cannot be read, or a weight is not finite.
        ObfuscationError: The tokenizer has no fast form or more ids than the embedding rows, weights are missing or not floating, a folder
            exists, or the result is not the model that went in.
    """
    start = time.perf_counter()
    if isinstance(model, str | Path):
        source, model = model, load_model(model)
        processor = load_processor(source, model) if processor is None else processor
    if processor is None:
        fix = "Give its tokenizer (or image processor) as the second argument"
        raise ObfuscationError("a loaded model without tokenizer", where="convert", fix=fix)
    chosen = ObfuscationKey.generate() if key is None else key
    vocabulary, labels = maps_of(model, chosen)
    with write_folders(client, server, overwrite=overwrite, private=(client,)) as (mine, theirs):
        keyed = processor if vocabulary is None else keyed_tokenizer(processor, vocabulary)  # before the work: it may be refused
        served = transform(model, chosen, vocabulary=vocabulary, labels=labels, progress=progress)
        _save_server(served, theirs)
        manifest = _Facts(type(model).__name__, model.config, chosen.id, weights_digest(theirs))
        names = _names(model) if labels is not None else ()
        _save_client(mine, keyed, chosen, passphrase, manifest, names, options_of(model, basis_of(model)))
        manifest.of_server().write(theirs)
        error = _checked(model, load_client(mine, passphrase=passphrase), theirs)
    size = served.num_parameters()
    rows, classes = (0 if one is None else one.size for one in (vocabulary, labels))
    return manifest.converted(size, str(model.dtype), rows, classes, error, time.perf_counter() - start, client, server)


def rotate(
    client: str | Path,
    server: str | Path,
    *,
    passphrase: str | None = None,
    key: ObfuscationKey | None = None,
    progress: Progress | None = None,
) -> Converted:
    """Put both folders under another key, without the plain model. The old folders serve until the new ones are whole.

    A rotation that was killed while the folders changed places is completed instead: see ``finished`` of the result.

    Args:
        client: The client folder.
        server: The server folder that belongs to it.
        passphrase: Of the old key; it wraps the new one as well.
        key: The new key; default: a fresh one from the operating system.
        progress: Called as parameters are done.

    Raises:
        UnpairedFolders: The folders do not belong together.
        WrongKey: The key is missing, does not open, or is the new one already.
        FileFormatError: A folder is damaged.
        ObfuscationError: The scheme has no rotation, or a folder cannot be written.
    """
    start = time.perf_counter()
    finished = repair(client, server)
    before, _ = check_pair(client, server)
    old = load_client(client, passphrase=passphrase)
    if finished:
        return _finished(old, Path(server), time.perf_counter() - start, client)
    check_weights(server)
    new = ObfuscationKey.generate() if key is None else key
    if new == old.key:
        raise WrongKey("the new key is the old one", where="rotate", fix="Leave the key out, and a fresh one is drawn")
    model = _served(Path(server), before.architecture)
    vocabulary, labels, _ = bijections_of(before, new)
    ids = bijections_between(old.vocabulary, vocabulary)
    with write_folders(client, server, overwrite=True, private=(client,)) as (mine, theirs):
        served = rekey(model, old.key, new, progress=progress)
        _save_server(served, theirs)
        facts = _Facts(before.architecture, model.config, new.id, weights_digest(theirs))
        keyed = old.image_processor if ids is None else keyed_tokenizer(old.tokenizer, Vocabulary(ids))
        _save_client(mine, keyed, new, passphrase, facts, before.labels, dict(before.options))
        facts.of_server().write(theirs)
        error = _checked(model, load_client(mine, passphrase=passphrase), theirs, earlier=old)
    rows, classes = (0 if one is None else one.size for one in (vocabulary, labels))
    size = served.num_parameters()
    return facts.converted(size, str(model.dtype), rows, classes, error, time.perf_counter() - start, client, server)


@dataclass(frozen=True)
class _Facts:
    """What both manifests and the result say."""

    architecture: str
    config: Any
    key_id: str
    weights: str

    def of_server(self) -> Manifest:
        return Manifest("server", "equivariant", self.key_id, str(self.config.model_type), self.architecture, self.weights)

    def of_client(self, labels: tuple[str, ...], options: dict[str, Any]) -> Manifest:
        return Manifest("client", "equivariant", self.key_id, str(self.config.model_type), self.architecture, self.weights, labels, options)

    def converted(
        self, size: int, dtype: str, rows: int, labels: int, error: float | None, seconds: float, client: str | Path, server: str | Path
    ) -> Converted:
        return Converted(
            self.key_id, "equivariant", str(self.config.model_type), self.architecture, size, dtype.removeprefix("torch."), rows, labels,
            error, seconds, str(client), str(server),
        )  # fmt: skip


def _names(model: PreTrainedModel) -> tuple[str, ...]:
    """Label names in plain order."""
    names: Any = model.config.id2label
    return tuple(str(names.get(index, f"LABEL_{index}")) for index in range(int(model.config.num_labels or 0)))


def _save_server(served: PreTrainedModel, folder: Path) -> None:
    with without_bars():
        served.save_pretrained(str(folder))
    odd = [p.name for p in folder.iterdir() if p.suffix != ".safetensors" and p.name not in _SERVER_FILES]
    if odd:
        fix = "This is a defect, or another version of transformers: report it"
        raise ObfuscationError(f"{odd[0]} would lie in the server folder", where=str(folder), fix=fix)


def _save_client(
    folder: Path,
    keyed: Any,
    key: ObfuscationKey,
    passphrase: str | None,
    facts: _Facts,
    labels: tuple[str, ...],
    options: dict[str, Any],
) -> None:
    keyed.save_pretrained(str(folder))
    save_key(folder / KEY_FILE, key, passphrase=passphrase)
    digest = tokenizer_digest(folder)
    facts.of_client(labels, options | ({"tokenizer": digest} if digest else {})).write(folder)


def _served(server: Path, architecture: str) -> PreTrainedModel:
    """The model of a server folder, in the class its manifest names."""
    model = load_model(server)
    if type(model).__name__ != architecture:
        raise FileFormatError(f"the configuration is not that of a {architecture}", where=str(server), fix="Convert again")
    return model


def _checked(before: PreTrainedModel, client: Client, server: Path, *, earlier: Client | None = None) -> float | None:
    """The largest difference between the answer before and the decoded answer of what was saved; ``earlier`` decodes the former.

    Raises:
        ObfuscationError: It is more than rounding explains.
    """
    found = largest_difference(before, _served(server, type(before).__name__), client, earlier=earlier)
    if found is not None and not found.absolute <= tolerance(before.dtype) * max(1.0, found.scale):
        what = f"the transformed model's answers differ by {found.absolute:.2g}, at answers up to {found.scale:.2g}"
        raise ObfuscationError(what, where="the result", fix="Convert it in float32 or float64; if it stays, report it")
    return None if found is None else found.absolute


def _finished(client: Client, server: Path, seconds: float, folder: str | Path) -> Converted:
    model = _served(server, client.manifest.architecture)
    facts = _Facts(client.manifest.architecture, model.config, client.key.id, client.manifest.weights)
    rows, classes = (0 if one is None else one.size for one in (client.vocabulary, client.labels))
    size, dtype = model.num_parameters(), str(model.dtype)
    return replace(facts.converted(size, dtype, rows, classes, None, seconds, folder, server), finished=True)
