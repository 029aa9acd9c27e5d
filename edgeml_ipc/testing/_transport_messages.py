"""Messages: boundaries, order, sizes, ownership, room."""

from __future__ import annotations

import array
import gc
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from edgeml_ipc.errors import BufferFull, EdgeMLError, MessageTooLarge, TimeoutError
from edgeml_ipc.testing._transport_base import (
    Echo,
    Place,
    TransportTests,
    connect,
    flat,
    gather,
    listen,
    meet,
    next_message,
    pattern,
)
from edgeml_ipc.testing._workers import PATIENCE_S, Background
from edgeml_ipc.transports.base import MAX_PARTS, Buffer, Connection, Listener

_SIZES_BYTES = sorted({0, *((1 << power) + offset for power in range(25) for offset in (-1, 0, 1))} - {(1 << 24) + 1})
_MAX_UNTIL_FULL_BYTES = 1 << 29


class MessageTests(TransportTests):
    """One connection that works."""

    def test_keeps_boundaries_and_order(self, listener: Listener, connection: Connection) -> None:
        sent = [[pattern(size, number) for size in range(number % 5, number % 7 + 6)] for number in range(500)]
        with Echo(listener):
            for message in sent:
                connection.send(message, PATIENCE_S)
            received = [flat(connection.recv(PATIENCE_S)) for _ in sent]
        assert received == sent

    @pytest.mark.parametrize("message", [[b""], [b"", b"", b""], [b"a", b"", b"b"], [b"", bytes(100_000), b""]])
    def test_carries_empty_parts(self, listener: Listener, connection: Connection, message: list[bytes]) -> None:
        peer = meet(listener, connection)
        connection.send(message, PATIENCE_S)
        assert flat(next_message(listener)[1]) == message
        peer.send(message, PATIENCE_S)
        assert flat(connection.recv(PATIENCE_S)) == message

    def test_carries_as_many_parts_as_allowed(self, listener: Listener, connection: Connection) -> None:
        message = [b"%d" % number for number in range(MAX_PARTS)]
        with pytest.raises(MessageTooLarge):
            connection.send([*message, b"one more"], PATIENCE_S)
        with Background(connection.send, message, PATIENCE_S) as sending:
            _, parts = next_message(listener)
        sending.get()
        assert flat(parts) == message

    def test_carries_every_size(self, listener: Listener, connection: Connection) -> None:
        with Echo(listener):
            for size in _SIZES_BYTES:
                body = pattern(size)
                connection.send([b"size", body], PATIENCE_S)
                name, echoed = connection.recv(PATIENCE_S)
                assert bytes(name) == b"size"
                assert bytes(echoed) == body, f"{size} bytes came back changed"

    @pytest.mark.parametrize(
        "part",
        [
            bytearray(b"abc"),
            memoryview(b"abcdef")[2:],
            array.array("d", [1.0, 2.0]),
            np.arange(24, dtype=np.float32).reshape(2, 3, 4),
            np.zeros((3, 0, 2)),
            np.array(7, np.int16),
            np.ones(3000, np.complex128),
            np.ones((100, 100), bool),
        ],
        ids=lambda part: f"{type(part).__name__}-{memoryview(part).nbytes}",
    )
    def test_takes_any_contiguous_buffer(self, listener: Listener, connection: Connection, part: Any) -> None:
        expected = memoryview(part).tobytes()
        peer = meet(listener, connection)
        connection.send([part], PATIENCE_S)
        assert flat(next_message(listener)[1]) == [expected]
        peer.send([part], PATIENCE_S)
        assert flat(connection.recv(PATIENCE_S)) == [expected]

    def test_received_parts_are_read_only(self, listener: Listener, connection: Connection) -> None:
        peer = meet(listener, connection)
        message = [bytearray(100), bytearray(1 << 20)]
        connection.send(message, PATIENCE_S)
        at_listener = next_message(listener)[1]
        peer.send(message, PATIENCE_S)
        for part in (*at_listener, *connection.recv(PATIENCE_S)):
            assert memoryview(part).readonly
            assert not np.frombuffer(part, np.uint8).flags.writeable

    def test_parts_outlive_their_connection(self, place: Place) -> None:
        message = [pattern(size, 1) for size in (0, 10, 5_000, 50_000, 3 << 20, (13 << 20) + 77)]
        with listen(place) as listener, connect(place, listener) as connection:
            peer = meet(listener, connection)
            connection.send(message, PATIENCE_S)
            parts = next_message(listener)[1]
            peer.send(message, PATIENCE_S)
            parts += connection.recv(PATIENCE_S)
            views = [np.frombuffer(part, np.uint8) for part in parts]
        del peer, listener, connection, parts
        gc.collect()
        assert [view.tobytes() for view in views] == message * 2

    @pytest.mark.parametrize("size", [1, 100, 10_000, 1 << 20, 5 << 20])
    def test_sender_may_change_what_it_sent(self, listener: Listener, connection: Connection, size: int) -> None:
        peer = meet(listener, connection)
        for send, receive in _both_ways(listener, connection, peer):
            body = bytearray(pattern(size))
            for _ in range(3):
                body[:] = pattern(size)
                send([body, body], PATIENCE_S)
                body[:] = bytes(size)
                assert flat(receive()) == [pattern(size)] * 2

    @pytest.mark.parametrize("size", [1, 10_000, 1 << 20, 5 << 20])
    def test_lent_parts_may_change_after_the_answer(self, listener: Listener, connection: Connection, size: int) -> None:
        peer = meet(listener, connection)
        body = bytearray(size)
        for number in range(5):
            body[:] = pattern(size, number)
            connection.lend([body, b"%d" % number, body], PATIENCE_S)
            received = next_message(listener)[1]
            peer.send([b"answer"], PATIENCE_S)
            connection.recv(PATIENCE_S)
            body[:] = bytes(size)
            assert flat(received) == [pattern(size, number), b"%d" % number, pattern(size, number)]

    def test_what_is_reclaimed_arrives_as_it_was_or_not_at_all(self, place: Place) -> None:
        expected = pattern(40 << 20)
        body = bytearray(expected)
        for _ in range(5):
            with listen(place) as listener, connect(place, listener) as connection:
                peer = meet(listener, connection)
                connection.lend([b"lent", body], PATIENCE_S)
                intact = connection.reclaim()
                assert connection.reclaim()
                body[:] = bytes(len(body))
                ((sender, parts),) = gather(listener, 1)
                assert sender is peer
                if parts is None:
                    assert not intact
                else:
                    assert bytes(parts[1]) == expected
                if intact:
                    meet(listener, connection)
                else:
                    assert connection.closed
            body[:] = expected

    def test_a_full_connection_loses_nothing(self, place: Place) -> None:
        for message_bytes in (1_000, 1 << 20):
            options = replace(place.listening, slot_budget_bytes=1 << 23), replace(place.connecting, slot_budget_bytes=1 << 23)
            small = Place(place.address, *options)
            with listen(small) as listener, connect(small, listener) as connection:
                peer = meet(listener, connection)
                for send, receive in _both_ways(listener, connection, peer):
                    _fill_and_drain(send, receive, message_bytes)

    def test_a_sender_that_waits_goes_on(self, listener: Listener, connection: Connection) -> None:
        peer = meet(listener, connection)
        body = bytes(4_000)
        count = _fill(connection.send, body)
        with Background(connection.send, [b"%d" % count, body], PATIENCE_S) as sending:
            received = [int(bytes(parts[0])) for _, parts in gather(listener, count + 1) if parts is not None]
        sending.get()
        assert received == list(range(count + 1))
        assert not peer.closed

    def test_message_over_the_limit_is_not_sent(self, place: Place) -> None:
        limited = Place(
            place.address,
            replace(place.listening, max_message_bytes=100_000),
            replace(place.connecting, max_message_bytes=100_000),
        )
        with listen(limited) as listener, connect(limited, listener) as connection:
            peer = meet(listener, connection)
            for send, receive in _both_ways(listener, connection, peer):
                for message in ([bytes(100_001)], [bytes(50_000), bytes(50_001)]):
                    with pytest.raises(MessageTooLarge, match=r"100[_,]?000"):
                        send(message, PATIENCE_S)
                send([bytes(60_000), bytes(40_000)], PATIENCE_S)
                assert [len(part) for part in flat(receive())] == [60_000, 40_000]
            with pytest.raises(MessageTooLarge):
                listener.publish(0, [bytes(100_001)])

    def test_incoming_message_over_the_limit_ends_its_connection_only(self, place: Place) -> None:
        limited = Place(place.address, replace(place.listening, max_message_bytes=100_000), place.connecting)
        with listen(limited) as listener, connect(limited, listener) as good, connect(limited, listener) as bad:
            peer = meet(listener, bad)
            with Background(_send_or_fail, bad, [bytes(1_000_000)]):
                assert gather(listener, 1) == [(peer, None)]
            meet(listener, good)

    def test_sends_and_receives_at_once(self, listener: Listener, connection: Connection) -> None:
        sent = [[b"%d" % number, pattern(number * 1_000 % 300_000, number)] for number in range(300)]
        with Echo(listener), Background(_send_all, connection, sent) as sending:
            received = [flat(connection.recv(PATIENCE_S)) for _ in sent]
        sending.get()
        assert received == sent

    def test_counts(self, listener: Listener, connection: Connection) -> None:
        peer = meet(listener, connection)
        before = listener.stats()
        connection.send([bytes(10), bytes(90_000)], PATIENCE_S)
        next_message(listener)
        peer.send([bytes(5)], PATIENCE_S)
        connection.recv(PATIENCE_S)
        stats = connection.stats()
        assert (stats["messages_sent"], stats["messages_received"], stats["bytes_received"]) == (2, 1, 5)
        assert stats["bytes_sent"] >= 90_010
        after = listener.stats()
        assert after["messages_received"] - before["messages_received"] == 1
        assert after["bytes_received"] - before["bytes_received"] == 90_010
        assert after["connections"] == after["accepted"] == 1
        assert peer.stats()["messages_sent"] == 1


