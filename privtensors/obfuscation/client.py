"""The client's side of an obfuscated model: what turns inputs into keyed ones and the server's answers into plain ones."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from torch import Tensor

from privtensors.errors import FileFormatError, InvalidInput, ObfuscationError, WrongKey
from privtensors.obfuscation.equivariant import PatchKey, hidden_map, pooler_map
from privtensors.obfuscation.equivariant.families import Basis
from privtensors.obfuscation.folders import Manifest, Scalar
from privtensors.obfuscation.keys import KEY_FILE, ObfuscationKey, load_key
from privtensors.obfuscation.loading import load_image_processor, load_tokenizer
from privtensors.obfuscation.vocabulary import Labels, Vocabulary, fixed_ids

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOKENIZER_FILE: Final = "tokenizer.json"


@dataclass(frozen=True, repr=False, eq=False)
class Client:
    """Everything a client folder holds. Guarantee: heuristic; a server that knows the open model recovers the key from its weights.

    Attributes:
        folder: Where it was read.
        manifest: What the folder says of itself; label names are in it, in plain order.
        key: The secret.
        tokenizer: Gives keyed ids and decodes them; None for a model of pixels.
        image_processor: None for a model of text.
        vocabulary: The bijection of token ids; None for a model of pixels.
        labels: The bijection of class labels; None for a model without.
        patches: How images are keyed; None for a model of text.
    """

    folder: Path
    manifest: Manifest
    key: ObfuscationKey
    tokenizer: Any
    image_processor: Any
    vocabulary: Vocabulary | None
    labels: Labels | None
    patches: PatchKey | None

    def __repr__(self) -> str:
        return f"Client(folder={str(self.folder)!r}, model={self.manifest.architecture}, key={self.key.id})"

    def key_pixels(self, pixel_values: Tensor) -> Tensor:
        """Keyed pixels of images, floating (batch, channels, height, width); the same shape and dtype.

        Raises:
            InvalidInput: Another shape or dtype, not finite, or the model takes text.
        """
        if self.patches is None:
            raise InvalidInput("the model takes text", where="Client.key_pixels", fix="Tokenize with client.tokenizer")
        return self.patches.key_pixels(pixel_values)

    def decode_logits(self, logits: Tensor) -> Tensor:
        """Logits or probabilities of the server, (..., labels) or (..., vocabulary rows), in plain order; dtype and device stay.

        Raises:
            InvalidInput: The last dimension is neither.
        """
        if self.labels is not None and logits.shape[-1] == self.labels.size:
            return self.labels.decode_logits(logits)
        if self.vocabulary is not None and logits.shape[-1] == self.vocabulary.size:
            return logits.index_select(-1, self.vocabulary.keyed.to(logits.device))
        what = f"a last dimension of {logits.shape[-1] if logits.ndim else 0} is neither labels nor vocabulary"
        raise InvalidInput(what, where="Client.decode_logits", fix="Give the logits of the server model that belongs to this folder")

    def decode_hidden(self, states: Tensor) -> Tensor:
        """Hidden states of the server, (..., width), in the basis of the plain model, float64; patches go back to their places.

        Raises:
            InvalidInput: The last dimension is not the model's width.
        """
        options: Any = self.manifest.options
        if not states.ndim or states.shape[-1] != options["width"]:
            what = f"the last dimension of {tuple(states.shape)} is not the width {options['width']}"
            raise InvalidInput(what, where="Client.decode_hidden", fix="Give last_hidden_state or hidden_states[-1]")
        basis: Basis = options["basis"]
        plain = hidden_map(self.key, int(options["width"]), basis).inverse.apply(states.double(), states.ndim - 1)
        return plain if self.patches is None or states.ndim != 3 else self.patches.plain_tokens(plain)

    def decode_pooled(self, pooled: Tensor) -> Tensor:
        """``pooler_output`` of the server, (..., width), in the plain order; float64."""
        return pooler_map(self.key, pooled.shape[-1]).inverse.apply(pooled.double(), pooled.ndim - 1)


def options_of(model: PreTrainedModel, basis: str) -> dict[str, Scalar]:
    """What a client folder must remember of a model beside the key: sizes, none of them secret."""
    config: Any = model.config
    embedding: Any = model.get_input_embeddings()
    options: dict[str, Scalar] = {"width": int(config.hidden_size), "basis": basis}
    if hasattr(config, "patch_size"):
        for name in ("image_size", "patch_size"):
            high, wide = _pair(getattr(config, name))
            options |= {f"{name}_0": high, f"{name}_1": wide}
        return options | {"channels": int(config.num_channels)}
    fixed = fixed_ids(config)
    return options | {"rows": int(embedding.weight.shape[0])} | ({"fixed": fixed[0]} if fixed else {})


def bijections_of(manifest: Manifest, key: ObfuscationKey) -> tuple[Vocabulary | None, Labels | None, PatchKey | None]:
    """What a key makes of a client's manifest."""
    options: Any = manifest.options
    labels = Labels.from_key(key, len(manifest.labels)) if manifest.labels else None
    if "rows" in options:
        return Vocabulary.from_key(key, options["rows"], fixed=[options["fixed"]] if "fixed" in options else []), labels, None
    size, patch = ((options[f"{name}_0"], options[f"{name}_1"]) for name in ("image_size", "patch_size"))
    return None, labels, PatchKey.from_key(key, channels=options["channels"], size=size, patch=patch)


