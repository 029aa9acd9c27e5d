"""What the `tcp` transport sends from its owner's memory: until when it reads there, and how it lets go."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgeml_ipc import transports
from edgeml_ipc.errors import BufferFull, ConnectionClosed
from edgeml_ipc.testing._transport_base import gather, greet, meet, next_message, pattern
from edgeml_ipc.testing._workers import PATIENCE_S, Background
from edgeml_ipc.transports import _zmq_frames as wire
from edgeml_ipc.transports._zmq_connection import TcpConnection
from edgeml_ipc.transports._zmq_listener import TcpListener
from edgeml_ipc.transports._zmq_peer import TcpPeer
from edgeml_ipc.transports._zmq_port import LOCAL_SEND_BUFFER_BYTES, limit_send_buffer
from tests.conftest import eventually
from tests.narrow_link import NarrowLink

LARGE_BYTES = 8 << 20


@pytest.fixture
def listener() -> Iterator[TcpListener]:
    with transports.listen("tcp://127.0.0.1:0", welcome=greet) as listener:
        assert isinstance(listener, TcpListener)
        yield listener


@pytest.fixture
def link(listener: TcpListener) -> Iterator[NarrowLink]:
    with NarrowLink(listener.port) as link:
        yield link


@pytest.fixture
def connection(link: NarrowLink) -> Iterator[TcpConnection]:
    with transports.connect(link.address, timeout=PATIENCE_S) as connection:
        assert isinstance(connection, TcpConnection)
        yield connection


def test_what_is_reclaimed_on_the_way_never_arrives(listener: TcpListener, link: NarrowLink, connection: TcpConnection) -> None:
    peer = meet(listener, connection)
    body = bytearray(pattern(LARGE_BYTES))
    link.stop()
    connection.lend([b"lent", body], PATIENCE_S)
    assert not connection.reclaim()
    assert connection.closed
    body[:] = bytes(LARGE_BYTES)
    link.go_on()
    assert gather(listener, 1) == [(peer, None)]
    with pytest.raises(ConnectionClosed):
        connection.lend([body], PATIENCE_S)


def test_a_close_elsewhere_lets_go_before_reclaim_returns(
    listener: TcpListener, link: NarrowLink, connection: TcpConnection
) -> None:
    peer = meet(listener, connection)
    body = bytearray(pattern(LARGE_BYTES))
    link.stop()
    connection.lend([body], PATIENCE_S)
    with Background(connection.close) as closing:
        eventually(lambda: connection._port.closed)
        assert not connection.reclaim()
        body[:] = bytes(LARGE_BYTES)
        link.go_on()
        assert gather(listener, 1) == [(peer, None)]
    closing.get()


def test_what_has_left_is_reclaimed_and_the_connection_stays(listener: TcpListener, connection: TcpConnection) -> None:
    body = bytearray(pattern(LARGE_BYTES))
    connection.lend([body], PATIENCE_S)
    _, parts = next_message(listener)
    eventually(lambda: all(each.done for each in connection._lent))  # zmq tells in its own time
    assert connection.reclaim()
    body[:] = bytes(LARGE_BYTES)
    assert bytes(parts[0]) == pattern(LARGE_BYTES)
    meet(listener, connection)


def test_what_finds_no_room_is_not_lent(listener: TcpListener, connection: TcpConnection) -> None:
    meet(listener, connection)
    count = 0
    with contextlib.suppress(BufferFull):
        while True:
            connection.send([b"x"], 0)
            count += 1
    with pytest.raises(BufferFull):
        connection.lend([bytearray(LARGE_BYTES)], 0)
    assert connection.reclaim()
    gather(listener, count)
    meet(listener, connection)


@pytest.mark.parametrize(
    ("part", "lent", "referenced"),
    [
        (bytes(wire.REFERENCED_FROM_BYTES), False, True),
        (bytes(wire.REFERENCED_FROM_BYTES - 1), False, False),
        (bytearray(wire.REFERENCED_FROM_BYTES), False, False),
        (memoryview(bytes(wire.REFERENCED_FROM_BYTES)), False, False),  # its owner may write where it may not
        (bytearray(wire.REFERENCED_FROM_BYTES), True, True),
        (bytearray(wire.REFERENCED_FROM_BYTES - 1), True, False),
    ],
)
def test_only_large_parts_that_stay_as_they_are_go_without_a_copy(part: bytes, lent: bool, referenced: bool) -> None:
    (frame,) = wire.pack([part], 1 << 30, "here", lent=lent).frames
    assert np.shares_memory(np.frombuffer(frame.buffer, np.uint8), np.frombuffer(part, np.uint8)) is referenced


def test_send_buffers_are_small_where_both_ends_are_on_one_machine(listener: TcpListener) -> None:
    with transports.connect(listener.address, timeout=PATIENCE_S) as connection:
        peer = meet(listener, connection)
        assert isinstance(peer, TcpPeer)
        ends = {_local_port(descriptor): descriptor for descriptor in _descriptors_to(listener.port)}
        assert len(ends) == 2
        assert peer.descriptor in ends.values()
        for descriptor in ends.values():
            assert _send_buffer_bytes(descriptor) == _granted_bytes()


def test_no_other_socket_is_touched() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as one:
        before = _send_buffer_bytes(one.fileno())
        here, there = one.getsockname()[1], one.getpeername()[1]
        limit_send_buffer(one.fileno(), next(port for port in range(1, 4) if port not in (here, there)))
        assert _send_buffer_bytes(one.fileno()) == before != _granted_bytes()
        limit_send_buffer(one.fileno(), there)
        assert _send_buffer_bytes(one.fileno()) == _granted_bytes()
    with Path("/dev/null").open() as file:
        limit_send_buffer(file.fileno(), there)
    limit_send_buffer(1 << 20, there)  # that nobody has
    left, right = socket.socketpair()
    with left, right:
        limit_send_buffer(left.fileno(), there)
        assert _send_buffer_bytes(left.fileno()) != _granted_bytes()


def _granted_bytes() -> int:
    """Return what the kernel makes of the wish: twice as much, and no more than it allows anybody."""
    with socket.socket() as fresh:
        fresh.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LOCAL_SEND_BUFFER_BYTES)
        return _send_buffer_bytes(fresh.fileno())


def _send_buffer_bytes(descriptor: int) -> int:
    with socket.fromfd(descriptor, socket.AF_INET, socket.SOCK_STREAM) as duplicate:
        return duplicate.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)


def _local_port(descriptor: int) -> int:
    with socket.fromfd(descriptor, socket.AF_INET, socket.SOCK_STREAM) as duplicate:
        return int(duplicate.getsockname()[1])


def _descriptors_to(port: int) -> list[int]:
    """Return this process's descriptors of the connections that have `port` at one end."""
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError), socket.socket(fileno=socket.dup(int(entry.name))) as each:
            if each.family == socket.AF_INET and port in (each.getsockname()[1], each.getpeername()[1]):
                found.append(int(entry.name))
    return found
