"""The secret of an obfuscated model: 256 bits from the operating system, expanded per purpose, kept in a file of its owner's alone."""

from __future__ import annotations

import hmac
import json
import os
import secrets
import stat
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

from privtensors.errors import FileFormatError, ObfuscationError, ParameterError, WrongKey

if TYPE_CHECKING:
    from privtensors.obfuscation.expansion import Stream

KEY_BYTES: Final = 32
KEY_FILE: Final = "key.json"
_DOMAIN: Final = b"privtensors/obfuscation/"
_FORMAT, _VERSION = "privtensors obfuscation key", 1
_LARGEST_FILE: Final = 16384
_MOST_DERIVED: Final = 255 * 32  # RFC 5869
# scrypt (RFC 7914): 128 MiB and a few tenths of a second per guess. What a file may ask for on reading is bounded, or it could exhaust us.
_SCRYPT_N, _SCRYPT_R, _SCRYPT_P = 1 << 17, 8, 1
_READABLE_N: Final = tuple(1 << bits for bits in range(14, 21))
_SALT_BYTES, _NONCE_BYTES, _TAG_BYTES = 16, 12, 16


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class ObfuscationKey:
    """A secret of 32 bytes. Its text shows the public :attr:`id` only; it cannot be pickled, and a copy is the key itself.

    Guarantee class of what it drives: heuristic (see ``privtensors.obfuscation``).

    Attributes:
        secret: 32 bytes.

    Raises:
        WrongKey: ``secret`` is not bytes, or not 32 of them.
    """

    secret: bytes

    def __post_init__(self) -> None:
        if not isinstance(self.secret, bytes) or len(self.secret) != KEY_BYTES:
            got = f"{len(self.secret)}" if isinstance(self.secret, bytes) else type(self.secret).__name__
            raise WrongKey(f"must be {KEY_BYTES} bytes, got {got}", where="ObfuscationKey", fix="ObfuscationKey.generate() draws one")

    @classmethod
    def generate(cls) -> ObfuscationKey:
        """A fresh key from the operating system's generator."""
        return cls(secrets.token_bytes(KEY_BYTES))

    @property
    def id(self) -> str:
        """16 hexadecimal digits derived from the secret: public, the same in the manifests of client and server."""
        return self._derive(b"key id", 8).hex()

    def subkey(self, purpose: str, length: int = 32) -> bytes:
        """``length`` bytes for one purpose: HKDF-SHA256 (RFC 5869); other purposes and lengths give unrelated bytes.

        Raises:
            ParameterError: ``purpose`` is empty, or ``length`` is not 1 to 8160.
        """
        _check_purpose(purpose)
        if not 1 <= length <= _MOST_DERIVED:
            raise ParameterError(f"must be 1 to {_MOST_DERIVED}, got {length}", where="ObfuscationKey.subkey: length")
        return self._derive(b"subkey/%d/%s" % (length, purpose.encode()), length)

    def stream(self, purpose: str) -> Stream:
        """The key stream of one purpose, from its start, e.g. ``key.stream("layer 3/ffn")``.

        Raises:
            ParameterError: ``purpose`` is empty.
        """
        from privtensors.obfuscation.expansion import Stream  # late: this module imports no torch

        _check_purpose(purpose)
        return Stream(self._derive(b"stream/" + purpose.encode(), 32))

    def _derive(self, info: bytes, length: int) -> bytes:
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF

        return HKDF(hashes.SHA256(), length, salt=None, info=_DOMAIN + info).derive(self.secret)

    def __repr__(self) -> str:
        return f"ObfuscationKey(id={self.id})"

    def __eq__(self, other: object) -> bool:
        return hmac.compare_digest(self.secret, other.secret) if isinstance(other, ObfuscationKey) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.id)

    def __copy__(self) -> ObfuscationKey:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> ObfuscationKey:
        return self

    def __getstate__(self) -> NoReturn:
        raise ObfuscationError("a key cannot be pickled", where="ObfuscationKey", fix="save_key writes it to a file of its owner's alone")

    def __reduce__(self) -> NoReturn:
        self.__getstate__()

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        self.__getstate__()