def load_client(path: str | Path, *, passphrase: str | None = None) -> Client:
    """Read a client folder of the scheme "equivariant".

    Args:
        path: What ``privtensors convert --client`` wrote.
        passphrase: Of its key, where that is wrapped by one.

    Raises:
        FileFormatError: Half-written, damaged, or its tokenizer is not the one that was written.
        UnpairedFolders: It is a server folder.
        WrongKey: The key is missing, open to others, does not open with this passphrase or is another model's.
        ObfuscationError: It is of another scheme.
    """
    folder = Path(path)
    manifest = Manifest.read(folder, role="client")
    if manifest.scheme != "equivariant":
        fix = "privtensors.obfuscation.sentinel reads the folders of the scheme sentinel"
        raise ObfuscationError(f"a client folder of the scheme {manifest.scheme}", where=str(folder), fix=fix)
    key = load_key(folder / KEY_FILE, passphrase=passphrase)
    if key.id != manifest.key_id:
        fix = "Take the key file that was written with this folder"
        raise WrongKey(f"the key {key.id} is not that of the folder, {manifest.key_id}", where=str(folder), fix=fix)
    try:
        vocabulary, labels, patches = bijections_of(manifest, key)
        width, basis = manifest.options["width"], manifest.options["basis"]
        if not isinstance(width, int) or not isinstance(basis, str):
            raise TypeError("width and basis")
    except (KeyError, TypeError) as error:
        raise FileFormatError(f"its options are malformed ({type(error).__name__})", where=str(folder), fix="Convert again") from None
    tokenizer = image_processor = None
    if vocabulary is None:
        image_processor = load_image_processor(folder, local=True)
    else:
        _check_tokenizer(folder, manifest)
        tokenizer = load_tokenizer(folder, local=True)
    return Client(folder, manifest, key, tokenizer, image_processor, vocabulary, labels, patches)


def tokenizer_digest(folder: Path) -> str:
    """SHA-256 of the folder's ``tokenizer.json`` in hexadecimal digits; empty where there is none."""
    path = folder / TOKENIZER_FILE
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def _check_tokenizer(folder: Path, manifest: Manifest) -> None:
    """A plain tokenizer copied over the keyed one would send plain ids."""
    if tokenizer_digest(folder) != manifest.options.get("tokenizer"):
        fix = "Convert again, or take the folder from a backup; do not copy tokenizer files into it"
        raise FileFormatError(f"{TOKENIZER_FILE} is not the one that was written", where=str(folder), fix=fix)


def _pair(value: Any) -> tuple[int, int]:
    high, wide = value if isinstance(value, list | tuple) else (value, value)
    return int(high), int(wide)
