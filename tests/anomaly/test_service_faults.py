"""Broken links, dead servers, slow clients and malformed bytes: what a service promises then."""

from __future__ import annotations

import contextlib
import itertools
import socket
import threading
from collections.abc import Iterator
from typing import Any

import multiprocess
import numpy as np
import pytest

from edgeml_ipc import codec, protocol, transports
from edgeml_ipc.errors import (
    CodecError,
    ConnectionRefused,
    IncompatiblePeer,
    MessageTooLarge,
    PeerDied,
    TimeoutError,
)
from edgeml_ipc.service import LATER, Client, Server, Ticket
from edgeml_ipc.transports.base import Connection, Options
from tests.conftest import eventually
from tests.service_processes import CONFIG, serve

pytestmark = pytest.mark.usefixtures("no_threads_left")


SMALL = Options(ring_bytes=1 << 16, slot_budget_bytes=4 << 20)


class Counter:
    """A server whose handlers count, and cut the links to all clients before they answer."""

    def __init__(self, address: str) -> None:
        self.executed = 0
        self.held: list[Ticket] = []
        self.cut_sessions: set[Any] = set()
        self.server = Server(
            address,
            service="test",
            config=CONFIG,
            handlers={
                "echo": lambda x: x,
                "count": self.count,
                "cut": self.count_and_cut,
                "later": self.cut_and_answer_later,
                "replace": self.cut_as_if_dying,
            },
            tick=self.tick,
        )
        self.server.start(threaded=True)

    def cut(self) -> None:
        for session in self.server._sessions.values():
            self.cut_sessions.add(session)
            session.connection.close()

    def count(self, _: Any) -> int:
        self.executed += 1
        return self.executed

    def count_and_cut(self, _: Any) -> int:
        self.cut()
        return self.count(_)

    def cut_and_answer_later(self, _: Any) -> object:
        self.cut()
        self.executed += 1
        self.held.append(self.server.ticket())
        return LATER

    def cut_as_if_dying(self, _: Any) -> int:
        """Cut the links, and answer the clients that come back as another life of the server."""
        methods = protocol.unpack_welcome(self.server._welcome_blob, "").methods
        self.server._welcome_blob = protocol.pack_welcome(b"another life 123", methods)
        return self.count_and_cut(_)

    def tick(self) -> float | None:
        if not self.held:
            return None
        if any(session not in self.cut_sessions for session in self.server._sessions.values()):  # the client came back
            for ticket in self.held:
                ticket.reply(self.executed)
            self.held.clear()
            return None
        return 0.01


@pytest.fixture
def counter(address: str) -> Iterator[Counter]:
    counter = Counter(address)
    yield counter
    counter.server.stop()


@pytest.fixture
def client(counter: Counter) -> Iterator[Client]:
    with Client(counter.server.address, service="test", config=CONFIG, timeout=20) as client:
        yield client


# --- executed once ----------------------------------------------------------------------------------------------------------


def test_link_cut_between_request_and_reply_executes_once(counter: Counter, client: Client) -> None:
    assert [client.call("cut", None) for _ in range(3)] == [1, 2, 3]
    assert counter.executed == 3
    assert client.stats()["retries"] == 3
    assert counter.server.stats()["retries_answered"] == 3


def test_link_cut_while_the_request_is_executed_executes_once(counter: Counter, client: Client) -> None:
    assert client.call("later", None) == 1
    assert client.call("count", None) == 2


def test_link_cut_under_futures_executes_each_once(counter: Counter, client: Client) -> None:
    futures = [client.submit("cut" if i % 5 == 2 else "count", None) for i in range(20)]
    assert sorted(future.result(20) for future in futures) == list(range(1, 21))
    assert counter.executed == 20


def test_link_cut_between_calls_goes_unnoticed(counter: Counter, client: Client) -> None:
    assert client.call("count", None) == 1
    counter.cut()
    assert client.call("count", None) == 2


