"""Key hygiene: what a key shows, how its file is guarded, and what a damaged or foreign file does."""

from __future__ import annotations

import copy
import io
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from privtensors.errors import FileFormatError, ObfuscationError, ParameterError, PrivTensorsError, WrongKey
from privtensors.obfuscation import keys
from privtensors.obfuscation.keys import KEY_BYTES, ObfuscationKey, load_key, save_key

SECRET = bytes(range(7, 39))
KEY = ObfuscationKey(SECRET)


@pytest.fixture(autouse=True)
def cheap_scrypt(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """The cheapest cost that a file may ask for; the one test of the real cost says so."""
    if "real_cost" not in request.fixturenames:
        monkeypatch.setattr(keys, "_SCRYPT_N", 1 << 14)


@pytest.fixture
def real_cost() -> None:
    """Leaves scrypt as it is."""


def shows(text: str | bytes, secret: bytes = SECRET) -> bool:
    """Whether ``text`` holds any eight bytes of the secret, raw or in hexadecimal digits or as Python prints bytes."""
    raw = text.encode() if isinstance(text, str) else text
    pieces = [secret[i : i + 8] for i in range(len(secret) - 7)]
    return any(p in raw or p.hex().encode() in raw.lower() or repr(p)[2:-1].encode() in raw for p in pieces)


def test_the_search_for_a_secret_finds_one() -> None:
    assert shows(repr(SECRET)) and shows(SECRET.hex()) and shows(b"x" + SECRET) and not shows(KEY.id)


# What a key shows.


@pytest.mark.parametrize("show", [repr, str, format, lambda key: f"{key!r:>80}", lambda key: f"{key}", lambda key: repr([key])])
def test_text_shows_the_id_alone(show: Callable[[ObfuscationKey], str]) -> None:
    assert KEY.id in show(KEY) and not shows(show(KEY))


def test_vars_and_attributes_cannot_be_set() -> None:
    with pytest.raises(TypeError):
        vars(KEY)
    with pytest.raises(AttributeError):
        KEY.secret = bytes(32)  # type: ignore[misc]
    with pytest.raises((AttributeError, TypeError)):
        KEY.note = 1  # type: ignore[attr-defined]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_no_pickle(protocol: int) -> None:
    for value in (KEY, [KEY], KEY.stream("x")):
        with pytest.raises(ObfuscationError):
            pickle.dumps(value, protocol)


def test_no_torch_save_and_no_state() -> None:
    file = io.BytesIO()
    with pytest.raises(ObfuscationError):
        torch.save({"key": KEY}, file)
    assert not shows(file.getvalue())
    with pytest.raises(ObfuscationError):
        KEY.__getstate__()


def test_a_copy_is_the_key_and_a_stream_has_none() -> None:
    assert copy.copy(KEY) is KEY and copy.deepcopy([KEY])[0] is KEY
    for duplicate in (copy.copy, copy.deepcopy):
        with pytest.raises(ObfuscationError):
            duplicate(KEY.stream("x"))


def test_json_and_stream_text() -> None:
    with pytest.raises(TypeError):
        json.dumps(asdict(KEY))
    assert repr(KEY.stream("x")) == "Stream(seed=hidden)"


def test_errors_show_nothing(tmp_path: Path) -> None:
    save_key(tmp_path / "key", KEY)
    text = (tmp_path / "key").read_text()
    for damaged in (text.replace(KEY.id, "0" * 16), text[:-2], text.replace('"version": 1', '"version": 2'), text + "x"):
        path = tmp_path / "damaged"
        path.unlink(missing_ok=True)
        path.touch(mode=0o600)
        path.write_text(damaged)
        with pytest.raises(PrivTensorsError) as caught:
            load_key(path)
        assert not shows(str(caught.value)) and caught.value.__cause__ is None
        assert caught.value.__context__ is None or caught.value.__suppress_context__


# What it is.


def test_fresh_keys_differ() -> None:
    keys = [ObfuscationKey.generate() for _ in range(50)]
    assert len({k.secret for k in keys}) == len({k.id for k in keys}) == 50 and all(len(k.secret) == KEY_BYTES for k in keys)


def test_equal_by_value_and_hashable() -> None:
    assert ObfuscationKey(bytes(KEY.secret)) == KEY != ObfuscationKey(bytes(32)) and len({KEY, ObfuscationKey(SECRET)}) == 1
    assert KEY != SECRET


@pytest.mark.parametrize("secret", [b"", bytes(31), bytes(33), "a" * 32, bytearray(32), None, 5])
def test_wrong_length_or_type(secret: Any) -> None:
    with pytest.raises(WrongKey, match="32 bytes"):
        ObfuscationKey(secret)


def test_id_and_subkeys_follow_rfc_5869() -> None:
    def derive(info: bytes, length: int) -> bytes:
        return HKDF(hashes.SHA256(), length, None, b"privtensors/obfuscation/" + info).derive(SECRET)

    assert KEY.id == derive(b"key id", 8).hex()
    assert KEY.subkey("noise", 40) == derive(b"subkey/40/noise", 40)
    # Fixed for ever: a change would orphan every converted model.
    assert (KEY.id, KEY.subkey("noise").hex()[:16]) == ("c2a534230055dfbe", "d5798cebe1fb805f")


def test_purposes_and_lengths_are_apart() -> None:
    values = [KEY.subkey(p, n)[:16] for p in ("a", "b", "key id", "a/b", "ab") for n in (16, 32, 33)] + [bytes.fromhex(KEY.id)]
    assert len({v[:8] for v in values}) == len(values)


@pytest.mark.parametrize(("purpose", "length"), [("", 32), ("x", 0), ("x", -1), ("x", 8161)])
def test_bad_purpose(purpose: str, length: int) -> None:
    with pytest.raises(ParameterError):
        KEY.subkey(purpose, length)


def test_empty_purpose_has_no_stream() -> None:
    with pytest.raises(ParameterError):
        KEY.stream("")


def test_importing_keys_needs_no_torch() -> None:
    code = "import sys, privtensors.obfuscation.keys, privtensors.obfuscation.technique; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


# Its file.


@pytest.mark.parametrize("passphrase", [None, "correct horse", "pä ß\u0301"])
def test_file_round_trip(tmp_path: Path, passphrase: str | None) -> None:
    path = tmp_path / "key.json"
    save_key(path, KEY, passphrase=passphrase)
    assert load_key(path, passphrase=passphrase) == KEY
    assert path.stat().st_mode & 0o777 == 0o600 and list(tmp_path.iterdir()) == [path]
    assert shows(path.read_bytes()) == (passphrase is None)


def test_permissions_do_not_depend_on_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        save_key(tmp_path / "key", KEY)
    finally:
        os.umask(before)
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601, 0o666])
def test_a_file_that_others_reach_is_refused(tmp_path: Path, mode: int) -> None:
    save_key(tmp_path / "key", KEY)
    (tmp_path / "key").chmod(mode)
    with pytest.raises(WrongKey, match=f"0{mode:o}.*chmod 600"):
        load_key(tmp_path / "key")


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    save_key(tmp_path / "key", KEY)
    with pytest.raises(ObfuscationError, match="exists"):
        save_key(tmp_path / "key", ObfuscationKey.generate())
    assert load_key(tmp_path / "key") == KEY and len(list(tmp_path.iterdir())) == 1


