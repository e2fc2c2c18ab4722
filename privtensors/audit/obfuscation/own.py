"""A user's own pair of folders as a target."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from privtensors.audit.obfuscation.targets import Target, answers_of, tables_of
from privtensors.errors import InvalidInput
from privtensors.obfuscation.client import load_client
from privtensors.obfuscation.folders import Manifest, check_pair
from privtensors.obfuscation.loading import load_model, load_tokenizer
from privtensors.obfuscation.sentinel.passkey import key_of_client
from privtensors.obfuscation.sentinel.words import specials_of
from privtensors.obfuscation.vocabulary import Vocabulary


def load_open(source: str | Path) -> tuple[Any, Any]:
    """The open model's encoder or decoder without head, in evaluation mode, float32, and its tokenizer.

    Raises:
        InvalidInput, UnknownFamily, ObfuscationError: There is none, or of no family that can be obfuscated.
    """
    return _model(source), load_tokenizer(source)


def target_of_folders(client: str | Path, server: str | Path, base: Any, tokenizer: Any, *, passphrase: str | None = None) -> Target:
    """The server folder as the server sees it; the client folder gives the truth, to judge by.

    Args:
        client: What ``privtensors convert`` wrote for the owner.
        server: And for the server, fine-tuned since or not.
        base: The open model.
        tokenizer: Its tokenizer.
        passphrase: Of the client's key, where that is wrapped by one.

    Raises:
        InvalidInput: The models have different tables, or the folders are of a model of pixels.
        PrivTensorsError: The folders or the key cannot be read, or do not belong together.
    """
    manifest = Manifest.read(client, role="client")
    if manifest.scheme == "sentinel":  # fine-tuning writes new weights and keeps the client's folder
        Manifest.read(server, role="server")
    else:
        check_pair(client, server)
    model = _model(server)
    size = int(base.get_input_embeddings().weight.shape[0])
    back = None
    if manifest.scheme == "equivariant":
        owner = load_client(client, passphrase=passphrase)
        if owner.vocabulary is None:
            raise InvalidInput("a model of pixels has no token ids", where=str(client), fix="Give folders of a model of text")
        keyed, back = owner.vocabulary.keyed, owner.decode_hidden
    else:
        keyed = _words_of_key(Path(client), manifest, specials_of(tokenizer).values(), size, passphrase)
    tables = tables_of(model)
    if len(keyed) != size or tables.words.shape != base.get_input_embeddings().weight.shape:
        what = f"the server's table is {tuple(tables.words.shape)}, the open model's {tuple(base.get_input_embeddings().weight.shape)}"
        raise InvalidInput(what, where="--base", fix="Give the open model that was converted")
    answers = answers_of(model, keyed, back) if manifest.scheme == "equivariant" else None
    return Target(f"{manifest.scheme} {manifest.key_id}", 0.0, torch.argsort(keyed), tables, model, answers)


def _model(source: str | Path) -> Any:
    return load_model(source).base_model.float()


def _words_of_key(client: Path, manifest: Manifest, special: Iterable[int], size: int, passphrase: str | None) -> Tensor:
    if manifest.options.get("compat"):
        fix = "Run privtensors audit obfuscation without folders: the published construction is among its schemes"
        raise InvalidInput("the published construction keeps no key to judge by", where=str(client), fix=fix)
    key = key_of_client(client, None, passphrase=passphrase).key
    return Vocabulary.from_key(key, size, fixed=special).keyed