def test_subscription_survives_a_cut_and_shows_no_value_twice(counter: Counter, client: Client) -> None:
    versions: list[int] = []
    client.subscribe(lambda _, version: versions.append(version))
    counter.server.publish("a")
    eventually(lambda: versions == [1])
    eventually(lambda: client.submit("echo", 1).result(20) == 1)
    counter.cut()
    eventually(lambda: client.stats()["background_reconnects"] == 1)
    counter.server.publish("b")
    eventually(lambda: versions == [1, 2])


def send_request(connection: Connection, method: int, sequence: int, oldest: int) -> tuple[int, int]:
    """Send a request by hand; return kind and sequence of what comes back."""
    envelope = protocol.ENVELOPE.pack(protocol.MAGIC, protocol.REQUEST, 0, method, sequence, oldest)
    connection.send([envelope, *codec.encode(None)], 5)
    kind, _, answered, _ = protocol.open_envelope(connection.recv(20)[0])
    return kind, answered


def raw_connection(address: str, client: bytes = b"c" * 16, options: Options | None = None) -> Connection:
    hello = protocol.pack_hello("test", client, 0, CONFIG)
    return transports.connect(address, hello=hello, timeout=5, options=options)


def test_memory_of_replies_goes_by_client_and_what_it_still_awaits(counter: Counter) -> None:
    with raw_connection(counter.server.address) as one, raw_connection(counter.server.address, b"d" * 16) as other:
        assert send_request(one, 1, 1, 1) == (protocol.REPLY, 1)
        assert send_request(one, 1, 1, 1) == (protocol.REPLY, 1)
        assert counter.executed == 1
        assert send_request(other, 1, 1, 1) == (protocol.REPLY, 1)
        assert counter.executed == 2
        assert send_request(one, 1, 2, 2) == (protocol.REPLY, 2)
        assert send_request(one, 1, 1, 1) == (protocol.ERROR, 1)  # it said that it has this reply
        assert counter.executed == 3


# --- dead servers -----------------------------------------------------------------------------------------------------------


class ServerProcess:
    """A server in a process of its own."""

    def __init__(self, address: str) -> None:
        spawn = multiprocess.get_context("spawn")
        ours, theirs = spawn.Pipe()
        self.process = spawn.Process(target=serve, args=(address, theirs))
        self.process.start()
        assert ours.poll(60)
        self.address = ours.recv()

    def kill(self) -> None:
        self.process.kill()
        self.process.join()


def test_server_killed_in_the_middle_of_a_request(process_address: str) -> None:
    first = ServerProcess(process_address)
    with Client(first.address, service="test", config=CONFIG, timeout=20) as client:
        assert client.call("pid", None) == first.process.pid
        with pytest.raises(PeerDied) as caught:
            client.call("die", None)
        assert caught.value.outcome_unknown
        with pytest.raises(ConnectionRefused, match="refused"):
            client.call("pid", None)
        second = ServerProcess(first.address)
        assert client.call("pid", None) == second.process.pid
        second.kill()
    first.kill()


def test_server_replaced_between_calls(process_address: str) -> None:
    first = ServerProcess(process_address)
    with Client(first.address, service="test", config=CONFIG, timeout=20) as client:
        assert client.call("pid", None) == first.process.pid
        first.kill()
        second = ServerProcess(first.address)
        with contextlib.suppress(PeerDied):  # whether the client finds out before it sends is the transport's matter
            client.call("pid", None)
        assert client.call("pid", None) == second.process.pid
        second.kill()


def test_server_replaced_with_a_request_in_flight(counter: Counter, client: Client) -> None:
    with pytest.raises(PeerDied, match="taken its place") as caught:
        client.call("replace", None)
    assert caught.value.outcome_unknown
    assert client.call("count", None) == counter.executed == 2


def test_server_replaced_with_a_future_in_flight(counter: Counter, client: Client) -> None:
    future = client.submit("replace", None)
    with pytest.raises(PeerDied, match="took its place") as caught:
        future.result(20)
    assert caught.value.outcome_unknown
    assert client.submit("count", None).result(20) == counter.executed == 2


def test_future_in_flight_when_the_server_is_killed(process_address: str) -> None:
    first = ServerProcess(process_address)
    with Client(first.address, service="test", config=CONFIG, timeout=20) as client:
        assert client.submit("pid", None).result(20) == first.process.pid
        with pytest.raises(PeerDied) as caught:
            client.submit("die", None).result(20)
        assert caught.value.outcome_unknown
    first.kill()


