"""Real processes at the other end, and their sudden deaths."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from edgeml_ipc.errors import PeerDied
from edgeml_ipc.testing import _transport_children as children
from edgeml_ipc.testing._transport_base import (
    Echo,
    Place,
    TransportTests,
    connect,
    flat,
    gather,
    meet,
    next_message,
)
from edgeml_ipc.testing._workers import CONTEXT, PATIENCE_S, Child
from edgeml_ipc.transports import connect as connect_to
from edgeml_ipc.transports.base import Buffer, Connection, Listener


@contextlib.contextmanager
def _server(place: Place, target: Callable[..., None], *args: Any) -> Iterator[tuple[Child, str]]:
    with Child(target, place, *args) as child:
        yield child, child.hear()


class ProcessTests(TransportTests):
    """Another process at the other end. `TransportConformance` leaves these out where `crosses_processes` is False."""

    def test_reaches_another_process(self, place: Place, listener: Listener) -> None:
        sizes = [0, 1, 4_000, 70_000, 5 << 20]
        with Echo(listener), Child(children.ask, listener.address, place, sizes) as child:
            _, welcome, intact = child.hear()
            assert child.exit_code == 0
        assert welcome == b"welcome child"
        assert intact == [True] * len(sizes)

    @pytest.mark.parametrize("size", [100, 200_000])
    def test_a_killed_client_leaves_whole_messages(self, place: Place, listener: Listener, size: int) -> None:
        committed = CONTEXT.Value("q", 0, lock=False)  # a lock could die with its holder
        moment = random.Random(size).randrange(50, 400)
        received: list[int] = []
        with connect(place, listener) as other:
            meet(listener, other)
            with Child(children.stream, listener.address, place, committed, size) as child:
                peer: Connection | None = None
                ended = 0
                while not ended:
                    for sender, parts in gather(listener, 1):
                        peer = sender
                        if parts is None:
                            ended += 1
                        else:
                            assert not ended, "a message came after the end of its connection"
                            received.append(_number(parts))
                    if len(received) >= moment:
                        child.kill()
            _check_stream(received, committed.value, commits=self.send_is_commit)
            assert peer is not None
            assert peer.closed
            assert listener.poll(0.05) == []
            meet(listener, other)

    @pytest.mark.parametrize("size", [100, 200_000])
    def test_a_killed_server_leaves_whole_messages(self, place: Place, size: int) -> None:
        committed = CONTEXT.Value("q", 0, lock=False)  # a lock could die with its holder
        moment = random.Random(size).randrange(50, 400)
        received: list[int] = []
        with (
            _server(place, children.serve_stream, committed, size) as (child, address),
            connect_to(address, timeout=PATIENCE_S, options=place.connecting) as connection,
        ):
            connection.send([b"begin"], PATIENCE_S)
            for parts in _all_from(connection):
                received.append(_number(parts))
                if len(received) == moment:
                    child.kill()
            with pytest.raises(PeerDied):
                connection.send([b"too late"], PATIENCE_S)
            assert connection.closed
        _check_stream(received, committed.value, commits=self.send_is_commit)

    @pytest.mark.parametrize("size", [100, 200_000])
    def test_a_killed_publisher_leaves_whole_values(self, place: Place, size: int) -> None:
        versions: list[int] = []
        with (
            _server(place, children.publish, size) as (child, address),
            connect_to(address, topics=[0], timeout=PATIENCE_S, options=place.connecting) as connection,
        ):
            for parts in _all_from(connection):
                versions.append(_number(parts))
                if len(versions) == 50:
                    child.kill()
        assert len(versions) >= 50
        assert versions == sorted(set(versions))

    def test_a_killed_subscriber_disturbs_nobody(self, place: Place, listener: Listener) -> None:
        with connect(place, listener, topics=[0]) as other:
            with Child(children.idle, listener.address, place) as child:
                peer, _ = next_message(listener)
                assert child.hear() == "connected"
                for number in range(10):
                    listener.publish(0, [b"%d" % number, bytes(500_000)])
                child.kill()
                assert gather(listener, 1) == [(peer, None)]
                assert peer.closed
            listener.publish(0, [b"99", b""])
            while flat(other.recv(PATIENCE_S))[0] != b"99":
                continue

    def test_a_client_can_come_back(self, place: Place, listener: Listener) -> None:
        for _ in range(3):
            with Child(children.idle, listener.address, place) as child:
                peer, _ = next_message(listener)
                assert peer.hello == b"child"
                child.kill()
                assert gather(listener, 1) == [(peer, None)]
        assert listener.stats()["connections"] == 0


def _all_from(connection: Connection) -> Iterator[list[Buffer]]:
    """Receive until the other end is reported dead."""
    while True:
        try:
            yield connection.recv(PATIENCE_S)
        except PeerDied:
            return


def _number(parts: list[Any]) -> int:
    """Return a message's number, after a look that it is whole."""
    number, body = flat(parts)
    assert body == bytes([int(number) % 251]) * len(body), "a torn message"
    return int(number)


def _check_stream(received: list[int], committed: int, *, commits: bool) -> None:
    assert received == list(range(len(received))), "lost, repeated or out of order"
    if commits:
        assert committed <= len(received) <= committed + 1, f"{committed} were committed, {len(received)} arrived"
