"""Every transport of ours passes the public suite."""

from __future__ import annotations

import uuid

import pytest

from edgeml_ipc.testing.transports import Place, TransportConformance


class TestInproc(TransportConformance):
    crosses_processes = False

    @pytest.fixture
    def place(self) -> Place:
        return Place(f"inproc://{uuid.uuid4()}")


class TestShm(TransportConformance):
    @pytest.fixture
    def place(self) -> Place:
        return Place(f"shm://test-{uuid.uuid4()}")


class TestTcp(TransportConformance):
    send_is_commit = False  # the last messages may still be in the sender's memory

    @pytest.fixture
    def place(self, tcp_place: Place) -> Place:
        return tcp_place


class TestTcpWithKeys(TransportConformance):
    send_is_commit = False

    @pytest.fixture
    def place(self, curve_place: Place) -> Place:
        return curve_place


class TestAuto(TransportConformance):
    @pytest.fixture
    def place(self) -> Place:
        return Place("auto://127.0.0.1:0")