def test_no_folder_no_pipe_no_missing_file(tmp_path: Path) -> None:
    with pytest.raises(WrongKey, match="no key file"):
        load_key(tmp_path / "missing")
    with pytest.raises(WrongKey, match="regular"):
        load_key(tmp_path)
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(WrongKey, match="regular"):
        load_key(tmp_path / "pipe")
    with pytest.raises(ObfuscationError, match="cannot write"):
        save_key(tmp_path / "missing" / "key", KEY)


def test_wrong_missing_empty_and_needless_passphrase(tmp_path: Path) -> None:
    save_key(tmp_path / "wrapped", KEY, passphrase="right")
    save_key(tmp_path / "bare", KEY)
    for wrong in ("wrong", "Right", "right "):
        with pytest.raises(WrongKey, match="passphrase is wrong"):
            load_key(tmp_path / "wrapped", passphrase=wrong)
    with pytest.raises(WrongKey, match="wrapped by a passphrase"):
        load_key(tmp_path / "wrapped")
    with pytest.raises(WrongKey, match="not wrapped"):
        load_key(tmp_path / "bare", passphrase="right")
    for act in (lambda: save_key(tmp_path / "new", KEY, passphrase=""), lambda: load_key(tmp_path / "wrapped", passphrase="")):
        with pytest.raises(ParameterError):
            act()
    assert not (tmp_path / "new").exists()


