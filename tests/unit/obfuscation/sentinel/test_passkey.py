"""From --encryption_key to a key: files, fresh keys, passphrases with a salt that stays with the owner."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from privtensors.errors import FileFormatError, ParameterError, WrongKey
from privtensors.obfuscation.keys import ObfuscationKey, save_key
from privtensors.obfuscation.sentinel import convert, load_owner
from privtensors.obfuscation.sentinel.passkey import SALT_FILE, Source, read_salt, resolve, strength, write_salt
from tests.unit.obfuscation.models import build, save

PHRASE = "correct horse battery staple"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("plain"), *build("bert"))


def test_a_key_is_drawn_and_kept_for_the_owner_alone(plain: Path, tmp_path: Path) -> None:
    made = convert(plain, tmp_path / "keyed")
    key = made.client / "key.json"
    assert made.key_source == "generated" and stat.S_IMODE(key.stat().st_mode) == 0o600
    assert stat.S_IMODE(made.client.stat().st_mode) == 0o700
    assert load_owner(made.client).manifest.key_id == made.key_id
    secret = json.loads(key.read_text())["secret"]
    assert not any(secret.encode() in path.read_bytes() or bytes.fromhex(secret) in path.read_bytes() for path in made.server.iterdir())
    assert secret not in repr(made) + repr(load_owner(made.client))


def test_a_drawn_key_can_be_wrapped(plain: Path, tmp_path: Path) -> None:
    made = convert(plain, tmp_path / "keyed", passphrase=PHRASE)
    with pytest.raises(WrongKey, match="wrapped"):
        load_owner(made.client)
    assert load_owner(made.client, passphrase=PHRASE).manifest.key_id == made.key_id


def test_a_key_file_stays_where_it_is(plain: Path, tmp_path: Path) -> None:
    save_key(tmp_path / "mine.key", ObfuscationKey(bytes(range(32))))
    made = convert(plain, tmp_path / "keyed", encryption_key=tmp_path / "mine.key")
    assert made.key_source == "key file" and not (made.client / "key.json").exists()
    with pytest.raises(WrongKey, match="holds no key"):
        load_owner(made.client)
    assert load_owner(made.client, encryption_key=str(tmp_path / "mine.key")).key == ObfuscationKey(bytes(range(32)))


def test_a_passphrase_goes_through_scrypt_with_a_salt_that_the_server_does_not_get(plain: Path, tmp_path: Path) -> None:
    made = convert(plain, tmp_path / "keyed", encryption_key=PHRASE)
    assert made.key_source == "passphrase" and any("at most" in remark for remark in made.remarks)
    assert not any(PHRASE in remark for remark in made.remarks)
    salt = json.loads((made.client / SALT_FILE).read_text())["salt"]
    assert len(bytes.fromhex(salt)) == 32 and stat.S_IMODE((made.client / SALT_FILE).stat().st_mode) == 0o600
    everything = b"".join(path.read_bytes() for path in made.server.iterdir())
    assert salt.encode() not in everything and bytes.fromhex(salt) not in everything and PHRASE.encode() not in everything
    owner = load_owner(made.client, encryption_key=PHRASE)
    assert owner.key == resolve(PHRASE, salt=bytes.fromhex(salt)).key != resolve(PHRASE, salt=bytes(32)).key
    with pytest.raises(WrongKey, match="is not the one"):
        load_owner(made.client, encryption_key=PHRASE + "!")


def test_the_same_letters_typed_on_another_system_give_the_same_key() -> None:
    assert resolve("café", salt=bytes(32)).key == resolve("cafe\u0301", salt=bytes(32)).key


def test_a_mistyped_path_is_no_passphrase(plain: Path, tmp_path: Path) -> None:
    for name in ("kee.json", "keys/mine", str(tmp_path / "none")):
        with pytest.raises(WrongKey, match="no key file"):
            resolve(name)
    made = convert(plain, tmp_path / "keyed")
    with pytest.raises(WrongKey, match="not converted with one"):
        load_owner(made.client, encryption_key=PHRASE)
    with pytest.raises(ParameterError):
        resolve("")


def test_kinds_of_keys() -> None:
    key = ObfuscationKey(bytes(range(32)))
    assert resolve(key).key is key and resolve(key).source is Source.GIVEN
    assert resolve(None).key != resolve(None).key


@pytest.mark.parametrize(("passphrase", "bits"), [("llm123", 31), ("aaaa", 19), ("1234", 13), ("Tr0ub4dor&3", 72), ("é", 17)])
def test_strength_is_an_upper_bound_that_repeats_nothing(passphrase: str, bits: int) -> None:
    text = strength(passphrase)
    assert f"at most {bits} bits" in text and "weak" in text and passphrase not in text


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"format": "privtensors passphrase salt", "version": 1, "salt": "00"}', '{"salt": 3}'])
def test_a_malformed_salt_is_refused(text: str, tmp_path: Path) -> None:
    assert read_salt(tmp_path) is None
    write_salt(tmp_path, bytes(32))
    assert read_salt(tmp_path) == bytes(32)
    (tmp_path / SALT_FILE).write_text(text)
    with pytest.raises(FileFormatError):
        read_salt(tmp_path)
