"""The owner's side of a converted model: keyed text out, labels in plain order back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from privtensors.errors import InvalidInput, UnpairedFolders, WrongKey
from privtensors.obfuscation.folders import Manifest
from privtensors.obfuscation.keys import ObfuscationKey
from privtensors.obfuscation.loading import load_tokenizer
from privtensors.obfuscation.sentinel.compat import DEFAULT_PASSKEY
from privtensors.obfuscation.sentinel.passkey import key_of_client
from privtensors.obfuscation.sentinel.words import KeyedText, KeyedWords, WordHash
from privtensors.obfuscation.vocabulary import Labels

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Answer:
    """A label and how sure the model is.

    Attributes:
        label: The label's plain name.
        confidence: Its probability by softmax, 0 to 1.
    """

    label: str
    confidence: float


@dataclass(frozen=True, slots=True, repr=False)
class Owner:
    """What the owner of the key does for each text.

    Attributes:
        words: The encoder of texts.
        key: The key; None with ``compat``.
        names: Names of the labels in plain order; empty before fine-tuning.
        tokenizer: The plain tokenizer.
        manifest: Of the client folder.
    """

    words: KeyedWords
    key: ObfuscationKey | None
    names: tuple[str, ...]
    tokenizer: PreTrainedTokenizerBase
    manifest: Manifest

    def __repr__(self) -> str:
        return f"Owner(key={self.manifest.key_id}, {len(self.names)} labels)"

    def encode(self, text: str) -> str:
        """The keyed text that may leave: words of 32 hexadecimal digits, joined by spaces."""
        return str(self.words.encode(text))

    def encode_words(self, words: list[str]) -> KeyedText:
        """Keyed text of a sentence in words, with the number of the word that each keyed word belongs to."""
        return self.words.encode_words(words)

    def labels(self, count: int) -> Labels | None:
        """The bijection of ``count`` labels under this key; None with ``compat``, whose labels are plain."""
        return None if self.key is None else Labels.from_key(self.key, count)

    def decode(self, logits: Tensor) -> Tensor:
        """Logits (..., labels) as the server gives them, in plain order."""
        labels = self.labels(int(logits.shape[-1]))
        return logits if labels is None else labels.decode_logits(logits)

    def read(self, logits: Tensor) -> Answer:
        """The label of one text from its logits (labels,), as the server gives them.

        Raises:
            InvalidInput: Another number of logits than of labels.
        """
        if logits.ndim != 1 or len(logits) != len(self.names):
            what = f"logits of shape {tuple(logits.shape)} for {len(self.names)} labels"
            raise InvalidInput(what, where="Owner.read", fix="Give the logits of one text; fine-tune the model first")
        scores = self.decode(logits).float().softmax(-1)
        best = int(scores.argmax())
        return Answer(self.names[best], float(scores[best]))


def load_owner(
    client_dir: str | Path, *, encryption_key: str | Path | ObfuscationKey | None = None, passphrase: str | None = None
) -> Owner:
    """Read a client folder that ``convert`` or ``finetune`` wrote.

    Args:
        client_dir: The folder.
        encryption_key: The key file, passphrase or key; default the folder's own. With ``compat`` the passkey, default the published one.
        passphrase: Opens a wrapped key file.

    Raises:
        WrongKey: The key is missing, does not open, or is another model's.
        UnpairedFolders: A server folder, or another scheme's.
        FileFormatError: The folder is malformed.
    """
    client = Path(client_dir)
    manifest = Manifest.read(client, role="client")
    if manifest.scheme != "sentinel":
        fix = "Give the client folder of `privtensors convert --scheme sentinel`"
        raise UnpairedFolders(f"was converted by the scheme {manifest.scheme}", where=str(client), fix=fix)
    tokenizer: PreTrainedTokenizerBase = load_tokenizer(client, local=True)
    if manifest.options.get("compat") is True:
        if isinstance(encryption_key, ObfuscationKey):
            raise WrongKey("the published construction takes a passkey, no key", where=str(client), fix="Give its text")
        passkey = DEFAULT_PASSKEY if encryption_key is None else str(encryption_key)
        return Owner(KeyedWords(tokenizer, WordHash.of_passkey(passkey)), None, manifest.labels, tokenizer, manifest)
    key = key_of_client(client, encryption_key, passphrase=passphrase).key
    if key.id != manifest.key_id:
        what = f"the key {key.id} is not the one that this model was converted with ({manifest.key_id})"
        raise WrongKey(what, where=str(client), fix="Give that key")
    return Owner(KeyedWords(tokenizer, WordHash.of_key(key)), key, manifest.labels, tokenizer, manifest)


def check_words(owner: Owner, server_tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises WrongKey where the server's tokenizer does not have the owner's words: with ``compat`` nothing else tells a wrong passkey."""
    if not owner.words.vocabulary <= server_tokenizer.get_vocab().keys():
        raise WrongKey("the model does not know the words of this key", where="encryption_key", fix="Give the key it was converted with")
