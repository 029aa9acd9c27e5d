"""A buffer that is reached by messages passes the suites of one that is here."""

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from edgeml_ipc.data import ReplayBuffer
from edgeml_ipc.remote_buffer import RemoteBuffer
from edgeml_ipc.testing.stores import SharedReplayConformance
from edgeml_ipc.trainer import TrainerConfig, TrainerServer
from tests.conftest import new_address
from tests.data.test_conformance import Transitions
from tests.data.test_replay_buffer import ACTIONS, BOX

CONNECT = functools.partial(ReplayBuffer.connect, attach=False, copy=True, wait_for_server=True, timeout=30.0)


class RemoteTests(Transitions, SharedReplayConformance):
    scheme = ""

    @pytest.fixture(autouse=True)
    def _close_all(self) -> Iterator[None]:
        with ExitStack() as self.opened:
            yield

    def serve(self, capacity: int) -> str:
        server = self.opened.enter_context(TrainerServer(TrainerConfig(port_number=0), host=new_address(self.scheme)))
        buffer = self.opened.enter_context(ReplayBuffer(BOX, ACTIONS, capacity))
        server.register_data_store("buffer", buffer)
        server.start(threaded=True)
        return f"{server.address}/buffer"

    def make_replay(self, capacity: int, seed: int | None = None) -> RemoteBuffer:
        remote: RemoteBuffer = self.opened.enter_context(CONNECT(self.serve(capacity), seed=seed))
        return remote

    def make_shared(self, capacity: int, seed: int | None = None) -> tuple[RemoteBuffer, Callable[[Any], Any], str]:
        place = self.serve(capacity)
        return self.opened.enter_context(CONNECT(place, seed=seed)), CONNECT, place


class TestRemoteBufferOverTcp(RemoteTests):
    scheme = "tcp"


class TestRemoteBufferOverSharedMemory(RemoteTests):
    scheme = "shm"
