"""From what a user gives as ``--encryption_key`` to a key of 256 bits: a key file, a fresh key, or a passphrase through scrypt."""

from __future__ import annotations

import json
import math
import secrets
import unicodedata
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Final

from privtensors.errors import FileFormatError, ParameterError, WrongKey
from privtensors.obfuscation.keys import KEY_BYTES, KEY_FILE, ObfuscationKey, load_key

SALT_FILE: Final = "passphrase.json"
_FORMAT, _VERSION = "privtensors passphrase salt", 1
_SALT_BYTES: Final = 32
_N, _R, _P = 1 << 17, 8, 1  # RFC 7914: 128 MiB and a few tenths of a second per guess
_ALPHABETS: Final = ((26, str.islower), (26, str.isupper), (10, str.isdigit))
_CHARACTERS: Final = 160_000  # of Unicode
_WEAK_BITS: Final = 80.0


class Source(Enum):
    """Where a key came from."""

    GIVEN = "given"
    FILE = "key file"
    PASSPHRASE = "passphrase"
    GENERATED = "generated"


@dataclass(frozen=True, slots=True)
class Resolved:
    """A key, where it came from, and what its owner should hear about it.

    Attributes:
        key: The key.
        source: Where it came from.
        salt: scrypt's salt, where it was a passphrase: the client folder keeps it; else empty.
        remarks: Sentences for the owner.
    """

    key: ObfuscationKey
    source: Source
    salt: bytes = b""
    remarks: tuple[str, ...] = ()


def resolve(encryption_key: str | Path | ObfuscationKey | None, *, salt: bytes | None = None, passphrase: str | None = None) -> Resolved:
    """The key meant by ``encryption_key``.

    Args:
        encryption_key: A key; the path of a key file; a passphrase (any other text); None draws a key from the operating system.
        salt: For a passphrase: the stored salt; None draws one.
        passphrase: Opens a key file that is wrapped.

    Raises:
        WrongKey: The file is not there, is not its owner's alone, or does not open.
        FileFormatError: The file is malformed.
        ParameterError: An empty passphrase.
    """
    if encryption_key is None:
        return Resolved(ObfuscationKey.generate(), Source.GENERATED)
    if isinstance(encryption_key, ObfuscationKey):
        return Resolved(encryption_key, Source.GIVEN)
    if isinstance(encryption_key, Path) or _is_path(encryption_key):
        return Resolved(load_key(encryption_key, passphrase=passphrase), Source.FILE)
    if not encryption_key:
        raise ParameterError("an empty passphrase", where="encryption_key", fix="Give a key file, a passphrase, or nothing for a fresh key")
    used = secrets.token_bytes(_SALT_BYTES) if salt is None else salt
    return Resolved(_stretch(encryption_key, used), Source.PASSPHRASE, used, (strength(encryption_key),))


def strength(passphrase: str) -> str:
    """What a passphrase is worth at most, in a sentence that does not repeat it."""
    letters = sum(size for size, belongs in _ALPHABETS if any(map(belongs, passphrase)))
    letters += 33 if any(not one.isalnum() for one in passphrase) else 0
    letters += _CHARACTERS if not passphrase.isascii() else 0
    bits = len(passphrase) * math.log2(max(letters, 2))
    verdict = "weak even if it were random" if bits < _WEAK_BITS else "strong only if it was drawn at random"
    return (
        f"a passphrase of {len(passphrase)} characters has at most {bits:.0f} bits and is {verdict}; words and names have far fewer. "
        "A key file has 256: leave the option out to have one made"
    )


def write_salt(folder: Path, salt: bytes) -> None:
    """Write the salt into a client folder. Without it a passphrase cannot be tried, so the server never gets it."""
    entry = {"format": _FORMAT, "version": _VERSION, "kdf": "scrypt", "n": _N, "r": _R, "p": _P, "salt": salt.hex()}
    path = folder / SALT_FILE
    path.touch(mode=0o600)
    path.write_text(json.dumps(entry, indent=1), encoding="utf-8")


def read_salt(folder: Path) -> bytes | None:
    """The salt of a client folder; None where its key was no passphrase.

    Raises:
        FileFormatError: The file is malformed or of another version.
    """
    path = folder / SALT_FILE
    if not path.is_file():
        return None
    try:
        entry: Any = json.loads(path.read_text(encoding="utf-8"))
        known = {"format": _FORMAT, "version": _VERSION, "kdf": "scrypt", "n": _N, "r": _R, "p": _P}
        salt = bytes.fromhex(entry["salt"])
        if {name: entry[name] for name in known} != known or len(salt) != _SALT_BYTES:
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError):
        fix = "Take the client folder from a backup"
        raise FileFormatError("is no salt of this version", where=str(path), fix=fix) from None
    return salt


def key_of_client(client: Path, encryption_key: str | Path | ObfuscationKey | None, *, passphrase: str | None = None) -> Resolved:
    """The key of a client folder: the one it holds, or the one given.

    Raises:
        WrongKey: None was given and the folder holds none, or as :func:`resolve`.
        FileFormatError: As :func:`resolve`, or the salt is malformed.
    """
    salt = read_salt(client)
    if encryption_key is None:
        if not (client / KEY_FILE).is_file():
            need = "the passphrase" if salt is not None else "its path"
            raise WrongKey("the client folder holds no key", where=str(client), fix=f"Give {need} as --encryption_key")
        return resolve(client / KEY_FILE, passphrase=passphrase)
    if salt is None and isinstance(encryption_key, str) and not _is_path(encryption_key):
        fix = f"Give the path of the key file, {client / KEY_FILE} if it is there"
        raise WrongKey("a passphrase was given, but this model was not converted with one", where=str(client), fix=fix)
    return resolve(encryption_key, salt=salt, passphrase=passphrase)


def _is_path(text: str) -> bool:
    """Whether a text means a file: it names a folder, ends in .json, or is there. A mistyped path must not become a passphrase."""
    return "/" in text or text.endswith(".json") or Path(text).is_file()


def _stretch(passphrase: str, salt: bytes) -> ObfuscationKey:
    from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

    text = unicodedata.normalize("NFC", passphrase).encode()  # the same letters typed on another system
    return ObfuscationKey(Scrypt(salt=salt, length=KEY_BYTES, n=_N, r=_R, p=_P).derive(text))