def save_key(path: str | Path, key: ObfuscationKey, *, passphrase: str | None = None) -> None:
    """Write a key to a new file that its owner alone may read (mode 0600), whole or not at all.

    Args:
        path: The file; its folder must exist.
        key: What to write.
        passphrase: Wraps the key: scrypt (RFC 7914) and AES-256-GCM. Without one the file's permissions are all that guards it.

    Raises:
        ObfuscationError: A file of that name exists (a key that is overwritten is lost), or it cannot be written.
        ParameterError: The passphrase is empty.
    """
    path = Path(path)
    entry: dict[str, object] = {"format": _FORMAT, "version": _VERSION, "id": key.id}
    if passphrase is None:
        entry["secret"] = key.secret.hex()
    else:
        _wrap(entry, key, passphrase)
    text = json.dumps(entry, indent=1).encode()  # no final newline: every truncation breaks it
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")
    try:
        number = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(number, "wb") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.link(temporary, path)  # unlike a rename, refuses a name that is taken
        finally:
            temporary.unlink(missing_ok=True)
    except FileExistsError:
        raise ObfuscationError("a file of that name exists", where=str(path), fix="Choose another name, or move the old key away") from None
    except OSError as error:
        raise ObfuscationError(f"cannot write the key: {error.strerror}", where=str(path)) from None


def load_key(path: str | Path, *, passphrase: str | None = None) -> ObfuscationKey:
    """Read a key written by :func:`save_key`.

    Raises:
        WrongKey: The file is missing, is readable by its group or others, needs a passphrase or does not open with this one.
        FileFormatError: It is truncated, altered, or no key file of this version.
    """
    path = Path(path)
    entry = _parse(_read_private(path), str(path))
    wrapped = "wrap" in entry
    _expect(entry, {"format", "version", "id", *(("wrap", "ciphertext") if wrapped else ("secret",))}, str(path))
    if wrapped:
        if passphrase is None:
            raise WrongKey("the key is wrapped by a passphrase", where=str(path), fix="Give the passphrase")
        secret = _unwrap(entry, passphrase, str(path))
    else:
        if passphrase is not None:
            fix = "Load it without one, or save it anew with one"
            raise WrongKey("a passphrase was given, but the key is not wrapped by one", where=str(path), fix=fix)
        secret = _hexadecimal(entry["secret"], KEY_BYTES, "secret", str(path))
    key = ObfuscationKey(secret)
    if key.id != entry["id"]:
        raise FileFormatError("the key does not belong to the id beside it", where=str(path), fix="Take the key from a backup")
    return key


def _check_purpose(purpose: str) -> None:
    if not purpose:
        raise ParameterError("must not be empty", where="ObfuscationKey: purpose")


def _wrap(entry: dict[str, object], key: ObfuscationKey, passphrase: str) -> None:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    salt, nonce = secrets.token_bytes(_SALT_BYTES), secrets.token_bytes(_NONCE_BYTES)
    kdf = {
        "kdf": "scrypt",
        "n": _SCRYPT_N,
        "r": _SCRYPT_R,
        "p": _SCRYPT_P,
        "salt": salt.hex(),
        "cipher": "AES-256-GCM",
        "nonce": nonce.hex(),
    }
    entry["wrap"] = kdf
    box = AESGCM(_stretch(passphrase, salt, _SCRYPT_N))
    entry["ciphertext"] = box.encrypt(nonce, key.secret, _bound(entry)).hex()


