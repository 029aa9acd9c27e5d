"""What runs in the other process in the store suites. Each takes a pipe to the test as its first argument."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from edgeml_ipc.data.data_store import QueuedDataStore
from edgeml_ipc.errors import EdgeMLError
from edgeml_ipc.testing._workers import PATIENCE_S
from edgeml_ipc.trainer import TrainerClient, TrainerConfig, TrainerServer

STORE = "steps"
CONFIG = TrainerConfig(port_number=0)


def learn(pipe: Any, host: str) -> None:
    """Serve a queue, and send what it holds each time the test says something, until it says nothing (None)."""
    store = QueuedDataStore(100_000)
    with TrainerServer(CONFIG, host=host) as server:
        server.register_data_store(STORE, store)
        server.start(threaded=True)
        pipe.send(server.address)
        while pipe.recv() is not None:
            pipe.send(store.get_latest_data(-1))


def act(pipe: Any, address: str, name: str, timeout_s: float = PATIENCE_S) -> None:
    """Upload the items that the test gives, and send what each update did, or its error's name, until it gives None."""
    queue = QueuedDataStore(100_000)
    with TrainerClient(
        name, address, CONFIG, data_stores={STORE: queue}, wait_for_server=True, timeout_ms=int(timeout_s * 1000)
    ) as client:
        while (items := pipe.recv()) is not None:
            queue.batch_insert(items)
            try:
                result = client.update()
            except EdgeMLError as error:
                pipe.send(type(error).__name__)
            else:
                pipe.send((result.sent, result.evicted, result.lost))


def act_until_killed(pipe: Any, address: str, items: Sequence[Any]) -> None:
    """Upload items one by one."""
    queue = QueuedDataStore(100_000)
    with TrainerClient(
        "mortal", address, CONFIG, data_stores={STORE: queue}, wait_for_server=True, timeout_ms=int(PATIENCE_S * 1000)
    ) as client:
        for item in items:
            queue.insert(item)
            client.update()
        pipe.recv()


def write(pipe: Any, attach: Callable[[Any], Any], place: Any, steps: Sequence[tuple[Any, bool]]) -> None:
    """Attach to a store, insert items of which each may be the last of its episode, and wait for the test, or to be killed."""
    store = attach(place)
    for item, last in steps:
        store.insert(item, end_of_trajectory=last)
    pipe.send("written")
    pipe.recv()
    store.close()
