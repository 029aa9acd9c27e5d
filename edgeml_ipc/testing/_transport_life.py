"""How connections begin and end: handshakes, deadlines, closing, refusal, fairness."""

from __future__ import annotations

import threading

import pytest

from edgeml_ipc import transports
from edgeml_ipc.errors import AddressInUse, ConnectionClosed, ConnectionRefused, PeerDied, TimeoutError
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
from edgeml_ipc.transports.base import MAX_HELLO_BYTES, Connection, HandshakeRejected, Listener


class LifeTests(TransportTests):
    """Connections that come and go."""

    @pytest.mark.parametrize("size", [0, 1, 1_000, MAX_HELLO_BYTES])
    def test_exchanges_hello_and_welcome(self, place: Place, size: int) -> None:
        hello, answer = pattern(size, 1), pattern(size, 2)
        asked: list[bytes] = []

        def welcome(what: bytes) -> bytes:
            asked.append(what)
            return answer

        with (
            transports.listen(place.address, welcome=welcome, options=place.listening) as listener,
            connect(place, listener, hello) as connection,
        ):
            assert connection.welcome == answer
            assert set(asked) == {hello}
            peer = meet(listener, connection)
            assert peer.hello == hello
            assert peer.transport == connection.transport

    def test_rejected_client_learns_why(self, place: Place) -> None:
        def welcome(hello: bytes) -> bytes:
            if hello == b"stranger":
                raise HandshakeRejected(b"not you")
            return b""

        with transports.listen(place.address, welcome=welcome, options=place.listening) as listener:
            with pytest.raises(HandshakeRejected) as caught:
                connect(place, listener, b"stranger")
            assert caught.value.payload == b"not you"
            with connect(place, listener, b"friend") as connection:
                meet(listener, connection)
            assert listener.stats()["rejected"] == 1
            assert listener.stats()["accepted"] == 1

    def test_answers_handshakes_while_the_poller_is_away(self, place: Place, listener: Listener) -> None:
        away, back = threading.Event(), threading.Event()

        def serve() -> None:
            next_message(listener)
            away.set()
            assert back.wait(PATIENCE_S)

        with connect(place, listener) as first, Background(serve) as serving:
            first.send([b"work"], PATIENCE_S)
            assert away.wait(PATIENCE_S)
            with connect(place, listener) as second:
                assert second.welcome
            back.set()
        serving.get()

    def test_waits_no_longer_than_told(self, listener: Listener, connection: Connection) -> None:
        peer = meet(listener, connection)
        for timeout in (0, 0.01):
            with pytest.raises(TimeoutError):
                connection.recv(timeout)
            assert listener.poll(timeout) == []
        peer.send([b"still works"], PATIENCE_S)
        assert flat(connection.recv(PATIENCE_S)) == [b"still works"]

    def test_a_poll_returns_only_with_something_to_say(self, place: Place, listener: Listener) -> None:
        with Background(listener.poll, PATIENCE_S) as polling, connect(place, listener) as connection:
            connection.send([b"first"], PATIENCE_S)
        ((_, parts), *_) = polling.get()
        assert flat(parts) == [b"first"]

    def test_receives_without_waiting_what_has_come(self, listener: Listener, connection: Connection) -> None:
        peer = meet(listener, connection)
        peer.send([b"first"], PATIENCE_S)
        peer.send([b"second"], PATIENCE_S)
        assert flat(connection.recv(PATIENCE_S)) == [b"first"]
        received: list[bytes] = []
        while not received:  # it is on its way
            try:
                received = flat(connection.recv(0))
            except TimeoutError:
                continue
        assert received == [b"second"]

    def test_closing_wakes_a_receiver(self, connection: Connection) -> None:
        with Background(connection.recv, None) as receiving:
            connection.close()
        assert isinstance(receiving.error, ConnectionClosed)

    def test_closing_wakes_a_poller(self, listener: Listener) -> None:
        with Background(listener.poll, None) as polling:
            listener.close()
        assert isinstance(polling.error, ConnectionClosed)

    def test_wake_ends_a_poll(self, listener: Listener) -> None:
        with Background(listener.poll, None) as polling:
            listener.wake()
        assert polling.get() == []
        assert listener.poll(0) == []

    def test_wake_is_remembered(self, listener: Listener) -> None:
        listener.wake()
        assert listener.poll(None) == []

    def test_closed_objects_say_so(self, listener: Listener, connection: Connection) -> None:
        meet(listener, connection)
        assert not connection.closed
        _close_twice(connection)
        with pytest.raises(ConnectionClosed):
            connection.send([b"late"], PATIENCE_S)
        with pytest.raises(ConnectionClosed):
            connection.recv(PATIENCE_S)
        _close_twice(listener)
        with pytest.raises(ConnectionClosed):
            listener.poll(PATIENCE_S)

    def test_address_is_taken(self, place: Place, listener: Listener) -> None:
        with pytest.raises(AddressInUse):
            transports.listen(listener.address, welcome=lambda hello: b"", options=place.listening)

    def test_closed_listener_refuses_and_frees_its_address(self, place: Place) -> None:
        first = listen(place)
        first.close()
        with pytest.raises(ConnectionRefused):
            connect(place, first)
        again = Place(first.address, place.listening, place.connecting)
        with listen(again) as second, connect(again, second) as connection:
            assert second.address == first.address
            meet(second, connection)

    def test_what_a_client_sent_before_it_closed_arrives(self, place: Place, listener: Listener) -> None:
        with connect(place, listener) as connection:
            peer = meet(listener, connection)
            for number in range(20):
                connection.send([b"%d" % number, bytes(number * 1_000)], PATIENCE_S)
        entries = gather(listener, 21)
        assert [parts and int(bytes(parts[0])) for _, parts in entries] == [*range(20), None]
        assert {id(sender) for sender, _ in entries} == {id(peer)}
        assert peer.closed
        with pytest.raises((PeerDied, ConnectionClosed)):
            peer.send([b"too late"], PATIENCE_S)
        assert listener.poll(0.01) == []
        assert listener.stats()["connections"] == 0

    def test_what_a_listener_sent_before_it_closed_arrives(self, place: Place) -> None:
        with listen(place) as listener, connect(place, listener) as connection:
            peer = meet(listener, connection)
            for number in range(20):
                peer.send([b"%d" % number, bytes(number * 1_000)], PATIENCE_S)
            listener.close()
            assert [int(bytes(connection.recv(PATIENCE_S)[0])) for _ in range(20)] == list(range(20))
            with pytest.raises(PeerDied):
                connection.recv(None)
            with pytest.raises(PeerDied):
                connection.send([b"too late"], PATIENCE_S)
            assert connection.closed

    def test_what_a_listeners_end_sent_before_it_closed_arrives(self, listener: Listener, connection: Connection) -> None:
        peer = meet(listener, connection)
        peer.send([b"last words"], PATIENCE_S)
        peer.close()
        peer.close()
        assert peer.closed
        with pytest.raises(ConnectionClosed):
            peer.send([b"too late"], PATIENCE_S)
        assert flat(connection.recv(PATIENCE_S)) == [b"last words"]
        with pytest.raises(PeerDied):
            connection.recv(PATIENCE_S)

    def test_a_flood_starves_nobody(self, place: Place, listener: Listener) -> None:
        enough, over = threading.Event(), threading.Event()

        def flood(connection: Connection) -> int:
            count = 0
            while not enough.is_set():
                connection.send([b"flood", bytes(2_000)], PATIENCE_S)
                count += 1
            return count

        def serve() -> None:
            while not over.is_set():
                for sender, parts in listener.poll(None):
                    if parts is not None and bytes(parts[0]) == b"ask":
                        sender.send([b"answer"], PATIENCE_S)

        def ask(connection: Connection) -> None:
            for _ in range(100):
                connection.send([b"ask"], PATIENCE_S)
                assert flat(connection.recv(PATIENCE_S)) == [b"answer"]

        with connect(place, listener) as loud, connect(place, listener) as quiet, Background(serve) as serving:
            with Background(flood, loud) as flooding:
                with Background(ask, quiet) as asking:
                    pass
                enough.set()
            over.set()
            listener.wake()
        for background in (serving, flooding, asking):
            background.get()
        assert flooding.result > 0

    def test_one_poll_returns_a_few_messages_of_each_client(self, place: Place, listener: Listener) -> None:
        with connect(place, listener, b"loud") as loud, connect(place, listener, b"quiet") as quiet:
            for _ in range(300):
                loud.send([b"x"], PATIENCE_S)
            quiet.send([b"x"], PATIENCE_S)
            assert quiet.stats()["messages_sent"] == 1
            batches: list[list[bytes]] = []
            while sum(map(len, batches)) < 301:
                batches.append([sender.hello for sender, _ in listener.poll(PATIENCE_S)])
        assert max(batch.count(b"loud") for batch in batches) <= 64

    def test_serves_many_clients(self, place: Place, listener: Listener) -> None:
        with Echo(listener):
            clients = [connect(place, listener, b"%d" % number) for number in range(12)]
            for turn in range(3):
                for number, client in enumerate(clients):
                    client.send([b"%d %d" % (turn, number)], PATIENCE_S)
                for number, client in enumerate(clients):
                    assert flat(client.recv(PATIENCE_S)) == [b"%d %d" % (turn, number)]
            assert listener.stats()["connections"] == 12
            for client in clients:
                client.close()


def _close_twice(closable: Connection | Listener) -> None:
    closable.close()
    closable.close()
    if isinstance(closable, Connection):
        assert closable.closed
