"""Fixtures of the transport tests."""

from __future__ import annotations

import pytest

from edgeml_ipc.security import Keys
from edgeml_ipc.testing.transports import Place
from edgeml_ipc.transports.base import Options


@pytest.fixture
def tcp_place() -> Place:
    """A free port on loopback."""
    return Place("tcp://127.0.0.1:0")


@pytest.fixture(scope="session")
def curve_keys() -> tuple[Keys, Keys]:
    """Keys of a server, and of the only client that it allows."""
    return Keys.generate()


@pytest.fixture
def curve_place(curve_keys: tuple[Keys, Keys]) -> Place:
    """A free port on loopback, with keys."""
    server, client = curve_keys
    return Place("tcp://127.0.0.1:0", Options(keys=server), Options(keys=client))
