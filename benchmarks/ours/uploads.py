"""`TrainerClient.update` by itself: many transitions that wait in the queue, moved by one call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks import payloads
from benchmarks.harness import Case, Placement, Round, timed
from benchmarks.ours.ways import QUEUE_CAPACITY, STORE, TIMEOUT_MS, address_for
from benchmarks.processes import spawned
from edgeml_ipc.data import QueuedDataStore
from edgeml_ipc.trainer import TrainerClient, TrainerConfig, TrainerServer


def upload_server(pipe: Any, host: str) -> None:
    """Take transitions until told to stop."""
    with TrainerServer(TrainerConfig(port_number=0), host=host) as server:
        server.register_data_store(STORE, QueuedDataStore(QUEUE_CAPACITY))
        server.start(threaded=True)
        pipe.send(server.address)
        pipe.recv()


@contextmanager
def update(placement: Placement, transport: str) -> Iterator[Round]:
    """`TrainerClient.update` with 256 transitions in the queue; putting them there is not timed."""
    queue = QueuedDataStore(QUEUE_CAPACITY)
    row = payloads.transition()

    def fill() -> None:
        for _ in range(payloads.TRANSITIONS_PER_UPDATE):
            queue.insert(row)

    with (
        spawned(placement, 0, upload_server, address_for(transport)) as server,
        TrainerClient("bench", server.said, TrainerConfig(), data_stores={STORE: queue}, timeout_ms=TIMEOUT_MS) as client,
    ):
        yield lambda seconds: timed(
            client.update, seconds, things=payloads.TRANSITIONS_PER_UPDATE, prepare=fill, others=[server.pid]
        )


CASES = [
    Case(
        f"update.{scheme}",
        "ours",
        f"update() with {payloads.TRANSITIONS_PER_UPDATE} transitions over {scheme}; per second and CPU: of transitions",
        lambda p, scheme=scheme: update(p, scheme),
        "floor.memcpy.transitions",
        "one way",
        reopen=True,
    )
    for scheme in ("shm", "tcp")
]