def test_subscription_goes_on_with_the_next_server(address: str) -> None:
    got: list[tuple[Any, int]] = []
    with Server(address, service="test", config=CONFIG, handlers={}) as first:
        first.start(threaded=True)
        place = first.address
        client = Client(place, service="test", config=CONFIG, timeout=20)
        client.subscribe(lambda value, version: got.append((value, version)))
        for _ in range(3):
            version = first.publish("first")
        eventually(lambda: got and got[-1] == ("first", version))
    got.clear()
    with Server(place, service="test", config=CONFIG, handlers={}) as second:
        second.start(threaded=True)
        second.publish("second")
        eventually(lambda: got == [("second", 1)])
        assert client.version == 1
        client.close()


# --- bad input --------------------------------------------------------------------------------------------------------------


def test_nothing_listening() -> None:
    with pytest.raises(ConnectionRefused, match=r"inproc://nobody: refused.*nothing listens"):
        Client("inproc://nobody", service="test", config={})
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # bound and not listening: nobody else can take the port meanwhile
        with pytest.raises(ConnectionRefused, match="refused"):
            Client(f"tcp://127.0.0.1:{free.getsockname()[1]}", service="test", config={})


def test_something_silent_listening() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(TimeoutError, match="silent"):
            Client(f"tcp://127.0.0.1:{silent.getsockname()[1]}", service="test", config={}, timeout=0.2)


def test_malformed_bytes_on_the_port_leave_the_server_alone() -> None:
    with Server("tcp://127.0.0.1:0", service="test", config=CONFIG, handlers={"echo": lambda x: x}) as server:
        server.start(threaded=True)
        with Client(server.address, service="test", config=CONFIG, timeout=20) as client:
            for garbage in (b"GET / HTTP/1.1\r\n\r\n", bytes(64), b"\xff" * 4096):
                with socket.create_connection(("127.0.0.1", server.port), 5) as stranger:
                    stranger.sendall(garbage)
            assert client.call("echo", 1) == 1


@pytest.mark.parametrize(
    "parts",
    [
        [b"x"],
        [b"x" * 24],
        [protocol.ENVELOPE.pack(protocol.MAGIC, 99, 0, 0, 1, 1)],
        [protocol.ENVELOPE.pack(protocol.MAGIC, protocol.REQUEST, 0, 999, 1, 1)],
        [protocol.ENVELOPE.pack(protocol.MAGIC, protocol.REPLY, 0, 0, 1, 1)],
    ],
    ids=["short", "magic", "kind", "method", "a server's kind"],
)
def test_malformed_message_ends_its_connection_only(counter: Counter, client: Client, parts: list[bytes]) -> None:
    with raw_connection(counter.server.address) as stranger:
        stranger.send(parts, 5)
        with pytest.raises(PeerDied):
            stranger.recv(20)
    assert client.call("count", None) == 1
    assert counter.server.stats()["malformed"] == 1


@pytest.mark.parametrize("body", [[], [b"\xc1"], [b"\x00" * 10, b"y"]], ids=["none", "no msgpack", "no header"])
def test_payload_that_cannot_be_decoded_is_answered_with_an_error(counter: Counter, client: Client, body: list[bytes]) -> None:
    with raw_connection(counter.server.address) as stranger:
        stranger.send([protocol.ENVELOPE.pack(protocol.MAGIC, protocol.REQUEST, 0, 1, 1, 1), *body], 5)
        answer = stranger.recv(20)
        assert protocol.open_envelope(answer[0])[0] == protocol.ERROR
        assert isinstance(protocol.failure_error(answer[1], "x"), CodecError)
    assert counter.executed == 0
    assert client.call("count", None) == 1


def test_malformed_hello_is_refused(counter: Counter) -> None:
    with pytest.raises(transports.base.HandshakeRejected):
        transports.connect(counter.server.address, hello=b"hello", timeout=5)