def test_equal_letters_in_another_encoding_open_it(tmp_path: Path) -> None:
    save_key(tmp_path / "key", KEY, passphrase="caf\u00e9")
    assert load_key(tmp_path / "key", passphrase="cafe\u0301") == KEY


def test_two_wraps_of_one_key_share_nothing(tmp_path: Path, real_cost: None) -> None:
    for name in "ab":
        save_key(tmp_path / name, KEY, passphrase="same")
    first, second = (json.loads((tmp_path / name).read_text()) for name in "ab")
    assert first["ciphertext"] != second["ciphertext"] and first["wrap"]["salt"] != second["wrap"]["salt"]
    assert first["wrap"]["nonce"] != second["wrap"]["nonce"] and first["wrap"]["n"] >= 1 << 17


@pytest.mark.parametrize("passphrase", [None, "right"])
def test_truncation_at_every_byte(tmp_path: Path, passphrase: str | None) -> None:
    save_key(tmp_path / "key", KEY, passphrase=passphrase)
    whole = (tmp_path / "key").read_bytes()
    path = tmp_path / "short"
    path.touch(mode=0o600)
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(FileFormatError):
            load_key(path, passphrase=passphrase)


WRAP_CHANGES: list[dict[str, Any]] = [
    {"n": 1 << 13}, {"n": 1 << 21}, {"n": (1 << 17) + 1}, {"n": -1}, {"n": True}, {"n": "131072"}, {"n": 131072.0}, {"n": 10**400},
    {"r": 16}, {"r": 0}, {"p": 2}, {"kdf": "pbkdf2"}, {"cipher": "AES-256-CTR"}, {"salt": ""}, {"salt": "zz" * 16}, {"nonce": "00"},
    {"salt": 5}, {"extra": 1},
]  # fmt: skip


@pytest.mark.parametrize("change", WRAP_CHANGES, ids=str)
def test_costs_and_parameters_are_bounded_before_use(tmp_path: Path, change: dict[str, Any]) -> None:
    """None of these may reach scrypt: a file must not make us spend gigabytes, nor choose a weaker cipher."""
    entry = _wrapped(tmp_path)
    entry["wrap"] |= change
    with pytest.raises(FileFormatError):
        load_key(_written(tmp_path, entry), passphrase="right")


@pytest.mark.parametrize("field", ["id", "ciphertext", "salt", "nonce", "n"])
def test_every_field_of_a_wrapped_key_is_authenticated(tmp_path: Path, field: str) -> None:
    entry = _wrapped(tmp_path)
    place = entry["wrap"] if field in entry["wrap"] else entry
    place[field] = 1 << 15 if field == "n" else ("1" if place[field][0] == "0" else "0") + place[field][1:]
    with pytest.raises(WrongKey):
        load_key(_written(tmp_path, entry), passphrase="right")


@pytest.mark.parametrize(
    "change",
    [{"format": "other"}, {"version": 2}, {"version": "1"}, {"version": True}, {"secret": "00" * 31}, {"secret": "zz" * 32}, {"secret": 5},
     {"secret": "11" * 32}, {"id": 5}, {"more": 1}, {"wrap": 5, "secret": ...}, {"wrap": 5, "ciphertext": "", "secret": ...}, {"id": ...}],
    ids=str,
)  # fmt: skip
def test_malformed_files(tmp_path: Path, change: dict[str, Any]) -> None:
    save_key(tmp_path / "key", KEY)
    entry = {k: v for k, v in (json.loads((tmp_path / "key").read_text()) | change).items() if v is not ...}
    with pytest.raises(FileFormatError):
        load_key(_written(tmp_path, entry), passphrase="right" if "wrap" in change else None)


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"\xff\xfe", b"[" * 50_000, b"1" * 5000, b" " * 20_000])
def test_no_json(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "key"
    path.touch(mode=0o600)
    path.write_bytes(content)
    with pytest.raises(FileFormatError):
        load_key(path)


def _wrapped(folder: Path) -> dict[str, Any]:
    save_key(folder / "key", KEY, passphrase="right")
    entry: dict[str, Any] = json.loads((folder / "key").read_text())
    return entry


def _written(folder: Path, entry: dict[str, Any]) -> Path:
    path = folder / "changed"
    path.touch(mode=0o600)
    path.write_text(json.dumps(entry))
    return path
