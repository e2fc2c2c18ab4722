"""``privtensors convert --scheme sentinel``: from a plain encoder to a model that reads keyed text."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from privtensors.errors import ObfuscationError, ParameterError, UnknownFamily
from privtensors.obfuscation.equivariant.convert import Progress
from privtensors.obfuscation.folders import Manifest, Role, weights_digest, write_folders
from privtensors.obfuscation.keys import KEY_FILE, ObfuscationKey, save_key
from privtensors.obfuscation.sentinel.compat import DEFAULT_PASSKEY, WARNING, glide, involution
from privtensors.obfuscation.sentinel.hardened import DEFAULT_NOISE, harden
from privtensors.obfuscation.sentinel.passkey import SALT_FILE, Resolved, Source, resolve, write_salt
from privtensors.obfuscation.sentinel.silence import quiet
from privtensors.obfuscation.sentinel.table import table_of
from privtensors.obfuscation.sentinel.words import WordHash, keyed_word_tokenizer, specials_of
from privtensors.obfuscation.vocabulary import Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SCHEME: Final = "sentinel"
NO_KEY_ID: Final = "0" * 16
"""In manifests of the compat construction: an id of a passkey would let anybody try passkeys."""

_HEADS: Final = ("ForSequenceClassification", "ForTokenClassification")
_COMPAT_FAMILIES: Final = ("albert", "bert", "camembert", "distilbert", "roberta", "xlm-roberta")


@dataclass(frozen=True)
class Converted:
    """What a conversion made.

    Attributes:
        server: Folder of the model that reads keyed text, with its tokenizer; loads with stock classes.
        client: The owner's folder: the plain tokenizer, and the key where it was drawn here.
        compat: Whether it is the published construction, which protects nothing.
        key_id: Public id of the key; zeros with ``compat``.
        key_source: Where the key came from.
        model_type: The family.
        parameters: How many numbers the model has, as before.
        noise: Noise on the embedding, in units of a row's standard deviation; 0 with ``compat``.
        remarks: Sentences that the owner must see.
        seconds: Wall time.
    """

    server: Path
    client: Path
    compat: bool
    key_id: str
    key_source: str
    model_type: str
    parameters: int
    noise: float
    remarks: tuple[str, ...]
    seconds: float


def convert(
    model_name_or_path: str | Path,
    destination_dir: str | Path,
    *,
    encryption_key: str | Path | ObfuscationKey | None = None,
    embedding_rescaling_factor: int = 2,
    shuffle: bool = False,
    compat: bool = False,
    noise: float = DEFAULT_NOISE,
    client_dir: str | Path | None = None,
    passphrase: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Converted:
    """Convert an encoder (BERT, DistilBERT, RoBERTa and their multilingual kin) to keyed text; then fine-tune it with ``finetune``.

    SentinelLMs (Mishra, Li and Deo, AAAI 2024) with ``compat``; else the hardened construction, see :func:`hardened.harden`.
    Guarantee class: heuristic. A server that holds the transformed weights of an open model recovers the tokens.

    Args:
        model_name_or_path: A checkpoint: without a head, or with one for sequence or token classification, which is converted too.
        destination_dir: The new folder for the model's side.
        encryption_key: Path of a key file, a passphrase, or None to have a key drawn and kept in the client folder. With ``compat`` the
            passkey itself, default "languagemodel123" as published.
        embedding_rescaling_factor: With ``compat``: how often rows are reflected and translated. Else without effect.
        shuffle: With ``compat``: swap ids in pairs. Else without effect: ids are always keyed.
        compat: The published construction, exactly. It protects nothing.
        noise: See :func:`hardened.harden`.
        client_dir: The owner's new folder; default ``destination_dir`` with ``-client`` appended.
        passphrase: Opens a wrapped key file, or wraps the key that is drawn.
        overwrite: Replace folders of an earlier conversion.
        progress: Called with the number of parameters done and their total.

    Returns:
        What was made. Both folders are there whole, or, after an error, not at all.

    Raises:
        UnknownFamily: The model is no such encoder.
        ObfuscationError: No checkpoint there, tokenizer and model do not fit, or a folder exists.
        WrongKey, FileFormatError, ParameterError: The key or a number is not as it must be.
    """
    start = time.perf_counter()
    server = Path(destination_dir)
    client = server.with_name(f"{server.name}-client") if client_dir is None else Path(client_dir)
    if compat:
        if isinstance(encryption_key, ObfuscationKey):
            raise ParameterError("the published construction takes a passkey, no key", where="encryption_key", fix="Give a text")
        passkey = DEFAULT_PASSKEY if encryption_key is None else str(encryption_key)
        word_hash = WordHash.of_passkey(passkey)
        found = None
    else:
        found = resolve(encryption_key, passphrase=passphrase)
        word_hash = WordHash.of_key(found.key)
    model, tokenizer = load_plain(model_name_or_path)
    rows = len(table_of(model))
    fixed = specials_of(tokenizer).values()
    if len(tokenizer.get_vocab()) > rows or max(tokenizer.get_vocab().values()) >= rows:
        fix = "Call model.resize_token_embeddings(len(tokenizer)) and save it, or take the tokenizer that belongs to this model"
        raise ObfuscationError(f"the tokenizer has more ids than the embedding's {rows} rows", where=str(model_name_or_path), fix=fix)
    if found is None:
        ids = _published(model, tokenizer, passkey, embedding_rescaling_factor, shuffle)
        built = model
    else:
        vocabulary = Vocabulary.from_key(found.key, rows, fixed=fixed)
        ids = dict(enumerate(vocabulary.keyed.tolist()))
        built = harden(model, found.key, vocabulary, noise=noise, progress=progress)
    options: dict[str, str | int | float | bool] = {"compat": compat}
    options |= {"embedding_rescaling_factor": embedding_rescaling_factor, "shuffle": shuffle} if compat else {"noise": float(noise)}
    with write_folders(server, client, overwrite=overwrite, private=(client,)) as (server_stage, client_stage):
        with quiet():
            built.save_pretrained(server_stage)
        keyed_word_tokenizer(tokenizer, word_hash, ids).save_pretrained(server_stage)
        tokenizer.save_pretrained(client_stage)
        if found is not None:
            _keep(client_stage, found, passphrase)
        key_id = NO_KEY_ID if found is None else found.key.id
        names = _label_names(model) if type(model).__name__.endswith(_HEADS) else ()
        write_manifests(server_stage, client_stage, built, key_id, names, options)
    return Converted(
        server=server,
        client=client,
        compat=compat,
        key_id=key_id,
        key_source="passkey" if found is None else found.source.value,
        model_type=str(model.config.model_type),
        parameters=sum(one.numel() for one in built.parameters()),
        noise=0.0 if compat else float(noise),
        remarks=_remarks(found, compat, encryption_key is None, embedding_rescaling_factor, shuffle, client),
        seconds=time.perf_counter() - start,
    )


def load_plain(name: str | Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A checkpoint's encoder with its head for sequence or token classification, if it has one, and its tokenizer.

    Raises:
        ObfuscationError: There is no checkpoint, or no tokenizer with it.
    """
    from transformers import (
        AutoConfig,
        AutoModel,
        AutoModelForSequenceClassification,
        AutoModelForTokenClassification,
        AutoTokenizer,
    )

    kinds: dict[str, Any] = {_HEADS[0]: AutoModelForSequenceClassification, _HEADS[1]: AutoModelForTokenClassification}
    try:
        config = AutoConfig.from_pretrained(name)
        architecture = next(iter(config.architectures or ("",)))
        kind: Any = next((found for ending, found in kinds.items() if architecture.endswith(ending)), AutoModel)
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(name)
        with quiet():
            model: PreTrainedModel = kind.from_pretrained(name)
    except (OSError, ValueError) as error:
        fix = "Give a folder with config.json, weights and tokenizer, or the name of a model in the local cache"
        raise ObfuscationError(f"no model can be loaded ({type(error).__name__})", where=str(name), fix=fix) from error
    return model, tokenizer


