"""Our transports alone: buffers there and back, without codec, protocol or service."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from benchmarks import payloads
from benchmarks.harness import Case, Placement, Round
from benchmarks.peers import ROUND_TRIP, answer_to, round_of
from benchmarks.processes import spawned
from edgeml_ipc import transports

TIMEOUT_SECONDS = 10.0
IDLE_SECONDS = 0.5  # how often the server, when nothing comes, looks whether it should stop


def address_for(scheme: str) -> str:
    """Return an address that nothing else listens at."""
    return f"shm://bench-{secrets.token_hex(8)}" if scheme == "shm" else f"{scheme}://127.0.0.1:0"


def echo_server(pipe: Any, address: str) -> None:
    """Answer every message until told to stop."""
    with transports.listen(address, welcome=lambda hello: b"") as listener:
        pipe.send(listener.address)
        while True:
            events = listener.poll(IDLE_SECONDS)
            for connection, parts in events:
                if parts is not None:
                    connection.send([answer_to(parts[0])], TIMEOUT_SECONDS)
            if not events and pipe.poll(0):
                return


@contextmanager
def round_trip(placement: Placement, scheme: str, nbytes: int) -> Iterator[Round]:
    """One connection, one message of one part at a time."""
    message = [np.ones(nbytes, np.uint8)]
    # Where the transport cannot be used, both sides say so; ours is asked first, since it can say why.
    transports.listen(address_for(scheme), welcome=lambda hello: b"").close()
    with (
        spawned(placement, 0, echo_server, address_for(scheme)) as (_, address),
        transports.connect(address, timeout=TIMEOUT_SECONDS) as connection,
    ):

        def call() -> None:
            connection.send(message, TIMEOUT_SECONDS)
            connection.recv(TIMEOUT_SECONDS)

        yield round_of(call)


SMALL = payloads.SMALL_BYTES
CASES = [
    Case("transport.shm.64B", "ours", "64 bytes there and back", lambda p: round_trip(p, "shm", SMALL), ROUND_TRIP),
    Case("transport.tcp.64B", "ours", "64 bytes there and back", lambda p: round_trip(p, "tcp", SMALL), ROUND_TRIP),
]