def test_a_server_that_talks_nonsense(address: str) -> None:
    listener = transports.listen(address, welcome=lambda hello: b"nonsense")
    with listener, pytest.raises(IncompatiblePeer):
        Client(listener.address, service="test", config=CONFIG)


def test_message_over_the_limit(address: str) -> None:
    options = Options(max_message_bytes=100_000)
    handlers = {"echo": lambda x: x, "length": len, "big": lambda _: np.zeros(50_000)}
    with Server(address, service="test", config=CONFIG, handlers=handlers, options=options) as server:
        server.start(threaded=True)
        with Client(server.address, service="test", config=CONFIG, options=options, timeout=20) as client:
            with pytest.raises(MessageTooLarge, match="100000"):
                client.call("echo", np.zeros(50_000))
            with pytest.raises(MessageTooLarge, match="100000"):
                client.submit("echo", np.zeros(50_000)).result(20)
            with pytest.raises(MessageTooLarge, match="100000"):
                client.call("big", None)
            with pytest.raises(MessageTooLarge, match="100000"):
                server.publish(np.zeros(50_000))
            assert server.version == 0
            assert client.call("echo", 1) == 1
        with Client(server.address, service="test", config=CONFIG, timeout=20) as careless:
            with pytest.raises((PeerDied, MessageTooLarge)):
                careless.call("length", np.zeros(50_000))
            assert careless.call("echo", 2) == 2


# --- slow clients -----------------------------------------------------------------------------------------------------------


def test_client_that_takes_no_replies_blocks_nobody(address: str) -> None:
    image = np.zeros(1_000_000, np.uint8)
    handlers = {"echo": lambda x: x, "image": lambda _: image}
    with Server(address, service="test", config=CONFIG, handlers=handlers, options=SMALL) as server:
        server.start(threaded=True)
        with (
            raw_connection(server.address, options=SMALL) as slow,
            Client(server.address, service="test", config=CONFIG, timeout=20) as client,
        ):
            for sequence in range(1, 101):
                envelope = protocol.ENVELOPE.pack(protocol.MAGIC, protocol.REQUEST, 0, 1, sequence, sequence)
                slow.send([envelope, *codec.encode(None)], 5)
                if sequence % 10 == 0:
                    assert client.call("echo", sequence) == sequence
            eventually(lambda: server.stats()["requests"] == 110)
            for sequence in range(1, 101):  # now it takes them, all of them and in order
                parts = slow.recv(20)
                assert protocol.open_envelope(parts[0])[2] == sequence
                np.testing.assert_array_equal(codec.decode(parts[1:]), image)


def send_endlessly(connection: Connection) -> None:
    for sequence in itertools.count(1):
        envelope = protocol.ENVELOPE.pack(protocol.MAGIC, protocol.REQUEST, 0, 1, sequence, sequence)
        connection.send([envelope, *codec.encode(None)], 20)


def test_client_that_never_takes_its_replies_is_cut_off(address: str) -> None:
    image = np.zeros(1_000_000, np.uint8)
    handlers = {"echo": lambda x: x, "image": lambda _: image}
    with Server(address, service="test", config=CONFIG, handlers=handlers, options=SMALL) as server:
        server.start(threaded=True)
        with (
            raw_connection(server.address, options=SMALL) as slow,
            Client(server.address, service="test", config=CONFIG, timeout=20) as client,
        ):
            with pytest.raises(PeerDied):
                send_endlessly(slow)
            eventually(lambda: server.stats()["closed_too_slow"] == 1)  # counted just after the connection ends
            assert client.call("echo", 1) == 1


def test_a_hung_handler_delays_handshakes_of_nobody(address: str) -> None:
    entered, leave = threading.Event(), threading.Event()

    def hang(_: Any) -> None:
        entered.set()
        assert leave.wait(30)

    with Server(address, service="test", config=CONFIG, handlers={"hang": hang}) as server:
        server.start(threaded=True)
        with Client(server.address, service="test", config=CONFIG, timeout=30) as client:
            future = client.submit("hang", None)
            assert entered.wait(20)
            with Client(server.address, service="test", config=CONFIG):
                pass
            leave.set()
            future.result(30)
