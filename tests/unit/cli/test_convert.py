"""``privtensors convert``: what it writes, what it prints, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from privtensors.cli.app import app
from privtensors.obfuscation.convert import load_client
from privtensors.obfuscation.folders import check_pair
from privtensors.obfuscation.keys import ObfuscationKey, save_key
from tests.unit.obfuscation.models import build, save

KEY = ObfuscationKey(bytes(range(60, 92)))


def ran(*given: object, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, ["convert", *map(str, given)], input=stdin)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("plain"), *build("bert"))


@pytest.fixture
def pair(tmp_path: Path) -> tuple[object, ...]:
    return "--client", tmp_path / "client", "--server", tmp_path / "server"


def test_converts_and_rotates(plain: Path, pair: tuple[object, ...], tmp_path: Path) -> None:
    done = ran("--model", plain, *pair)
    assert done.exit_code == 0, done.output
    first = load_client(tmp_path / "client").key
    for shown in ("BertForSequenceClassification (bert)", first.id, "keyed ids", "22", "keyed labels", "Give it to the server"):
        assert shown in done.stdout
    assert "recovers the key (100 % of the tokens)" in done.stdout and "Heuristic" in done.stdout
    assert first.secret.hex() not in done.output
    done = ran("--rotate", *pair)
    assert done.exit_code == 0 and "Rotated" in done.stdout and "read back from disk" in done.stdout
    check_pair(tmp_path / "client", tmp_path / "server")
    assert load_client(tmp_path / "client").key != first


def test_json_for_programs(plain: Path, pair: tuple[object, ...]) -> None:
    done = ran("--model", plain, *pair, "--json")
    found = json.loads(done.stdout)
    assert found["ok"] and found["guarantee"] == "heuristic" and found["scheme"] == "equivariant" and found["finished"] is False
    assert found["rows"] == 22 and found["labels"] == 3 and 0 <= found["error"] < 1e-4 and found["seconds"] > 0
    found = json.loads(ran("--rotate", *pair, "--json").stdout)
    assert found["ok"] and 0 <= found["error"] < 1e-4 and found["rows"] == 22


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_key_of_ones_own(wrapped: bool, plain: Path, pair: tuple[object, ...], tmp_path: Path) -> None:
    save_key(tmp_path / "mine.json", KEY, passphrase="open sesame" if wrapped else None)
    (tmp_path / "word").write_text("open sesame\n")
    done = ran("--model", plain, *pair, "--key", tmp_path / "mine.json", "--passphrase-file", tmp_path / "word", "--json")
    assert done.exit_code == 0 and json.loads(done.stdout)["key_id"] == KEY.id
    assert load_client(tmp_path / "client", passphrase="open sesame").key == KEY
    assert "sesame" not in done.output and KEY.secret.hex() not in done.output


def test_a_passphrase_is_asked_for(plain: Path, pair: tuple[object, ...], tmp_path: Path) -> None:
    done = ran("--model", plain, *pair, "--passphrase", stdin="open sesame\nopen sesame\n")
    assert done.exit_code == 0 and "sesame" not in done.stdout
    refused = ran("--rotate", *pair)
    assert refused.exit_code == 1 and "wrapped by a passphrase" in refused.output
    done = ran("--rotate", *pair, "--passphrase", stdin="open sesame\n")
    assert done.exit_code == 0 and load_client(tmp_path / "client", passphrase="open sesame")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--model", "m"], "--client is missing"),
        (["--client", "c", "--server", "s"], "--model is missing"),
        (["--scheme", "rot13"], "no scheme 'rot13'"),
        (["--model", "m", "--client", "c", "--server", "s", "--shuffle"], "--shuffle does not belong to --scheme equivariant"),
        (["--scheme", "sentinel", "--model", "m"], "--model does not belong to --scheme sentinel"),
        (["--scheme", "sentinel", "--model_name_or_path", "m"], "--destination_dir is missing"),
        (["--rotate", "--model", "m", "--client", "c", "--server", "s"], "--rotate needs no --model"),
        (["--model", "m", "--client", "c", "--server", "s", "--passphrase", "--passphrase-file", "f"], "exclude each other"),
        (["--model", "m", "--client", "c", "--server", "s", "--passphrase-file", "/nowhere"], "cannot be read"),
    ],
)
def test_a_wrong_command_line_ends_with_2(given: list[str], said: str) -> None:
    done = ran(*given)
    assert done.exit_code == 2 and said in done.output and len(done.output.splitlines()) == 1
    as_json = json.loads(ran(*given, "--json").stdout)
    assert as_json["ok"] is False and as_json["error"] == "UsageError" and said in as_json["what"]


@pytest.mark.parametrize("content", [b"", b"\n", b"two\nlines\n", b"\xff\xfe", b"x" * 5000])
def test_a_passphrase_file_that_is_none(content: bytes, plain: Path, pair: tuple[object, ...], tmp_path: Path) -> None:
    (tmp_path / "word").write_bytes(content)
    done = ran("--model", plain, *pair, "--passphrase-file", tmp_path / "word")
    assert done.exit_code == 2 and not (tmp_path / "client").exists()


def test_errors_are_one_line(plain: Path, pair: tuple[object, ...], tmp_path: Path) -> None:
    (tmp_path / "short.json").write_text(json.dumps({"format": "privtensors obfuscation key", "version": 1, "id": KEY.id, "secret": "00"}))
    (tmp_path / "short.json").chmod(0o600)
    cases: list[tuple[list[object], str]] = [
        (["--model", tmp_path / "nothing"], "no configuration can be loaded"),
        (["--model", plain, "--key", tmp_path / "nothing.json"], "no key file"),
        (["--model", plain, "--key", tmp_path / "short.json"], "not 32 bytes"),
        (["--rotate"], "no manifest"),
    ]
    for given, said in cases:
        done = ran(*given, *pair)
        assert done.exit_code == 1 and said in done.output and len(done.output.splitlines()) == 1, done.output
    assert not (tmp_path / "client").exists() and not (tmp_path / "server").exists()
    assert ran("--model", plain, *pair).exit_code == 0
    refused = ran("--model", plain, *pair)
    assert refused.exit_code == 1 and "exists and is not empty" in refused.output
    assert ran("--model", plain, *pair, "--overwrite").exit_code == 0


def test_the_published_flags_of_sentinel(plain: Path, tmp_path: Path) -> None:
    given = ["--scheme", "sentinel", "--model_name_or_path", plain, "--destination_dir", tmp_path / "keyed"]
    done = ran(*given)
    assert done.exit_code == 0 and "hardened" in done.stdout and "recovers the tokens" in done.stdout
    published = ["--encryption_key", "llm123", "--embedding_rescaling_factor", 3, "--shuffle", "--compat"]
    refused = ran(*given, *published)
    assert refused.exit_code == 1 and "exists and is not empty" in refused.output
    found = json.loads(ran(*given, *published, "--overwrite", "--json").stdout)
    assert found["ok"] and found["compat"] and found["guarantee"] == "heuristic" and any("protects nothing" in r for r in found["remarks"])
    assert "llm123" not in json.dumps(found)


def test_interrupted(plain: Path, pair: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from privtensors.obfuscation import convert

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(convert, "transform", stop)
    done = ran("--model", plain, *pair)
    assert done.exit_code == 130 and done.output == "interrupted: no folder was written or changed\n" and not any(tmp_path.iterdir())
