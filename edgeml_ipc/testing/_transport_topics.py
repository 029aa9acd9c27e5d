"""Topics: the newest value wins, nobody waits for anybody."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest

from edgeml_ipc.errors import TimeoutError
from edgeml_ipc.testing._transport_base import (
    Place,
    TransportTests,
    connect,
    flat,
    meet,
    next_message,
)
from edgeml_ipc.testing._workers import PATIENCE_S, Background
from edgeml_ipc.transports.base import Buffer, Connection, Listener


def _value(version: int, size_bytes: int = 0) -> list[bytes]:
    return [b"%d" % version, bytes([version % 251]) * size_bytes]


def _version(parts: Sequence[Buffer]) -> int:
    """Return a value's version, after a look that it is whole."""
    version, body = flat(parts)
    assert body == bytes([int(version) % 251]) * len(body)
    return int(version)


def _versions_until(connection: Connection, last: int) -> list[int]:
    """Receive values until the last one."""
    versions: list[int] = []
    while not versions or versions[-1] < last:
        versions.append(_version(connection.recv(PATIENCE_S)))
    return versions


class TopicTests(TransportTests):
    """A listener that publishes."""

    def test_slow_subscriber_skips_to_the_newest(self, place: Place, listener: Listener) -> None:
        with connect(place, listener, topics=[3]) as connection:
            for version in range(1, 301):
                listener.publish(3, _value(version))
            versions = _versions_until(connection, 300)
            assert versions == sorted(set(versions))
            assert len(versions) < 150
            with pytest.raises(TimeoutError):
                connection.recv(0.02)
        assert listener.stats()["publishes"] == 300

    @pytest.mark.parametrize("size", [10, 3 << 20])
    def test_late_joiner_gets_the_newest_at_once(self, place: Place, listener: Listener, size: int) -> None:
        for version in (1, 2, 3):
            listener.publish(0, _value(version, size))
        with connect(place, listener, topics=[0]) as connection:
            assert _version(connection.recv(PATIENCE_S)) == 3
            with pytest.raises(TimeoutError):
                connection.recv(0.02)

    def test_a_value_that_may_be_shortened(self, place: Place, listener: Listener) -> None:
        """Each subscriber gets it as it was published, or all get what it was shortened to, once, where they asked for it."""
        threads: list[int] = []

        def shorten(parts: Sequence[Buffer]) -> Sequence[Buffer]:
            threads.append(threading.get_ident())
            return _value(_version(parts), 10)

        listener.publish(0, _value(1, 100_000), shorten)
        assert threads == []
        with connect(place, listener, topics=[0]) as one, connect(place, listener, topics=[0]) as two:
            assert _version(one.recv(PATIENCE_S)) == _version(two.recv(PATIENCE_S)) == 1
            listener.publish(0, _value(2, 100_000), shorten)
            received = [one.recv(PATIENCE_S), two.recv(PATIENCE_S)]
            assert [_version(parts) for parts in received] == [2, 2]
            assert {len(flat(parts)[1]) for parts in received} == ({10} if threads else {100_000})
        assert len(threads) in (0, 2)
        assert threading.get_ident() not in threads

    def test_only_subscribed_topics_arrive(self, place: Place, listener: Listener) -> None:
        with (
            connect(place, listener, topics=[15]) as one,
            connect(place, listener, topics=[0, 15]) as both,
            connect(place, listener) as none,
        ):
            listener.publish(0, _value(1))
            listener.publish(15, _value(2))
            assert {_version(both.recv(PATIENCE_S)), _version(both.recv(PATIENCE_S))} == {1, 2}
            assert _version(one.recv(PATIENCE_S)) == 2
            for connection in (one, both, none):
                with pytest.raises(TimeoutError):
                    connection.recv(0.02)

    @pytest.mark.parametrize("size", [10, 200_000])
    def test_versions_only_grow_and_the_last_arrives(self, place: Place, listener: Listener, size: int) -> None:
        last = 500

        def publish() -> None:
            for version in range(1, last + 1):
                listener.publish(1, _value(version, size))

        with connect(place, listener, topics=[1]) as fast, connect(place, listener, topics=[1]) as slow:
            with Background(publish) as publishing:
                versions = _versions_until(fast, last)
            publishing.get()
            assert versions == sorted(set(versions))
            assert len(_versions_until(slow, last)) < last // 2

    def test_publisher_may_change_what_it_published(self, place: Place, listener: Listener) -> None:
        with connect(place, listener, topics=[2]) as connection:
            for size in (100, 10_000, 5 << 20):
                body = bytearray(b"\x01" * size)
                listener.publish(2, [b"1", body])
                body[:] = bytes(size)
                assert _version(connection.recv(PATIENCE_S)) == 1

    def test_held_values_stay_as_they_were(self, place: Place, listener: Listener) -> None:
        with connect(place, listener, topics=[4]) as connection:
            held = []
            for version in range(1, 9):
                listener.publish(4, _value(version, 1 << 20))
                held.append(connection.recv(PATIENCE_S))
            assert [_version(parts) for parts in held] == list(range(1, 9))

    def test_values_and_messages_share_a_connection(self, place: Place, listener: Listener) -> None:
        with connect(place, listener, topics=[5]) as connection:
            peer = meet(listener, connection)
            for number in range(50):
                listener.publish(5, _value(number))
                peer.send([b"message", b"%d" % number], PATIENCE_S)
            messages: list[int] = []
            versions: list[int] = []
            while len(messages) < 50 or versions[-1:] != [49]:
                parts = connection.recv(PATIENCE_S)
                if bytes(parts[0]) == b"message":
                    messages.append(int(bytes(parts[1])))
                else:
                    versions.append(_version(parts))
            assert messages == list(range(50))
            assert versions == sorted(set(versions))

    def test_many_threads_may_publish_and_send(self, place: Place, listener: Listener) -> None:
        with connect(place, listener, topics=[6, 7]) as connection:
            peer = meet(listener, connection)
            done = threading.Event()

            def publish(topic: int) -> None:
                for version in range(1, 201):
                    listener.publish(topic, [b"%d" % topic, b"%d" % version])

            def send() -> None:
                for number in range(200):
                    peer.send([b"m", b"%d" % number], PATIENCE_S)

            def poll() -> None:
                while not done.is_set():
                    listener.poll(0.01)

            with Background(poll) as polling:
                with Background(publish, 6), Background(publish, 7), Background(send):
                    latest = {b"6": 0, b"7": 0, b"m": -1}
                    while latest != {b"6": 200, b"7": 200, b"m": 199}:
                        kind, number = flat(connection.recv(PATIENCE_S))
                        assert int(number) > latest[kind]
                        latest[kind] = int(number)
                done.set()
            polling.get()

    def test_slow_subscriber_holds_up_no_message(self, place: Place, listener: Listener) -> None:
        with connect(place, listener, topics=[8]) as slow, connect(place, listener) as other:
            for version in range(1, 51):
                listener.publish(8, _value(version, 300_000))
            other.send([b"hello"], PATIENCE_S)
            peer, _ = next_message(listener)
            peer.send([b"hello yourself"], PATIENCE_S)
            assert flat(other.recv(PATIENCE_S)) == [b"hello yourself"]
            assert _versions_until(slow, 50)[-1] == 50