def _unwrap(entry: dict[str, Any], passphrase: str, where: str) -> bytes:
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    wrap = entry["wrap"]
    if not isinstance(wrap, dict):
        raise FileFormatError("field 'wrap' is not an object", where=where)
    _expect(wrap, {"kdf", "n", "r", "p", "salt", "cipher", "nonce"}, where)
    n, known = wrap["n"], (wrap["kdf"], wrap["cipher"], wrap["r"], wrap["p"]) == ("scrypt", "AES-256-GCM", _SCRYPT_R, _SCRYPT_P)
    if not known or type(n) is not int or n not in _READABLE_N:
        raise FileFormatError("wrapped in a way that is not known, or at a cost out of bounds", where=where)
    salt, nonce = _hexadecimal(wrap["salt"], _SALT_BYTES, "salt", where), _hexadecimal(wrap["nonce"], _NONCE_BYTES, "nonce", where)
    sealed = _hexadecimal(entry["ciphertext"], KEY_BYTES + _TAG_BYTES, "ciphertext", where)
    try:
        return AESGCM(_stretch(passphrase, salt, n)).decrypt(nonce, sealed, _bound(entry))
    except InvalidTag:
        raise WrongKey("the passphrase is wrong, or the file was altered", where=where, fix="Check the passphrase") from None


def _stretch(passphrase: str, salt: bytes, n: int) -> bytes:
    from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

    if not passphrase:
        raise ParameterError("must not be empty", where="passphrase")
    text = unicodedata.normalize("NFC", passphrase).encode()  # the same letters typed on another system
    return Scrypt(salt=salt, length=32, n=n, r=_SCRYPT_R, p=_SCRYPT_P).derive(text)


def _bound(entry: dict[str, Any]) -> bytes:
    """What the wrapped key is authenticated with: everything in the file but the ciphertext."""
    return json.dumps({name: value for name, value in entry.items() if name != "ciphertext"}, sort_keys=True).encode()


def _read_private(path: Path) -> bytes:
    """The bytes of a file that only its owner may read; checked on the open file, so that it cannot be swapped in between."""
    try:
        number = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # non-blocking: a pipe by that name must not hang us
    except FileNotFoundError:
        raise WrongKey(
            "there is no key file", where=str(path), fix="Give the client folder's key.json, or the file from save_key"
        ) from None
    except OSError as error:
        raise WrongKey(f"cannot read the key: {error.strerror}", where=str(path)) from None
    try:
        status = os.fstat(number)
        if not stat.S_ISREG(status.st_mode):
            raise WrongKey("is not a regular file", where=str(path))
        if status.st_mode & 0o077:
            what = f"others than its owner may read or change it (mode {stat.S_IMODE(status.st_mode):04o})"
            raise WrongKey(what, where=str(path), fix="chmod 600, and treat the key as known to whoever could read it")
        with os.fdopen(number, "rb", closefd=False) as file:
            return file.read(_LARGEST_FILE + 1)
    finally:
        os.close(number)


def _parse(raw: bytes, where: str) -> dict[str, Any]:
    fix = "Take the key from a backup"
    try:
        entry = json.loads(raw.decode()) if len(raw) <= _LARGEST_FILE else None
    except (ValueError, RecursionError):
        entry = None
    if not isinstance(entry, dict):
        raise FileFormatError("is no key file, or is truncated", where=where, fix=fix)
    if entry.get("format") != _FORMAT or type(entry.get("version")) is not int:
        raise FileFormatError("is no key file of privtensors", where=where, fix=fix)
    if entry["version"] != _VERSION:
        raise FileFormatError(
            "was written by another version of the format", where=where, fix="Use the version of privtensors that wrote it"
        )
    return entry


def _expect(entry: dict[str, Any], fields: set[str], where: str) -> None:
    if set(entry) != fields:
        odd = sorted(set(entry) ^ fields)
        raise FileFormatError(f"fields missing or unknown: {', '.join(map(ascii, odd[:5]))}", where=where)


def _hexadecimal(value: object, length: int, field: str, where: str) -> bytes:
    try:
        decoded = bytes.fromhex(value) if isinstance(value, str) and len(value) == 2 * length else b""
    except ValueError:
        decoded = b""
    if len(decoded) != length:
        raise FileFormatError(f"field {field!r} is not {length} bytes in hexadecimal digits", where=where)
    return decoded
