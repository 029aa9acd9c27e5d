"""Our transports (with the codec where trees travel), `InferenceClient.call`, and `TrainerClient.update`."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from benchmarks import payloads
from benchmarks.way import Ask, Give, Handler, OnTaken, Way, as_array
from edgeml_ipc import codec, transports
from edgeml_ipc.data import QueuedDataStore
from edgeml_ipc.inference import InferenceClient, InferenceServer
from edgeml_ipc.trainer import TrainerClient, TrainerConfig, TrainerServer
from edgeml_ipc.transports.base import Connection

TIMEOUT_SECONDS = 10.0
TIMEOUT_MS = 10_000
LOOK_SECONDS = 0.2  # how often a server, when nothing comes, looks whether it should stop
QUEUE_CAPACITY = 50_000
LEARNERS_CAPACITY = 256  # what it takes goes to its callback; lists of 50 that it kept besides would leave the caches
UPDATE_SECONDS = 0.0005  # an actor that inserts without a pause updates so often
STORE = "replay"


def address_for(scheme: str) -> str:
    """Return an address that nothing else listens at."""
    return f"shm://bench-{secrets.token_hex(8)}" if scheme == "shm" else f"{scheme}://127.0.0.1:0"


class TransportWay(Way):
    """A transport alone: buffers, of which nothing is made where they come back as they are; trees pass through the codec.

    What is answered is lent, as a call does it, and as zmq's sockets are used beside it.

    Args:
        scheme: "shm" or "tcp".
    """

    layer = "ours"

    def __init__(self, scheme: str) -> None:
        """Name it."""
        self.scheme, self.name, self.title = scheme, f"transport.{scheme}", f"transport {scheme}"
        self.untrimmed = scheme == "tcp"

    def _serve(self, pipe: Any, handle: Callable[[Connection, list[Any]], object]) -> None:
        with transports.listen(address_for(self.scheme), welcome=lambda hello: b"") as listener:
            pipe.send(listener.address)
            while True:
                events = listener.poll(LOOK_SECONDS)
                for connection, parts in events:
                    if parts is not None:
                        handle(connection, parts)
                if not events and pipe.poll(0):
                    return

    def answer(self, pipe: Any, shared: Any, nbytes: int, handler: Handler) -> None:
        """See `Way.answer`."""

        def act(connection: Connection, parts: list[Any]) -> None:
            connection.send([handler(as_array(parts[0]))], TIMEOUT_SECONDS)

        def echo(connection: Connection, parts: list[Any]) -> None:
            connection.send(parts, TIMEOUT_SECONDS)

        self._serve(pipe, echo if handler is payloads.echo else act)

    @contextmanager
    def ask(self, address: Any, shared: Any, nbytes: int) -> Iterator[Ask]:
        """See `Way.ask`."""
        with transports.connect(address, timeout=TIMEOUT_SECONDS) as connection:

            def call(array: np.ndarray) -> Any:
                connection.lend([array], TIMEOUT_SECONDS)
                return connection.recv(TIMEOUT_SECONDS)[0]

            yield call

    def take(self, pipe: Any, shared: Any, nbytes: int, taken: OnTaken) -> None:
        """See `Way.take`."""
        self._serve(pipe, lambda _, parts: taken(codec.decode(parts)))

    @contextmanager
    def give(self, address: Any, shared: Any, nbytes: int) -> Iterator[Give]:
        """See `Way.give`."""
        with transports.connect(address, timeout=TIMEOUT_SECONDS) as connection:
            yield lambda tree: connection.send(codec.encode(tree), TIMEOUT_SECONDS), lambda: None


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
            server.register_data_store(STORE, QueuedDataStore(LEARNERS_CAPACITY))
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
