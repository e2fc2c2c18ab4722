"""The tests here run CrypTen's parties; ``make crypten`` installs what they need."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from privtensors_crypten import home


@pytest.fixture(autouse=True, scope="session")
def _own_data_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A ledger opened by default lands in a folder of this run; the parties' Python is found before that."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(home.VARIABLE, str(home.python()))
        patch.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("data")))
        yield
