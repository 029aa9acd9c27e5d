"""eclipse-zenoh: two peers that are told where the other is, a publisher and a subscriber in each; reliable, blocking."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from typing import Any

import numpy as np

from benchmarks.way import Channel, Stopped, Way, as_array, imported
from edgeml_ipc.errors import TransportUnavailable

RING_MESSAGES = 4  # that its shared memory has room for
SMALL_BYTES = 3072  # below, zenoh itself would not use shared memory
MATCH_SECONDS = 10.0
_numbers = count()


def reliable(zenoh: Any) -> dict[str, Any]:
    """Return a publisher's settings."""
    return {
        "congestion_control": zenoh.CongestionControl.BLOCK,
        "reliability": zenoh.Reliability.RELIABLE,
        "express": True,  # no waiting for more to send in one piece
    }


def free_address() -> str:
    """Return an address to listen at: zenoh does not tell which port it was given."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return f"tcp/127.0.0.1:{free.getsockname()[1]}"


@contextmanager
def opened(zenoh: Any, listen: list[str], connect: list[str], *, shm: bool) -> Iterator[Any]:
    """Open a session that looks for nobody else."""
    zenoh.init_log_from_env_or("error")
    config = zenoh.Config()
    settings = {
        "mode": "peer",
        "scouting/multicast/enabled": False,
        "listen/endpoints": listen,
        "connect/endpoints": connect,
        "transport/shared_memory/enabled": shm,
    }
    for key, value in settings.items():
        config.insert_json5(key, json.dumps(value))
    with zenoh.open(config) as session:
        yield session


class _PubSub(Channel):
    def __init__(self, session: Any, out: str, into: str, provider: Any) -> None:
        self._library = zenoh = imported("zenoh")
        self._session, self._provider = session, provider
        self._publisher = session.declare_publisher(out, **reliable(zenoh))
        self._subscriber = session.declare_subscriber(into)
        self._matched = False

    def send(self, array: np.ndarray) -> None:
        if not self._matched:
            self._wait_for_subscriber()
        data: Any = array.tobytes()
        if self._provider is not None and array.nbytes >= SMALL_BYTES:
            shm = self._library.shm
            lent = self._provider.alloc(array.nbytes, policy=shm.BlockOn(shm.GarbageCollect()))
            lent[:] = data
            data = lent
        self._publisher.put(data)

    def _wait_for_subscriber(self) -> None:
        """Wait until the other side is known: before, what is sent goes nowhere."""
        deadline = time.monotonic() + MATCH_SECONDS
        while not self._publisher.matching_status:
            if time.monotonic() > deadline:
                raise TransportUnavailable(f"no subscriber was found within {MATCH_SECONDS:.0f} s")
            time.sleep(0.01)
        self._matched = True

    def recv(self) -> np.ndarray:
        try:
            return as_array(self._subscriber.recv().payload.to_bytes())
        except self._library.ZError as error:
            raise Stopped from error

    def stop_when_told(self, pipe: Any) -> None:
        """End what waits in `recv`: a process that is killed leaves its shared memory behind."""
        with suppress(EOFError):
            pipe.recv()
        self._session.close()


class ZenohWay(Way):
    """Bytes.

    Args:
        how: "tcp" over loopback, or "shm" for what is large enough.
    """

    module = "zenoh"

    def __init__(self, how: str) -> None:
        """Name it."""
        self.how, self.name, self.title = how, f"zenoh-{how}", f"zenoh, {how}"

    @contextmanager
    def shared(self, nbytes: int) -> Iterator[str]:
        """Choose a key."""
        yield f"edgeml-bench/{os.getpid()}/{next(_numbers)}"

    @contextmanager
    def _session(self, nbytes: int, listen: list[str], connect: list[str]) -> Iterator[tuple[Any, Any]]:
        shm = self.how == "shm"
        with opened(imported("zenoh"), listen, connect, shm=shm) as session:
            room_bytes = RING_MESSAGES * max(nbytes, 1 << 20)
            yield session, imported("zenoh.shm").ShmProvider.default_backend(room_bytes) if shm else None

    @contextmanager
    def answering(self, pipe: Any, shared: Any, nbytes: int) -> Iterator[tuple[Any, Channel]]:
        """See `Way.answering`."""
        address = free_address()
        with self._session(nbytes, [address], []) as (session, provider):
            channel = _PubSub(session, f"{shared}/back", f"{shared}/there", provider)
            stopper = threading.Thread(target=channel.stop_when_told, args=(pipe,), daemon=True)
            stopper.start()
            try:
                yield address, channel
            finally:
                stopper.join()

    @contextmanager
    def asking(self, address: Any, shared: Any, nbytes: int) -> Iterator[Channel]:
        """See `Way.asking`."""
        with self._session(nbytes, [], [address]) as (session, provider):
            yield _PubSub(session, f"{shared}/there", f"{shared}/back", provider)
