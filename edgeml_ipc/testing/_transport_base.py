"""What the parts of the transport suite share: the place under test, its fixtures, and how to wait for messages."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pytest

from edgeml_ipc import transports
from edgeml_ipc._deadline import Deadline
from edgeml_ipc.testing._workers import PATIENCE_S, Background
from edgeml_ipc.transports.base import Buffer, Connection, Listener, Options


@dataclass(frozen=True)
class Place:
    """Where and how the transport under test is used.

    Attributes:
        address: to listen at; a free one for each test, or one whose port the system chooses.
        listening: options of the listener.
        connecting: options of those that connect.
    """

    address: str
    listening: Options = field(default_factory=Options)
    connecting: Options = field(default_factory=Options)


class TransportTests:
    """The fixtures of the suite. A subclass overrides `place`."""

    crosses_processes = True
    send_is_commit = True

    @pytest.fixture
    def place(self) -> Place:
        """Say what is tested."""
        raise NotImplementedError(f"{type(self).__name__} must have a fixture `place` that returns a Place")

    @pytest.fixture
    def listener(self, place: Place) -> Iterator[Listener]:
        with listen(place) as listener:
            yield listener

    @pytest.fixture
    def connection(self, place: Place, listener: Listener) -> Iterator[Connection]:
        with connect(place, listener) as connection:
            yield connection


def greet(hello: bytes) -> bytes:
    """Answer a handshake."""
    return b"welcome " + hello


def listen(place: Place) -> Listener:
    return transports.listen(place.address, welcome=greet, options=place.listening)


def connect(place: Place, listener: Listener, hello: bytes = b"me", topics: Sequence[int] = ()) -> Connection:
    return transports.connect(listener.address, hello=hello, topics=topics, timeout=PATIENCE_S, options=place.connecting)


def flat(parts: Sequence[Buffer]) -> list[bytes]:
    """Return a message's parts as bytes."""
    return [bytes(part) for part in parts]


def gather(listener: Listener, count: int) -> list[tuple[Connection, list[Buffer] | None]]:
    """Poll until `count` entries have come."""
    deadline = Deadline(PATIENCE_S)
    entries: list[tuple[Connection, list[Buffer] | None]] = []
    while len(entries) < count:
        entries += listener.poll(deadline.remaining())
        assert len(entries) >= count or not deadline.expired, f"{len(entries)} of {count} entries came"
    return entries


def next_message(listener: Listener) -> tuple[Connection, list[Buffer]]:
    """Poll for one message."""
    ((connection, parts),) = gather(listener, 1)
    assert parts is not None, "the connection ended, a message was expected"
    return connection, parts


def meet(listener: Listener, connection: Connection) -> Connection:
    """Return the listener's end of `connection`."""
    connection.send([b"here I am"], PATIENCE_S)
    peer, parts = next_message(listener)
    assert flat(parts) == [b"here I am"]
    return peer


def pattern(size_bytes: int, seed: int = 0) -> bytes:
    """Return bytes that look different at every place and for every seed."""
    block = hashlib.shake_128(b"%d %d" % (size_bytes, seed)).digest(min(size_bytes, 65_521))
    return (block * (size_bytes // max(len(block), 1) + 1))[:size_bytes]


class Echo:
    """Polls a listener in a thread and sends every message back, until it is closed."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._stop = threading.Event()
        self._background = Background(self._run)

    def _run(self) -> None:
        while not self._stop.is_set():
            for connection, parts in self._listener.poll(None):
                if parts is not None:
                    connection.send(parts, PATIENCE_S)

    def __enter__(self) -> Echo:
        self._background.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._listener.wake()
        self._background.__exit__(*exc)
        if exc[0] is None:
            self._background.get()
