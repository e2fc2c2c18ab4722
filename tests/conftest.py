"""What holds for every test: no network through a model hub, no writing into the user's own data, no skip but one kind."""

from __future__ import annotations

import gc
import os
from collections.abc import Generator, Iterator

import pytest
from hypothesis import settings

# Before any test imports transformers: a test that needs a model gets it from privtensors.testing.assets.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # before torch is loaded, as the command line does

# The same examples in every run; a shared machine is slow at times, so hypothesis sets no deadline per example.
settings.register_profile("house", deadline=None, derandomize=True, print_blob=True)
settings.register_profile("explore", deadline=None, max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "house"))


@pytest.fixture(autouse=True, scope="session")
def _own_data_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A ledger opened by default lands in a folder of this run, never in the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("data")))
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))
        yield


def pytest_collection_finish() -> None:
    """What is loaded by now stays: a service ends every session with a full collection of garbage, half a second each over all of it."""
    gc.collect()
    gc.freeze()


def forbidden_skip(report: pytest.TestReport | pytest.CollectReport) -> str | None:
    """The reason of a skip that is not ``require_asset``'s; None when there is no such skip."""
    from privtensors.testing.assets import SKIP_REASON

    if not report.skipped or hasattr(report, "wasxfail"):
        return None
    reason = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)
    return None if reason.removeprefix("Skipped: ").startswith(SKIP_REASON) else reason


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if reason := forbidden_skip(report):
        report.outcome, report.longrepr = "failed", f"only require_asset may skip, this one says: {reason}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if reason := forbidden_skip(report):
        report.outcome, report.longrepr = "failed", f"only require_asset may skip, this one says: {reason}"
    return report
