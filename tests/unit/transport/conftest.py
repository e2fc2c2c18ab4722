"""Certificates for the transport tests, made once."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from privtensors.transport.tls import Identity, make_test_certificates


@pytest.fixture(scope="session")
def identities(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Identity]:
    """Of one authority."""
    return make_test_certificates(tmp_path_factory.mktemp("certificates"), ["client", "server", "dealer"])


@pytest.fixture(scope="session")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Identity]:
    """The same names from another authority."""
    return make_test_certificates(tmp_path_factory.mktemp("strangers"), ["client", "server", "dealer"])
