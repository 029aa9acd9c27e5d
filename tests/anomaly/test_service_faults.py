"""Broken links, dead servers, slow clients and malformed bytes: what a service promises then."""

from __future__ import annotations

import contextlib
import itertools
import socket
import threading
from collections.abc import Iterator
from typing import Any, cast

import multiprocess
import numpy as np
import pytest

from edgeml_ipc import _replies, codec, protocol, transports
from edgeml_ipc.errors import (
    CodecError,
    ConnectionRefused,
    EdgeMLError,
    IncompatiblePeer,
    MessageTooLarge,
    PeerDied,
    RemoteError,
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
        methods = protocol.unpack_welcome(self.server._own.welcome, "").methods
        self.server._own.welcome = protocol.pack_welcome(b"another life 123", methods)
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


# --- users' functions that misbehave, and what must go on all the same ------------------------------------------------------


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise ValueError("no words")


class Unsendable:
    pass


def refuse(_: object) -> Any:
    raise RuntimeError("changed size during iteration")


def exit_program(_: object) -> None:
    raise SystemExit(3)


def raise_unspeakable(_: object) -> None:
    raise Unspeakable


@pytest.mark.parametrize("method", ["exit", "unspeakable", "unsendable"])
def test_whatever_a_handler_does_the_server_goes_on(address: str, method: str) -> None:
    codec.register(Unsendable, to_tree=refuse, from_tree=refuse)
    handlers = {
        "echo": lambda x: x,
        "exit": exit_program,
        "unspeakable": raise_unspeakable,
        "unsendable": lambda _: Unsendable(),
    }
    with Server(address, service="test", config=CONFIG, handlers=handlers) as server:
        server.start(threaded=True)
        with Client(server.address, service="test", config=CONFIG, timeout=20) as client:
            with pytest.raises(RemoteError):
                client.call(method, None)
            assert client.call("echo", 1) == 1


def test_reply_over_the_limit_behind_others_ends_its_connection_only(address: str) -> None:
    options = Options(ring_bytes=1 << 16, slot_budget_bytes=1 << 20, max_message_bytes=1 << 20)
    handlers = {"echo": lambda x: x, "zeros": lambda count: np.zeros(count, np.uint8)}
    with Server(address, service="test", config=CONFIG, handlers=handlers, options=options) as server:
        server.start(threaded=True)
        with raw_connection(server.address) as slow:
            sizes = [60_000] * 150 + [2 << 20]
            for sequence, size in enumerate(sizes, 1):
                envelope = protocol.ENVELOPE.pack(protocol.MAGIC, protocol.REQUEST, 0, 1, sequence, 1)
                slow.send([envelope, *codec.encode(size)], 5)
            eventually(lambda: server.stats()["requests"] == len(sizes))
            with contextlib.suppress(PeerDied, TimeoutError):
                for _ in sizes:
                    slow.recv(1)
        with Client(server.address, service="test", config=CONFIG, timeout=20) as client:
            assert client.call("echo", 1) == 1


def test_repeated_reply_is_what_the_first_one_was(address: str) -> None:
    frame = np.zeros(1 << 20, np.uint8)

    def show(_: object) -> Any:
        frame[:] = 1
        for session in list(server._sessions.values()):
            session.connection.close()
        return frame

    def draw_the_next_one() -> None:
        frame[:] = 2

    with Server(address, service="test", config=CONFIG, handlers={"show": show}, tick=draw_the_next_one) as server:
        server.start(threaded=True)
        with Client(server.address, service="test", config=CONFIG, timeout=20) as client:
            assert (client.call("show", None) == 1).all()


def test_lanes_of_many_lost_clients_execute_no_retry() -> None:
    memory = _replies.ReplyMemory()
    sessions: list[Any] = [object() for _ in range(_replies.MAX_LANES_WITHOUT_CONNECTION + 1)]
    names = [str(i).encode() for i in range(len(sessions))]
    for name, session in zip(names, sessions, strict=True):
        lane = memory.attach(name, 0, session)
        assert lane.admit(1, 1) is _replies.Verdict.EXECUTE
        lane.remember(1, _replies.hold([b"reply"]))
    for name, session in zip(names, sessions, strict=True):
        memory.detach(name, 0, session)
    assert memory.attach(names[0], 0, sessions[0]).admit(1, 1) is _replies.Verdict.FORGOTTEN
    assert memory.attach(names[1], 0, sessions[1]).admit(1, 1) is _replies.Verdict.ANSWER


def test_replies_that_come_after_their_client_left_count_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_replies, "MAX_BYTES_PER_LANE", 1000)
    memory, session = _replies.ReplyMemory(), cast(Any, object())
    lanes = [memory.attach(name, 0, session) for name in (b"a", b"b")]
    for name, lane in zip((b"a", b"b"), lanes, strict=True):
        lane.admit(1, 1)
        memory.detach(name, 0, session)
        lane.remember(1, _replies.hold([bytes(900)]))
    assert memory.attach(b"c", 0, session).admit(1, 1) is _replies.Verdict.EXECUTE
    memory.detach(b"c", 0, session)
    assert [lane.remembered_bytes for lane in lanes] == [0, 900]


