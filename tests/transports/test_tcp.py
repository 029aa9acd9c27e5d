"""What is particular to tcp: who answers, keys, hostile bytes, and the hooks that `auto` uses."""

from __future__ import annotations

import contextlib
import random
import select
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st

from edgeml_ipc import transports
from edgeml_ipc.errors import (
    AuthenticationError,
    BufferFull,
    ConnectionClosed,
    ConnectionRefused,
    IncompatiblePeer,
    MessageTooLarge,
    PeerDied,
    RemoteError,
    TimeoutError,
)
from edgeml_ipc.security import Keys
from edgeml_ipc.testing._workers import Background
from edgeml_ipc.testing.transports import Place
from edgeml_ipc.transports import _zmq_dial
from edgeml_ipc.transports import _zmq_frames as wire
from edgeml_ipc.transports._zmq_flow import TOPIC_WINDOW, WINDOW_MESSAGES
from edgeml_ipc.transports._zmq_hello import write_hello
from edgeml_ipc.transports._zmq_port import Port
from edgeml_ipc.transports.base import MAX_HELLO_BYTES, MAX_PARTS, Connection, Listener, Options
from edgeml_ipc.transports.zeromq import HelloInfo, TcpConnection, TcpListener, boot_id, connect_tcp, listen_tcp

PATIENCE_S = 30.0
SHORT_S = 0.3


def _welcome(hello: bytes) -> bytes:
    return b""


def _listen(place: Place) -> TcpListener:
    return listen_tcp(place.address, welcome=_welcome, options=place.listening)


def _connect(address: str, options: Options | None = None, timeout: float = PATIENCE_S) -> Connection:
    return transports.connect(address, hello=b"me", timeout=timeout, options=options)


def _messages(listener: Listener, count: int) -> list[tuple[Connection, list[bytes] | None]]:
    entries: list[tuple[Connection, list[bytes] | None]] = []
    while len(entries) < count:
        polled = listener.poll(PATIENCE_S)
        assert polled, f"{len(entries)} of {count} entries came"
        entries += [(sender, parts and [bytes(part) for part in parts]) for sender, parts in polled]
    return entries


def _message(kind: int, parts: Sequence[bytes], session: int = 0) -> list[bytes]:
    """Return the frames of a message as this library would send them."""
    packed = wire.pack(parts, 1 << 30, "a test")
    return [wire.head(kind, session, count=packed.part_count) + packed.body, *(bytes(frame) for frame in packed.frames)]


_HELLO: Final = _message(wire.HELLO, write_hello(b"", [], False))
_Reading = Callable[[Port], list[tuple[int, int]]]


