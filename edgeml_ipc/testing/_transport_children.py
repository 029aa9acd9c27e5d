"""What runs in the other process in the transport suite. Each takes a pipe to the test as its first argument."""

from __future__ import annotations

import itertools
from typing import Any

from edgeml_ipc.testing._transport_base import Place, greet, next_message, pattern
from edgeml_ipc.testing._workers import PATIENCE_S
from edgeml_ipc.transports import connect, listen


def ask(pipe: Any, address: str, place: Place, sizes_bytes: list[int]) -> None:
    """Connect, send a message of each size, and report which came back as they were."""
    with connect(address, hello=b"child", timeout=PATIENCE_S, options=place.connecting) as connection:
        intact = []
        for size in sizes_bytes:
            connection.send([b"ask", pattern(size)], PATIENCE_S)
            name, body = connection.recv(PATIENCE_S)
            intact.append(bytes(name) == b"ask" and bytes(body) == pattern(size))
        pipe.send((connection.transport, connection.welcome, intact))


def stream(pipe: Any, address: str, place: Place, committed: Any, size_bytes: int) -> None:
    """Connect and send numbered messages until killed; `committed` counts those whose send has returned."""
    with connect(address, hello=b"child", topics=[0], timeout=PATIENCE_S, options=place.connecting) as connection:
        pipe.send("connected")
        for number in itertools.count():
            connection.send([b"%d" % number, bytes([number % 251]) * size_bytes], PATIENCE_S)
            committed.value = number + 1


def idle(pipe: Any, address: str, place: Place) -> None:
    """Connect, and wait to be killed."""
    with connect(address, hello=b"child", topics=[0], timeout=PATIENCE_S, options=place.connecting) as connection:
        connection.send([b"here I am"], PATIENCE_S)
        pipe.send("connected")
        pipe.recv()


def serve_stream(pipe: Any, place: Place, committed: Any, size_bytes: int) -> None:
    """Listen, and send numbered messages to the client that says something first, until killed."""
    with listen(place.address, welcome=greet, options=place.listening) as listener:
        pipe.send(listener.address)
        peer, _ = next_message(listener)
        for number in itertools.count():
            peer.send([b"%d" % number, bytes([number % 251]) * size_bytes], PATIENCE_S)
            committed.value = number + 1


def publish(pipe: Any, place: Place, size_bytes: int) -> None:
    """Listen, and publish numbered values until killed."""
    with listen(place.address, welcome=greet, options=place.listening) as listener:
        pipe.send(listener.address)
        for number in itertools.count(1):
            listener.publish(0, [b"%d" % number, bytes([number % 251]) * size_bytes])
            listener.poll(0)