# --- futures always end -----------------------------------------------------------------------------------------------------


def test_future_over_the_servers_limit_ends(address: str) -> None:
    options = Options(max_message_bytes=100_000)
    with Server(address, service="test", config=CONFIG, handlers={"echo": lambda x: x}, options=options) as server:
        server.start(threaded=True)
        with Client(server.address, service="test", config=CONFIG, timeout=20) as careless:
            with pytest.raises((PeerDied, MessageTooLarge)):
                careless.submit("echo", np.zeros(50_000)).result(20)
            assert careless.stats()["resent"] <= 3
            assert careless.submit("echo", 1).result(20) == 1


def test_future_that_fails_over_a_new_connection_may_be_followed_by_another(counter: Counter, client: Client) -> None:
    following: list[Any] = []
    future = client.submit("replace", None)
    future.add_done_callback(lambda _: following.append(client.submit("echo", 5)))
    assert isinstance(future.exception(20), PeerDied)
    eventually(lambda: following)
    assert following[0].result(20) == 5


def test_first_future_of_a_subscriber_times_out(address: str) -> None:
    release = threading.Event()
    arrived = threading.Event()
    with Server(address, service="test", config=CONFIG, handlers={"hang": lambda _: release.wait(20)}) as server:
        server.start(threaded=True)
        server.publish(1)
        with Client(server.address, service="test", config=CONFIG, timeout=20) as client:
            client.subscribe(lambda *_: arrived.set())
            assert arrived.wait(20)
            eventually(lambda: 0 in server.stats()["lag"].values())  # the thread waits for the next message
            future = client.submit("hang", None, timeout=0.05)
            assert isinstance(future.exception(10), TimeoutError)
            release.set()


def test_submit_waits_for_other_threads_no_longer_than_its_own_deadline(counter: Counter, client: Client) -> None:
    with client._background._sending, pytest.raises(TimeoutError, match="other threads"):
        client.submit("echo", 1, timeout=0.05)


def test_payload_of_a_future_may_be_changed_after_submit(counter: Counter) -> None:
    for _ in range(5):
        with Client(counter.server.address, service="test", config=CONFIG, timeout=20) as client:
            payload = np.ones(1 << 18)
            future = client.submit("echo", payload)  # the connection for it is not there yet
            payload[:] = 2
            assert (future.result(20) == 1).all()


@pytest.mark.parametrize("error", [OSError(24, "Too many open files"), IncompatiblePeer("other version")])
def test_background_goes_on_after_a_connection_that_could_not_be_made(
    counter: Counter, client: Client, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    dial = client._dialer.dial
    failures = [error]

    def dial_in_vain(*arguments: Any) -> Any:
        if failures:
            raise failures.pop()
        return dial(*arguments)

    monkeypatch.setattr(client._dialer, "dial", dial_in_vain)
    with pytest.raises(EdgeMLError):
        client.submit("echo", 1).result(20)
    assert client.submit("echo", 2).result(20) == 2


@pytest.mark.parametrize("error", [IncompatiblePeer("bytes that no peer writes"), SystemExit()])
def test_background_goes_on_after_an_odd_end(
    counter: Counter, client: Client, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    values: list[Any] = []

    def take(value: Any, _: int) -> None:
        values.append(value)
        if isinstance(error, SystemExit):
            raise error

    client.subscribe(take)
    counter.server.publish("a")
    eventually(lambda: values == ["a"])
    link = client._background._link
    assert link is not None
    if not isinstance(error, SystemExit):
        monkeypatch.setattr(client._background, "_take", iter_errors(error, client._background._take))
    counter.server.publish("b")
    counter.server.publish("c")
    eventually(lambda: values[-1] == "c")
    assert client.submit("echo", 1).result(20) == 1


def iter_errors(error: BaseException, then: Any) -> Any:
    """Make a function that raises once, and is `then` after that."""
    errors = [error]

    def call(*arguments: Any) -> Any:
        if errors:
            raise errors.pop()
        return then(*arguments)

    return call


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_background_starts_again_after_a_defect(counter: Counter, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client._background, "_take", iter_errors(RuntimeError("a defect"), client._background._take))
    with pytest.raises(PeerDied):
        client.submit("echo", 1).result(20)
    assert client.submit("echo", 2).result(20) == 2


def test_call_after_a_connection_that_talked_nonsense_connects_anew(
    counter: Counter, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert client._link is not None
    monkeypatch.setattr(
        client._link.connection,
        "recv",
        iter_errors(IncompatiblePeer("bytes that no peer writes"), client._link.connection.recv),
    )
    with pytest.raises(IncompatiblePeer):
        client.call("echo", 1)
    assert client.call("echo", 2) == 2
    assert client.stats()["reconnects"] == 1


def test_lag_of_a_client_that_has_taken_nothing(counter: Counter, client: Client) -> None:
    for version in range(3):
        counter.server.publish(version)
    client.call("echo", None)
    assert client.lag == 3


def test_stats_tell_the_transport_of_both_lanes(counter: Counter, client: Client) -> None:
    assert client.stats()["background_transport"] == ""
    client.submit("echo", None).result(20)
    assert client.stats()["background_transport"] == client.transport