Send = Callable[[list[Buffer], float], None]
Receive = Callable[[], list[Buffer]]


def _both_ways(listener: Listener, connection: Connection, peer: Connection) -> list[tuple[Send, Receive]]:
    """Return how to send and receive to the listener, and from it."""
    polled: deque[list[Buffer]] = deque()

    def receive_at_listener() -> list[Buffer]:
        if not polled:
            for sender, parts in gather(listener, 1):
                assert sender is peer
                assert parts is not None
                polled.append(parts)
        return polled.popleft()

    return [(connection.send, receive_at_listener), (peer.send, lambda: connection.recv(PATIENCE_S))]


def _fill_and_drain(send: Send, receive: Receive, message_bytes: int) -> None:
    """Send until there is no room, see that nothing of what was refused arrives, and that all the rest does."""
    count = _fill(send, bytes(message_bytes))
    with pytest.raises(TimeoutError):
        send([b"refused", bytes(message_bytes)], 0.02)
    for number in range(count):
        assert bytes(receive()[0]) == b"%d" % number
    send([b"again", bytes(message_bytes)], PATIENCE_S)
    assert bytes(receive()[0]) == b"again"


def _fill(send: Send, body: bytes) -> int:
    """Send messages that begin with 0, 1, 2 … until there is no room; return how many were taken."""
    for count in range(_MAX_UNTIL_FULL_BYTES // len(body)):
        try:
            send([b"%d" % count, body], 0)
        except BufferFull:
            assert count > 0
            return count
    raise AssertionError(f"{_MAX_UNTIL_FULL_BYTES} bytes were taken that nobody has received: there is no bound")


def _send_all(connection: Connection, messages: list[list[bytes]]) -> None:
    for message in messages:
        connection.send(message, PATIENCE_S)


def _send_or_fail(connection: Connection, message: list[bytes]) -> None:
    """Send what the other side will not have: either side may be the one that notices."""
    try:
        connection.send(message, PATIENCE_S)
    except EdgeMLError:
        connection.close()