class TestWhoAnswers:
    def test_nothing_listens(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as reserved:
            address = f"tcp://127.0.0.1:{reserved.getsockname()[1]}"
        with pytest.raises(ConnectionRefused, match="nothing listens"):
            _connect(address)

    @pytest.mark.parametrize("banner", [b"SSH-2.0-OpenSSH_9.2\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x00", b"\x01\x00"])
    def test_something_else_listens(self, banner: bytes) -> None:
        with _babbler(banner) as address, pytest.raises(IncompatiblePeer, match="not this library"):
            _connect(address, timeout=2.0)

    def test_something_that_closes_listens(self) -> None:
        with _babbler(None) as address, pytest.raises(IncompatiblePeer, match="closes the connection"):
            _connect(address)

    @pytest.mark.parametrize("secured", [False, True])
    def test_a_server_that_ends_while_its_successor_begins(self, secured: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        """The one that broke the handshake off is gone, and it is the other that is looked at; it is no reason for that."""
        server_keys, client_keys = Keys.generate() if secured else (None, None)
        begun: list[TcpListener] = []
        probe = _zmq_dial._Handshake._probe

        def begin_and_probe(self: _zmq_dial._Handshake, seconds: float) -> bytes | None:
            if not begun:
                begun.append(listen_tcp(address, welcome=_welcome, options=Options(keys=server_keys)))
            return probe(self, seconds)

        monkeypatch.setattr(_zmq_dial._Handshake, "_probe", begin_and_probe)
        with socket.create_server(("127.0.0.1", 0)) as ending:
            address = f"tcp://127.0.0.1:{ending.getsockname()[1]}"

            def end() -> None:
                accepted, _ = ending.accept()
                accepted.recv(1)  # so that zmq knows that it was connected
                ending.close()
                accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # no time to wait for
                accepted.close()

            thread = threading.Thread(target=end)
            thread.start()
            with _connect(address, Options(keys=client_keys)) as connection:
                assert connection.transport == "tcp"
            thread.join()
        begun[0].close()

    def test_a_server_that_begins_just_after_it_was_missed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A connection that is reset before zmq has looked at it is told as one that nobody took, so both are asked why."""
        begun: list[TcpListener] = []
        refused = _zmq_dial._Handshake._refused

        def begin_and_ask(self: _zmq_dial._Handshake) -> Exception:
            begun.append(listen_tcp(address, welcome=_welcome, options=Options()))
            return refused(self)

        monkeypatch.setattr(_zmq_dial._Handshake, "_refused", begin_and_ask)
        with socket.create_server(("127.0.0.1", 0)) as reserved:
            address = f"tcp://127.0.0.1:{reserved.getsockname()[1]}"
        with _connect(address) as connection:
            assert connection.transport == "tcp"
        begun[0].close()

    def test_something_silent_listens(self) -> None:
        with _babbler(b"") as address, pytest.raises(TimeoutError, match="silent"):
            _connect(address, timeout=SHORT_S)

    def test_another_zmq_socket_listens(self) -> None:
        with _zmq_server(zmq.PUB) as (address, _), pytest.raises(IncompatiblePeer):
            _connect(address)

    def test_a_silent_router_listens(self) -> None:
        with _zmq_server(zmq.ROUTER) as (address, _), pytest.raises(TimeoutError, match="silent"):
            _connect(address, timeout=SHORT_S)

    @pytest.mark.parametrize(
        "answer",
        [
            [b""],
            [b"hello yourself, this is another protocol"],
            [wire.head(wire.WELCOME, count=2)],
            [wire.head(wire.DATA)],
            [wire.PREFIX.pack(wire.MAGIC, 99, wire.INCOMPATIBLE)],
            [wire.PREFIX.pack(wire.MAGIC, 99, wire.WELCOME) + bytes(100)],
        ],
    )
    def test_a_router_with_other_manners_listens(self, answer: list[bytes]) -> None:
        with _zmq_server(zmq.ROUTER) as (address, server):

            def reply() -> None:
                server.send_multipart([server.recv_multipart()[0], *answer])

            thread = threading.Thread(target=reply)
            thread.start()
            with pytest.raises(IncompatiblePeer):
                _connect(address)
            thread.join()

    @pytest.mark.parametrize("address", ["tcp://127.0.0.1", "tcp://:1", "tcp://127.0.0.1:x", "tcp://127.0.0.1:65536", "tcp://"])
    def test_a_wrong_address_is_named(self, address: str) -> None:
        with pytest.raises(ValueError, match="expected tcp://host:port"):
            _connect(address)

    def test_an_unknown_host_is_named(self) -> None:
        with pytest.raises(ConnectionRefused, match="cannot be resolved"):
            _connect("tcp://no-such-host.invalid:1")

    @pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]"])
    def test_names_and_both_families_work(self, host: str) -> None:
        with _listen(Place(f"tcp://{host}:0")) as listener:
            assert listener.port > 0
            assert listener.address.endswith(f":{listener.port}")
            with _connect(listener.address) as connection:
                connection.send([b"x"], PATIENCE_S)
                assert _messages(listener, 1)[0][1] == [b"x"]

    def test_a_hello_has_a_limit(self, tcp_place: Place) -> None:
        with _listen(tcp_place) as listener, pytest.raises(MessageTooLarge):
            transports.connect(listener.address, hello=bytes(MAX_HELLO_BYTES + 1), timeout=PATIENCE_S)


class TestKeys:
    @pytest.fixture
    def listener(self, curve_place: Place) -> Iterator[TcpListener]:
        with _listen(curve_place) as listener:
            yield listener

    @pytest.mark.parametrize("host", ["0.0.0.0", "*", "[::]"])
    def test_beyond_loopback_needs_keys_or_consent(self, host: str) -> None:
        address = f"tcp://{host}:0"
        with pytest.raises(AuthenticationError, match="insecure=True"):
            _listen(Place(address))
        server = Keys.generate_server()
        for options in (Options(insecure=True), Options(keys=server)):
            with _listen(Place(address, options)) as listener:
                client = options.keys and Options(keys=Keys.generate_client(server.public))
                with _connect(f"tcp://127.0.0.1:{listener.port}", client):
                    pass

    def test_wrong_server_key(self, listener: TcpListener) -> None:
        keys = Keys.generate_client(Keys.generate_server().public)
        with pytest.raises(AuthenticationError, match="public key is wrong"):
            _connect(listener.address, Options(keys=keys))

    def test_missing_key(self, listener: TcpListener) -> None:
        with pytest.raises(AuthenticationError, match="the server requires them"):
            _connect(listener.address)

    def test_keys_that_the_server_does_not_use(self, tcp_place: Place, curve_place: Place) -> None:
        with _listen(tcp_place) as plain, pytest.raises(AuthenticationError, match="the server uses none"):
            _connect(plain.address, curve_place.connecting)

    def test_a_client_that_is_not_allowed(self, listener: TcpListener, curve_keys: tuple[Keys, Keys]) -> None:
        with pytest.raises(AuthenticationError, match="does not allow"):
            _connect(listener.address, Options(keys=Keys.generate_client(curve_keys[0].public)))

    def test_a_servers_keys_do_not_make_a_client(self, listener: TcpListener, curve_keys: tuple[Keys, Keys]) -> None:
        with pytest.raises(AuthenticationError, match="generate_client"):
            _connect(listener.address, Options(keys=curve_keys[0]))

    def test_failures_are_counted_and_harm_nobody(self, listener: TcpListener, curve_place: Place) -> None:
        with _connect(listener.address, curve_place.connecting) as good:
            for _ in range(3):
                with pytest.raises(AuthenticationError):
                    _connect(listener.address)
            good.send([b"x"], PATIENCE_S)
            _messages(listener, 1)
            assert listener.stats()["handshakes_failed"] >= 3
            assert listener.stats()["accepted"] == 1


class TestHostileBytes:
    """Whatever a stranger sends, the others go on, and only the stranger is shut out."""

    @pytest.fixture
    def listener(self, tcp_place: Place) -> Iterator[TcpListener]:
        """A listener that has one good client, which must still be served in the end."""
        limited = replace(tcp_place.listening, max_message_bytes=1 << 20)
        with _listen(Place(tcp_place.address, limited)) as listener, _connect(listener.address) as good:
            yield listener
            for number in range(5):
                good.send([b"%d" % number], PATIENCE_S)
                heard: list[tuple[Connection, list[bytes] | None]] = []
                while not heard:
                    heard = [entry for entry in _messages(listener, 1) if entry[1] is not None]  # not the strangers' ends
                ((peer, parts),) = heard
                assert parts == [b"%d" % number]
                peer.send([b"thanks"], PATIENCE_S)
                assert bytes(good.recv(PATIENCE_S)[0]) == b"thanks"

    @pytest.mark.parametrize("seed", range(20))
    def test_random_bytes_on_the_port(self, listener: TcpListener, seed: int) -> None:
        chance = random.Random(seed)
        signature = b"\xff\x00\x00\x00\x00\x00\x00\x00\x01\x7f"
        start = chance.choice([b"", signature, signature + b"\x03\x00" + b"NULL".ljust(52, b"\0")])
        with socket.create_connection(("127.0.0.1", listener.port)) as stranger, contextlib.suppress(ConnectionError):
            stranger.sendall(start + chance.randbytes(chance.randrange(1, 5_000)))

    @pytest.mark.parametrize(
        "frames",
        [
            [b""],
            [b"", b"", b""],
            [b"garbage"],
            [wire.head(wire.HELLO)],
            [wire.head(wire.HELLO, count=4)],
            [wire.head(wire.HELLO, count=MAX_PARTS + 1)],
            [wire.head(wire.HELLO, count=0xFFFFFFFF)],
            [wire.head(wire.HELLO, count=1) + struct.pack("<I", 0xFFFFFFFE)],
            [wire.head(wire.HELLO, count=1) + struct.pack("<I", wire.OWN_FRAME)],
            [wire.head(wire.HELLO, count=1) + struct.pack("<I", 8000)],
            [wire.head(wire.DATA)],
            [wire.head(wire.CREDIT, topic=3)],
            [wire.head(77)],
            [b"frame"] * 100,
        ],
    )
    def test_a_stranger_without_a_hello_is_cut_off(self, listener: TcpListener, frames: list[bytes]) -> None:
        with _Stranger(listener) as stranger:
            stranger.send(frames)
            stranger.expect_end()
        assert listener.stats()["malformed"] == 1
        assert listener.stats()["connections"] == 1

    @pytest.mark.parametrize(
        "said",
        [
            write_hello(b"", [1, 1], False),
            write_hello(b"", [16], False),
            write_hello(bytes(MAX_HELLO_BYTES + 1), [], False),
            [b"short", b"\0", b"", b""],
            [bytes(16), b"", b"", b""],
            [bytes(16), b"\0", b""],
        ],
    )
    def test_a_wrong_hello_is_cut_off(self, listener: TcpListener, said: list[bytes]) -> None:
        with _Stranger(listener) as stranger:
            stranger.send(_message(wire.HELLO, said))
            stranger.expect_end()
        assert listener.stats()["malformed"] == 1

    def test_another_version_is_told_so(self, listener: TcpListener) -> None:
        with _Stranger(listener) as stranger:
            stranger.send([wire.PREFIX.pack(wire.MAGIC, 99, wire.HELLO) + b"whatever that version says"])
            (answer,) = stranger.receive()
        assert wire.read_prefix(answer) == (wire.VERSION, wire.INCOMPATIBLE)
        assert listener.stats()["rejected"] == 1

    @pytest.mark.parametrize(
        "offence",
        [
            lambda session: [b"garbage"],
            lambda session: [],
            lambda session: _message(wire.DATA, [b"x"], session + 1 & (1 << 64) - 1),
            lambda session: [wire.head(wire.DATA, session)],
            lambda session: [wire.head(wire.WELCOME, session)],
            lambda session: _message(wire.HELLO, write_hello(b"", [], False)),
            lambda session: [wire.head(wire.CREDIT, session, topic=2)],
            lambda session: [wire.head(wire.CREDIT, session, topic=9)],
            lambda session: [wire.head(wire.CREDIT, session, taken=(1, 0))],
            lambda session: [wire.head(wire.CREDIT, session, taken=(0, 1))],
            lambda session: [*_message(wire.DATA, [b"x"], session), b"a frame too many"],
            lambda session: [
                wire.head(wire.DATA, session, count=2) + struct.pack("<2I", wire.OWN_FRAME, wire.OWN_FRAME),
                b"one",
            ],
            lambda session: _message(wire.DATA, [bytes(1 << 19)] * 3, session),
        ],
    )
    def test_a_client_that_breaks_the_rules_is_cut_off(
        self, listener: TcpListener, offence: Callable[[int], list[bytes]]
    ) -> None:
        with _Stranger(listener) as stranger:
            session = stranger.greet([2])
            stranger.send(_message(wire.DATA, [b"still good"], session))
            stranger.send(offence(session) or [b"", b""])
            (first, parts), last = _messages(listener, 2)
            assert parts == [b"still good"]
            assert last == (first, None)
            stranger.expect_end()
        assert listener.stats()["malformed"] == 1

    def test_a_message_over_the_limit_is_never_taken_in(self, listener: TcpListener) -> None:
        with _Stranger(listener) as stranger:
            session = stranger.greet()
            stranger.send(_message(wire.DATA, [bytes(64 << 20)], session))
            ((_, parts),) = _messages(listener, 1)
            assert parts is None

    def test_a_client_that_ignores_the_window_is_cut_off(self, listener: TcpListener) -> None:
        with _Stranger(listener) as stranger:
            session = stranger.greet()
            for _ in range(WINDOW_MESSAGES + 1):
                stranger.send(_message(wire.DATA, [b"x"], session))
            stranger.expect_end()
            entries = _messages(listener, WINDOW_MESSAGES + 1)
        assert [parts for _, parts in entries] == [[b"x"]] * WINDOW_MESSAGES + [None]

    def test_a_subscriber_gets_no_more_than_its_credits(self, listener: TcpListener) -> None:
        with _Stranger(listener) as stranger:
            session = stranger.greet([2])
            for number in range(10):
                listener.publish(2, [b"%d" % number])
            for _ in range(TOPIC_WINDOW):
                assert wire.read_head(stranger.receive()[0]).kind == wire.TOPIC
            stranger.send([wire.head(wire.CREDIT, session, topic=2)])
            assert stranger.receive()[0].rstrip(b"\0").endswith(b"9")
            stranger.send(_message(wire.DATA, [b"x"], session))
            _messages(listener, 1)
            assert listener.stats()["values_sent"] == TOPIC_WINDOW + 1

    def test_a_cut_off_frame_is_malformed(self) -> None:
        packed = wire.pack([b"abc", bytes(100), b"de"], 1 << 20, "here")
        whole = wire.head(wire.DATA, count=packed.part_count) + packed.body
        needed = whole.rindex(b"de") + len(b"de")
        assert [bytes(part) for part in wire.unpack(3, whole[:needed], [], 1 << 20)[0]] == [b"abc", bytes(100), b"de"]
        for length in range(wire.HEAD.size, needed):
            with pytest.raises(wire.Malformed):
                wire.unpack(3, whole[:length], [], 1 << 20)

    def test_bytes_are_those_of_the_specification(self) -> None:
        page = (Path(__file__).parents[2] / "transports" / "WIRE.md").read_text(encoding="utf-8")
        example = page.partition("## tcp frames")[2].partition("**Example.**")[2].split("```")[1]
        expected = bytes.fromhex(example.partition("…")[0]) + bytes(62)
        (frame,) = _message(wire.DATA, [b"hi"], session=7)
        assert frame == expected

    @given(st.binary(max_size=300), st.integers(0, 20), st.lists(st.binary(max_size=10), max_size=3))
    def test_unpack_reads_anything_or_calls_it_malformed(self, body: bytes, count: int, rest: list[bytes]) -> None:
        frame = wire.head(wire.DATA, count=count) + body
        with contextlib.suppress(wire.Malformed):
            parts, payload_bytes = wire.unpack(count, frame, [zmq.Frame(each) for each in rest], 1_000)
            assert len(parts) == count
            assert payload_bytes == sum(map(len, parts)) <= len(frame) + sum(map(len, rest))

    @given(st.lists(st.one_of(st.binary(max_size=200), st.integers(8_000, 9_000).map(bytes)), min_size=1, max_size=20))
    def test_pack_and_unpack_agree(self, parts: list[bytes]) -> None:
        packed = wire.pack(parts, 1 << 20, "here")
        frame = wire.head(wire.DATA, count=packed.part_count) + packed.body
        unpacked, payload_bytes = wire.unpack(packed.part_count, frame, packed.frames, 1 << 20)
        assert [bytes(part) for part in unpacked] == parts
        assert packed.cost_bytes == wire.cost(payload_bytes, len(unpacked))


class TestTheListenersEnd:
    def test_a_handshake_callback_that_fails_reaches_the_client(self, tcp_place: Place) -> None:
        def fail(hello: bytes) -> bytes:
            if hello == b"me":
                raise RuntimeError("not my day")
            return b"fine"

        with transports.listen(tcp_place.address, welcome=fail, options=tcp_place.listening) as listener:
            with pytest.raises(RemoteError, match="not my day"):
                _connect(listener.address)
            with transports.connect(listener.address, hello=b"you", timeout=PATIENCE_S) as connection:
                assert connection.welcome == b"fine"

    def test_fileno_wakes_an_outer_loop(self, tcp_place: Place) -> None:
        with _listen(tcp_place) as listener, _connect(listener.address) as connection, select.epoll() as outer:
            outer.register(listener.fileno(), select.EPOLLIN)
            while listener.poll(0) or listener.pending:
                continue
            for count in (1, 1, 100):
                for number in range(count):
                    connection.send([b"%d" % number], PATIENCE_S)
                received: list[bytes] = []
                while len(received) < count:
                    assert outer.poll(PATIENCE_S), "nothing woke the outer loop"
                    received += [bytes(parts[0]) for _, parts in listener.poll(0) if parts]
                assert received == [b"%d" % number for number in range(count)]
            listener.wake()
            assert outer.poll(PATIENCE_S)
            assert listener.pending
            assert listener.poll(0) == []
            connection.close()
            entries: list[tuple[Connection, object]] = []
            while not entries:
                assert outer.poll(PATIENCE_S), "nothing woke the outer loop"
                entries += listener.poll(0)
            assert entries[0][1] is None

    def test_fileno_tells_what_another_thread_took_in(self, tcp_place: Place) -> None:
        with _listen(tcp_place) as listener, _connect(listener.address) as connection:
            connection.send([b"x"], PATIENCE_S)
            while not listener.pending:
                listener.publish(0, [b""])  # looks after the socket, as everyone does who uses it
            assert select.select([listener.fileno()], [], [], 0)[0]
            assert _messages(listener, 1)[0][1] == [b"x"]

    def test_onlookers_take_no_message_away(self, tcp_place: Place) -> None:
        with _listen(tcp_place) as listener, _connect(listener.address) as connection, _onlooker(connection):
            connection.send([b"x"], PATIENCE_S)
            ((peer, _),) = _messages(listener, 1)
            with Background(_receive_all, connection, 300) as receiving:
                for number in range(300):
                    peer.send([b"%d" % number], PATIENCE_S)
                    connection.send([b"next"], PATIENCE_S)
                    _messages(listener, 1)
            assert receiving.get() == [b"%d" % number for number in range(300)]

    def test_onlookers_take_no_room_away(self, tcp_place: Place) -> None:
        with _listen(tcp_place) as listener, _connect(listener.address) as connection, _onlooker(connection):
            for _ in range(6):
                for _ in range(WINDOW_MESSAGES // 2):  # what is left of the window, and perhaps more
                    connection.send([b"fill"], PATIENCE_S)
                with contextlib.suppress(BufferFull):
                    for _ in range(WINDOW_MESSAGES):
                        connection.send([b"fill"], 0)
                with Background(connection.send, [b"last"], 5.0) as sending:
                    while _messages(listener, 1)[-1][1] != [b"last"]:
                        continue
                sending.get()

    def test_offers_reach_those_who_ask(self, tcp_place: Place) -> None:
        asked: list[HelloInfo] = []

        def offer(info: HelloInfo) -> bytes:
            asked.append(info)
            return b"door" if info.wants_shm else b""

        with listen_tcp(tcp_place.address, welcome=_welcome, options=tcp_place.listening, offer=offer) as listener:
            listener.publish(4, [b"first value"])
            for wants in (True, False):
                with connect_tcp(
                    listener.address, hello=b"h", topics=[4], timeout=PATIENCE_S, options=Options(), wants_shm=wants
                ) as connection:
                    assert isinstance(connection, TcpConnection)
                    assert connection.offer == (b"door" if wants else b"")
                    if wants:
                        with pytest.raises(TimeoutError):
                            connection.recv(0.05)
                        connection.stay()
                    assert bytes(connection.recv(PATIENCE_S)[0]) == b"first value"
        assert asked == [HelloInfo(b"h", boot_id(), wants, (4,)) for wants in (True, False)]

    def test_a_client_that_goes_over_to_shared_memory_is_never_heard_of(self, tcp_place: Place) -> None:
        def come(listener: TcpListener) -> TcpConnection:
            return connect_tcp(listener.address, hello=b"", topics=[], timeout=PATIENCE_S, options=Options(), wants_shm=True)

        with _listen(tcp_place) as listener:
            come(listener).close()
            with come(listener) as stays:
                stays.stay()
                while listener.stats()["connections"] != 1:
                    assert listener.poll(0.01) == []
                with come(listener) as speaks:
                    speaks.send([b"x"], PATIENCE_S)
                    ((speaker, parts),) = _messages(listener, 1)
                    assert parts == [b"x"]
                    assert listener.stats()["connections"] == 2
                assert _messages(listener, 1) == [(speaker, None)]
            ((stayed, parts),) = _messages(listener, 1)
            assert parts is None
            assert stayed is not speaker
            assert listener.stats()["accepted"] == 3

    def test_owned_values_are_published_without_a_copy(self, tcp_place: Place) -> None:
        body = bytes(range(256)) * 4096
        with _listen(tcp_place) as listener:
            clients = [
                transports.connect(listener.address, topics=[0], timeout=PATIENCE_S, options=tcp_place.connecting)
                for _ in range(3)
            ]
            listener.publish_owned(0, [b"small", body])
            for client in clients:
                assert [bytes(part) for part in client.recv(PATIENCE_S)] == [b"small", body]
                client.close()

    def test_one_session_cannot_speak_for_another(self, tcp_place: Place) -> None:
        with _listen(tcp_place) as listener, _Stranger(listener) as one, _Stranger(listener) as two:
            sessions = one.greet(), two.greet()
            assert sessions[0] != sessions[1]
            one.send(_message(wire.DATA, [b"forged"], sessions[1]))
            one.expect_end()
            two.send(_message(wire.DATA, [b"mine"], sessions[1]))
            entries = _messages(listener, 2)
            assert sorted(parts or [] for _, parts in entries) == [[], [b"mine"]]

    def test_clients_that_die_in_the_handshake_leave_nothing(self, tcp_place: Place) -> None:
        with _listen(tcp_place) as listener:
            for _ in range(40):
                with _Stranger(listener) as stranger:
                    stranger.send(_message(wire.HELLO, write_hello(b"", [], False)))
            with _connect(listener.address) as connection:
                connection.send([b"x"], PATIENCE_S)
                entries = _messages(listener, 1)
                while listener.stats()["connections"] > 1 or all(parts is None for _, parts in entries):
                    entries += _messages(listener, 1)
            assert [parts for _, parts in entries if parts is not None] == [[b"x"]]

    def test_a_client_that_sends_on_still_hears_the_last_words(self, tcp_place: Place) -> None:
        with _listen(tcp_place) as listener, _connect(listener.address) as connection:
            connection.send([b"x"], PATIENCE_S)
            ((peer, _),) = _messages(listener, 1)
            peer.send([b"last words", bytes(1 << 20)], PATIENCE_S)
            peer.close()
            with contextlib.suppress(PeerDied):
                for _ in range(100):
                    connection.send([bytes(1000)], PATIENCE_S)
            assert listener.poll(PATIENCE_S) == [(peer, None)]
            assert listener.poll(0.05) == []
            assert bytes(connection.recv(PATIENCE_S)[0]) == b"last words"
            with pytest.raises(PeerDied):
                connection.recv(PATIENCE_S)
            assert listener.stats()["malformed"] == 0

    def test_a_handshake_may_be_larger_than_a_message(self, tcp_place: Place) -> None:
        options = Options(max_message_bytes=100)
        with (
            transports.listen(tcp_place.address, welcome=lambda hello: hello, options=options) as listener,
            transports.connect(listener.address, hello=bytes(60_000), timeout=PATIENCE_S, options=options) as connection,
        ):
            assert connection.welcome == bytes(60_000)

    def test_too_long_a_welcome_fails_and_the_listener_goes_on(self, tcp_place: Place) -> None:
        with transports.listen(tcp_place.address, welcome=lambda hello: hello * (2 << 20)) as listener:
            with pytest.raises(RemoteError, match="MessageTooLarge"):
                _connect(listener.address)
            with transports.connect(listener.address, hello=b"", timeout=PATIENCE_S) as connection:
                assert connection.welcome == b""

    def test_a_closed_listener_says_so_to_all_its_callers(self, tcp_place: Place) -> None:
        with _listen(tcp_place) as listener, _connect(listener.address) as connection:
            connection.send([b"x"], PATIENCE_S)
            ((peer, _),) = _messages(listener, 1)
            listener.close()
            with pytest.raises(ConnectionClosed):
                listener.publish(0, [b"late"])
            with pytest.raises(ConnectionClosed):
                peer.send([b"late"], PATIENCE_S)
            with pytest.raises(ConnectionClosed):
                peer.recv(0)
            peer.close()
            listener.wake()
            with pytest.raises(PeerDied):
                connection.recv(PATIENCE_S)


class TestWhatIsReadLate:
    """zmq tells of connections, and what came through them, by two ways that are read one after the other."""

    def test_a_stranger_that_comes_between_the_two(self, tcp_place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
        with _listen(tcp_place) as listener, contextlib.ExitStack() as later:
            strangers: list[_Stranger] = []

            def read_before_it(port: Port, read: _Reading) -> list[tuple[int, int]]:
                happened = read(port)
                strangers.append(later.enter_context(_Stranger(listener)))
                strangers[0].send([b"garbage"])
                _await(port, port.socket)
                return happened

            _read(monkeypatch, read_before_it)
            listener._port._stirred = True  # so that there may be something to read
            assert listener.poll(0) == []
            strangers[0].expect_end()

    def test_an_end_that_is_reported_while_somebody_else_is_looked_at(
        self, tcp_place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The other is dead too, so that its HELLO has no consequence after which ends would be looked for."""
        with _listen(tcp_place) as listener, _connect(listener.address) as connection:
            connection.send([b"x"], PATIENCE_S)
            ((peer, _),) = _messages(listener, 1)

            def read_before_it(port: Port, read: _Reading) -> list[tuple[int, int]]:
                happened = read(port)
                with _Stranger(listener) as stranger:
                    stranger.send(_HELLO)
                    _await(port, port.socket)
                connection.close()
                return happened

            _read(monkeypatch, read_before_it, _until_ends(2))
            listener._port._stirred = True  # so that there may be something to read
            assert listener.poll(0) == [(peer, None)]

    @pytest.mark.parametrize("last_words", [_HELLO, [b"garbage"]])
    def test_what_the_dead_said_does_not_harm_who_has_their_descriptor(self, tcp_place: Place, last_words: list[bytes]) -> None:
        with _listen(tcp_place) as listener, contextlib.ExitStack() as later:
            with listener._port.lock:  # nobody reads meanwhile
                for _ in range(20):
                    with _Stranger(listener) as stranger:
                        stranger.send(last_words)
                living = later.enter_context(_Stranger(listener))
                living.send(_HELLO)
                while listener._census._born <= 20 or len(listener._census._births) != 1:
                    _await(listener._port, listener._port._monitor)
                    listener._census.update()
            session = wire.read_head(living.receive()[0]).session
            living.send(_message(wire.DATA, [b"x"], session))
            assert [parts for _, parts in _messages(listener, 1)] == [[b"x"]]
            assert listener.stats()["accepted"] == listener.stats()["connections"] == 1

    def test_an_end_that_is_read_with_the_welcome(self, tcp_place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
        with _listen(tcp_place) as listener:

            def welcome_one_and_end() -> None:
                while not listener.stats()["accepted"]:
                    listener.poll(0.01)
                listener.close()

            _read(monkeypatch, _until_ends(1))
            with Background(welcome_one_and_end), _connect(listener.address) as connection, pytest.raises(PeerDied):
                connection.recv(PATIENCE_S)


def _read(monkeypatch: pytest.MonkeyPatch, *turns: Callable[[Port, _Reading], list[tuple[int, int]]]) -> None:
    """Have this thread's next reads of a port's monitor done by `turns`, one after the other."""
    read, reader, left = Port.events, threading.get_ident(), list(turns)

    def events(port: Port) -> list[tuple[int, int]]:
        return left.pop(0)(port, read) if left and threading.get_ident() == reader else read(port)

    monkeypatch.setattr(Port, "events", events)


def _await(port: Port, socket: zmq.Socket[bytes]) -> None:
    """Wait until there is something to read from `socket`, which is one of the port's; called with the port's lock held."""
    assert socket.poll(PATIENCE_S * 1000)
    port._stirred = port._monitor_stirred = True  # it was used


def _until_ends(count: int) -> Callable[[Port, _Reading], list[tuple[int, int]]]:
    """Return a read that waits until it has `count` ends of connections to tell."""

    def read_until(port: Port, read: _Reading) -> list[tuple[int, int]]:
        happened: list[tuple[int, int]] = []
        while sum(event == zmq.EVENT_DISCONNECTED for event, _ in happened) < count:
            _await(port, port._monitor)
            happened += read(port)
        return happened

    return read_until


@contextlib.contextmanager
def _onlooker(connection: Connection) -> Iterator[None]:
    """Have another thread look at a connection all the time, which takes in whatever has come."""
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            assert not connection.closed

    with Background(look) as looking:
        try:
            yield
        finally:
            over.set()
    looking.get()


def _receive_all(connection: Connection, count: int) -> list[bytes]:
    return [bytes(connection.recv(5.0)[0]) for _ in range(count)]


class _Stranger:
    """A DEALER without manners."""

    def __init__(self, listener: TcpListener) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.RECONNECT_IVL, -1)
        self._socket.setsockopt(zmq.RCVTIMEO, int(PATIENCE_S * 1000))
        self._monitor = self._socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        self._socket.connect(listener.address)

    def send(self, frames: Sequence[bytes]) -> None:
        self._socket.send_multipart(frames)

    def receive(self) -> list[bytes]:
        return self._socket.recv_multipart()

    def greet(self, topics: Sequence[int] = ()) -> int:
        """Say a proper HELLO and return the session that it got."""
        self.send(_message(wire.HELLO, write_hello(b"stranger", topics, False)))
        head = wire.read_head(self.receive()[0])
        assert head.kind == wire.WELCOME
        return head.session

    def expect_end(self) -> None:
        """Wait until the listener breaks the connection off."""
        assert self._monitor.poll(PATIENCE_S * 1000), "the listener keeps this connection"

    def __enter__(self) -> _Stranger:
        return self

    def __exit__(self, *exc: object) -> None:
        self._socket.disable_monitor()
        self._context.destroy(int(PATIENCE_S * 1000))


@contextlib.contextmanager
def _babbler(banner: bytes | None) -> Iterator[str]:
    """Listen, and say `banner` to all who come; None: close the connection at once."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        accepted: list[socket.socket] = []

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                accepted.append(connection)
                if banner is None:
                    connection.close()
                else:
                    connection.sendall(banner)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"tcp://127.0.0.1:{server.getsockname()[1]}"
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()
            for connection in accepted:
                connection.close()


@contextlib.contextmanager
def _zmq_server(kind: int) -> Iterator[tuple[str, zmq.Socket[bytes]]]:
    with zmq.Context() as context, context.socket(kind) as server:
        server.setsockopt(zmq.LINGER, 0)
        server.setsockopt(zmq.RCVTIMEO, int(PATIENCE_S * 1000))
        server.bind("tcp://127.0.0.1:0")
        yield server.getsockopt_string(zmq.LAST_ENDPOINT), server


DROPPED_WITHIN_A_CYCLE = """
import gc
from edgeml_ipc import transports
with transports.listen("tcp://127.0.0.1:0", welcome=bytes) as listener:
    for _ in range(5):
        connection = transports.connect(listener.address, timeout=20)
        connection.itself = connection
        del connection
        gc.collect()
print("collected")
"""


def test_a_connection_that_is_dropped_within_a_cycle_does_not_hang_the_collector() -> None:
    run = subprocess.run([sys.executable, "-c", DROPPED_WITHIN_A_CYCLE], capture_output=True, text=True, timeout=60, check=True)
    assert run.stdout == "collected\n"