def write_manifests(
    server: Path, client: Path, model: PreTrainedModel, key_id: str, names: tuple[str, ...], options: dict[str, str | int | float | bool]
) -> None:
    """The manifests of a pair of folders whose weights are written; label names go to the client's alone."""
    digest = weights_digest(server)
    roles: tuple[Role, ...] = ("server", "client")
    for role, folder in zip(roles, (server, client), strict=True):
        labels = names if role == "client" else ()
        Manifest(role, SCHEME, key_id, str(model.config.model_type), type(model).__name__, digest, labels, options).write(folder)


def copy_secrets(source: Path, target: Path) -> None:
    """Copy key file and salt, where there are any, from one client folder to another, readable by the owner alone."""
    for name in (KEY_FILE, SALT_FILE):
        if (source / name).is_file():
            (target / name).touch(mode=0o600)
            shutil.copyfile(source / name, target / name)


def _published(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, passkey: str, factor: int, shuffle: bool) -> dict[int, int]:
    """Change the embedding as published; returns the keyed id of each plain one."""
    if model.config.model_type not in _COMPAT_FAMILIES:
        fix = f"Known are {', '.join(_COMPAT_FAMILIES)}"
        raise UnknownFamily(f"the family {model.config.model_type!r} has no published construction", where="sentinel", fix=fix)
    specials = specials_of(tokenizer).values()
    used = sorted(set(tokenizer.get_vocab().values()))
    ids = involution(passkey, used, specials) if shuffle else {number: number for number in used}
    weight = table_of(model)
    rows = glide(weight, passkey, factor)
    order = torch.arange(len(rows))
    order[torch.tensor(list(ids.values()))] = torch.tensor(list(ids))
    with torch.no_grad():
        weight.copy_(rows[order])
    return ids


def _keep(client: Path, found: Resolved, passphrase: str | None) -> None:
    if found.source in (Source.GENERATED, Source.GIVEN):
        save_key(client / KEY_FILE, found.key, passphrase=passphrase)
    elif found.source is Source.PASSPHRASE:
        write_salt(client, found.salt)


def _label_names(model: PreTrainedModel) -> tuple[str, ...]:
    names: Any = model.config.id2label or {}
    return tuple(names[index] for index in range(len(names)))


def _remarks(found: Resolved | None, compat: bool, no_key: bool, factor: int, shuffle: bool, client: Path) -> tuple[str, ...]:
    heuristic = "heuristic: a server that holds the transformed weights of an open model recovers the tokens"
    if found is None:
        default = "the passkey is the published default, known to everybody"
        return (WARNING, *((default,) if no_key else ()))
    remarks = [heuristic, *found.remarks]
    if found.source is Source.GENERATED:
        remarks.append(f"a key was drawn and is in {client / KEY_FILE}, readable by you alone: keep a copy, nothing can replace it")
    if factor != 2 or shuffle:
        remarks.append("embedding_rescaling_factor and shuffle act with compat only: here every id is keyed and the basis changed anyway")
    return tuple(remarks)
