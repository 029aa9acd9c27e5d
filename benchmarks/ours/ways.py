"""Our transports (with the codec where trees travel), `InferenceClient.call`, and `TrainerClient.update`."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from benchmarks.way import Ask, Channel, Give, Handler, OnTaken, Stopped, Way
from edgeml_ipc import codec, transports
from edgeml_ipc.data import QueuedDataStore
from edgeml_ipc.inference import InferenceClient, InferenceServer
from edgeml_ipc.trainer import TrainerClient, TrainerConfig, TrainerServer
from edgeml_ipc.transports.base import Connection, Listener

TIMEOUT_SECONDS = 10.0
TIMEOUT_MS = 10_000
LOOK_SECONDS = 0.2  # how often a server, when nothing comes, looks whether it should stop
QUEUE_CAPACITY = 50_000
UPDATE_SECONDS = 0.0005  # an actor that inserts without a pause updates so often
STORE = "replay"


def address_for(scheme: str) -> str:
    """Return an address that nothing else listens at."""
    return f"shm://bench-{secrets.token_hex(8)}" if scheme == "shm" else f"{scheme}://127.0.0.1:0"


class _Listening(Channel):
    """A listener's side of its only connection."""

    def __init__(self, pipe: Any, listener: Listener) -> None:
        self._pipe, self._listener = pipe, listener
        self._events: list[Any] = []
        self._connection: Any = None

    def _next(self) -> list[Any]:
        while True:
            while not self._events:
                self._events = self._listener.poll(LOOK_SECONDS)
                self._events.reverse()
                if not self._events and self._pipe.poll(0):
                    raise Stopped
            self._connection, parts = self._events.pop()
            if parts is not None:
                return parts  # type: ignore[no-any-return]

    def send(self, array: np.ndarray) -> None:
        self._connection.send([array], TIMEOUT_SECONDS)

    def recv(self) -> np.ndarray:
        return np.frombuffer(self._next()[0], np.uint8)

    def recv_tree(self) -> Any:
        return codec.decode(self._next())


class _Connected(Channel):
    """The connecting side."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def send(self, array: np.ndarray) -> None:
        self._connection.send([array], TIMEOUT_SECONDS)

    def recv(self) -> np.ndarray:
        return np.frombuffer(self._connection.recv(TIMEOUT_SECONDS)[0], np.uint8)

    def send_tree(self, tree: Any) -> None:
        self._connection.send(codec.encode(tree), TIMEOUT_SECONDS)


class TransportWay(Way):
    """A transport alone: buffers, without protocol or service.

    Args:
        scheme: "shm" or "tcp".
    """

    layer = "ours"

    def __init__(self, scheme: str) -> None:
        """Name it."""
        self.scheme, self.name, self.title = scheme, f"transport.{scheme}", f"transport {scheme}"
        self.untrimmed = scheme == "tcp"

    @contextmanager
    def answering(self, pipe: Any, shared: Any, nbytes: int) -> Iterator[tuple[Any, Channel]]:
        """See `Way.answering`."""
        with transports.listen(address_for(self.scheme), welcome=lambda hello: b"") as listener:
            yield listener.address, _Listening(pipe, listener)

    @contextmanager
    def asking(self, address: Any, shared: Any, nbytes: int) -> Iterator[Channel]:
        """See `Way.asking`."""
        with transports.connect(address, timeout=TIMEOUT_SECONDS) as connection:
            yield _Connected(connection)


class ServiceWay(Way):
    """`InferenceClient.call` with a dict that holds the array; a dict comes back."""

    layer, streams = "ours", False

    def __init__(self, scheme: str) -> None:
        """Name it."""
        self.scheme, self.name, self.title = scheme, f"call.{scheme}", f"InferenceClient.call, {scheme}"
        self.untrimmed = scheme == "tcp"

    def answer(self, pipe: Any, shared: Any, nbytes: int, handler: Handler) -> None:
        """See `Way.answer`."""
        with InferenceServer(port_num=0, host=address_for(self.scheme)) as server:
            server.register_interface("act", lambda payload: {"action": handler(payload["image"])})
            server.start(threaded=True)
            pipe.send(server.address)
            pipe.recv()

    @contextmanager
    def ask(self, address: Any, shared: Any, nbytes: int) -> Iterator[Ask]:
        """See `Way.ask`."""
        with InferenceClient(address, 0, timeout_ms=TIMEOUT_MS) as client:

            def call(array: np.ndarray) -> np.ndarray:
                return client.call("act", {"image": array})["action"]  # type: ignore[no-any-return]

            yield call


class UploadWay(Way):
    """An actor that inserts into its queue and calls `TrainerClient.update` every half millisecond; exactly once.

    The learner's store is a queue too, and its `data_callback` is given each transition, or batch, as what was inserted.
    """

    layer, sweeps, untrimmed = "ours", False, False
    trips = False

    def __init__(self, scheme: str) -> None:
        """Name it."""
        self.scheme, self.name, self.title = scheme, f"update.{scheme}", f"TrainerClient.update, {scheme}"

    def take(self, pipe: Any, shared: Any, nbytes: int, taken: OnTaken) -> None:
        """See `Way.take`."""

        def on_data(_: str, payload: dict[str, Any]) -> None:
            for item in payload["data"]:
                taken(item)

        with TrainerServer(TrainerConfig(port_number=0), data_callback=on_data, host=address_for(self.scheme)) as server:
            server.register_data_store(STORE, QueuedDataStore(QUEUE_CAPACITY))
            server.start(threaded=True)
            pipe.send(server.address)
            pipe.recv()

    @contextmanager
    def give(self, address: Any, shared: Any, nbytes: int) -> Iterator[Give]:
        """See `Way.give`."""
        queue = QueuedDataStore(QUEUE_CAPACITY)
        config = TrainerConfig()
        updated = 0.0
        with TrainerClient("bench", address, config, data_stores={STORE: queue}, timeout_ms=TIMEOUT_MS) as client:

            def give(item: Any) -> None:
                nonlocal updated
                queue.insert(item)
                if time.monotonic() - updated >= UPDATE_SECONDS:
                    client.update()
                    updated = time.monotonic()

            yield give, client.update
