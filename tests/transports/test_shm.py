"""What is particular to shared memory: leases, slots, hostile peers, fork."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import pytest

from edgeml_ipc import transports
from edgeml_ipc.errors import BufferFull, ConnectionRefused, IncompatiblePeer, TimeoutError
from edgeml_ipc.transports import _shm_handshake as handshake
from edgeml_ipc.transports import shm_listener
from edgeml_ipc.transports._shm_ends import NO_NONCE
from edgeml_ipc.transports.base import Buffer, Connection, Listener, Options
from edgeml_ipc.transports.shm import socket_name
from tests.conftest import new_address
from tests.transports import fork_scenarios
from tests.transports.evil_client import DATA, DESC, PAD, RX_HEAD, TX_TAIL, EvilClient

PATIENCE_S = 20.0
LARGE = 200_000  # bytes, that travel in a slot


@pytest.fixture
def listener() -> Iterator[Listener]:
    with transports.listen(new_address("shm"), welcome=bytes) as made:
        yield made


def path_of(listener: Listener) -> str:
    return socket_name(listener.address.removeprefix("shm://"))


def meet(listener: Listener, options: Options | None = None, topics: tuple[int, ...] = ()) -> tuple[Connection, Connection]:
    """Return both ends of a new connection."""
    client = transports.connect(listener.address, topics=topics, timeout=PATIENCE_S, options=options)
    client.send([b"hello"], PATIENCE_S)
    ((server, _),) = listener.poll(PATIENCE_S)
    return client, server


def hung_up(stranger: socket.socket) -> bool:
    """Wait for the other side to end the connection; with packets of ours unread, that is a reset."""
    try:
        return stranger.recv(1000) == b""
    except ConnectionResetError:
        return True


def body(number: int) -> bytes:
    return bytes([number]) * LARGE


def first_byte(part: Buffer) -> int:
    return int(memoryview(part)[0])


class TestLeases:
    def test_views_outlive_the_connection(self, listener: Listener) -> None:
        client, server = meet(listener)
        server.send([body(7)], PATIENCE_S)
        (part,) = client.recv(PATIENCE_S)
        client.close()
        server.close()
        listener.close()
        assert memoryview(part).readonly
        assert bytes(part) == body(7)

    def test_what_finds_no_free_pin_is_copied(self, listener: Listener) -> None:
        client, server = meet(listener)
        held = []
        for number in range(40):
            server.send([body(number)], PATIENCE_S)
            held += client.recv(PATIENCE_S)
        assert [bytes(part) == body(number) for number, part in enumerate(held)] == [True] * 40
        assert client.stats()["copied_out"] == 24

    def test_a_slot_is_written_again_only_when_no_view_is_left(self, listener: Listener) -> None:
        client, server = meet(listener)
        server.send([body(1)], PATIENCE_S)
        (kept,) = client.recv(PATIENCE_S)
        view = memoryview(kept)[5:10]
        del kept
        for number in range(2, 10):
            server.send([body(number)], PATIENCE_S)
            client.recv(PATIENCE_S)
        assert bytes(view) == bytes([1]) * 5

    def test_slots_are_reused_while_they_are_warm(self, listener: Listener) -> None:
        client, server = meet(listener)
        for number in range(100):
            server.send([body(number)], PATIENCE_S)
            assert first_byte(client.recv(PATIENCE_S)[0]) == number
        assert server.stats()["slots_created"] == 1

    def test_a_full_budget_blocks_until_a_view_dies(self, listener: Listener) -> None:
        client, server = meet(listener, Options(slot_budget_bytes=3 * (LARGE + 70_000)))
        held = []
        for number in range(3):
            client.send([body(number)], PATIENCE_S)
            ((_, parts),) = listener.poll(PATIENCE_S)
            held.append(parts)
        with pytest.raises(BufferFull):
            client.send([body(3)], 0)
        with pytest.raises(TimeoutError):
            client.send([body(3)], 0.05)
        del parts
        held.pop()
        client.send([body(4)], PATIENCE_S)
        ((_, parts),) = listener.poll(PATIENCE_S)
        assert parts is not None
        assert first_byte(parts[0]) == 4
        assert not server.closed

    def test_free_slots_make_way_for_a_larger_message(self, listener: Listener) -> None:
        client, _ = meet(listener, Options(slot_budget_bytes=16 << 20))
        for size in (1 << 20, 2 << 20, 3 << 20, 4 << 20, 10 << 20):
            client.send([bytes(size)], PATIENCE_S)
            ((_, parts),) = listener.poll(PATIENCE_S)
            assert parts is not None
            assert len(parts[0]) == size


class TestTopics:
    def test_held_values_stay_while_newer_ones_come(self, listener: Listener) -> None:
        client, _ = meet(listener, topics=(2,))
        held = []
        for number in range(12):
            listener.publish(2, [body(number)])
            held += client.recv(PATIENCE_S)
        assert [first_byte(part) for part in held] == list(range(12))
        assert all(bytes(part) == body(number) for number, part in enumerate(held))
        assert client.stats()["copied_out"] == 9  # it may hold three as views

    def test_a_late_subscriber_gets_the_newest_of_what_lies_in_a_slot(self, listener: Listener) -> None:
        for number in range(5):
            listener.publish(0, [body(number)])
        for _ in range(20):
            with transports.connect(listener.address, topics=(0,), timeout=PATIENCE_S) as client:
                assert first_byte(client.recv(PATIENCE_S)[0]) == 4

    def test_values_of_growing_size(self, listener: Listener) -> None:
        client, _ = meet(listener, topics=(0,))
        for size in (10, 100_000, 1_000_000, 20, 5_000_000):
            listener.publish(0, [bytes(size), b"end"])
            assert [len(memoryview(part)) for part in client.recv(PATIENCE_S)] == [size, 3]


def no_record_length(evil: EvilClient) -> None:
    evil.record(0, DATA)


def record_past_what_is_committed(evil: EvilClient) -> None:
    evil.record(128, DATA, 1)


def tail_past_the_capacity(evil: EvilClient) -> None:
    evil.record(64, DATA, 1, tail=1 << 40)


def unknown_kind(evil: EvilClient) -> None:
    evil.record(64, 9, 1)


def padding_in_the_middle(evil: EvilClient) -> None:
    evil.record(64, PAD)


def wrong_sequence(evil: EvilClient) -> None:
    evil.record(64, DATA, 1, sequence=5, payload=struct.pack("<II", 4, 0))


def no_parts(evil: EvilClient) -> None:
    evil.record(64, DATA, 0)


def more_parts_than_fit(evil: EvilClient) -> None:
    evil.record(64, DATA, 16000)


def part_past_the_record(evil: EvilClient) -> None:
    evil.record(64, DATA, 1, payload=struct.pack("<II", 4000, 0))


def unknown_slot(evil: EvilClient) -> None:
    evil.record(64, DESC, payload=struct.pack("<II", 3, 1))


def slot_number_out_of_range(evil: EvilClient) -> None:
    evil.record(64, DESC, payload=struct.pack("<II", 1 << 30, 1))


def garbage_packet(evil: EvilClient) -> None:
    evil.socket.send(b"\xff" * 100)


def slot_without_seals(evil: EvilClient) -> None:
    fd = os.memfd_create("unsealed")
    os.ftruncate(fd, 4096)
    handshake.send_packet(evil.socket, struct.pack("<cBhIIIQ", b"S", 0, -1, 0, 1, 0, 4096), [fd])
    os.close(fd)


def slot_smaller_than_it_says(evil: EvilClient) -> None:
    fd = os.memfd_create("small", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, 4096)
    handshake.send_packet(evil.socket, struct.pack("<cBhIIIQ", b"S", 0, -1, 0, 1, 0, 1 << 40), [fd])
    os.close(fd)


BREACHES = (
    no_record_length, record_past_what_is_committed, tail_past_the_capacity, unknown_kind, padding_in_the_middle,
     wrong_sequence, no_parts, more_parts_than_fit, part_past_the_record, unknown_slot,
    slot_number_out_of_range, garbage_packet, slot_without_seals, slot_smaller_than_it_says,
)  # fmt: skip


class TestHostilePeers:
    @pytest.mark.parametrize("breach", BREACHES, ids=lambda breach: breach.__name__)
    def test_a_breach_ends_its_connection_and_no_other(self, listener: Listener, breach: Callable[[EvilClient], None]) -> None:
        client, server = meet(listener)
        with EvilClient(path_of(listener)) as evil:
            breach(evil)
            events = listener.poll(PATIENCE_S)
            while events[-1][1] is not None:
                events = listener.poll(PATIENCE_S)
            assert events[-1][0].hello == b"evil"
        client.send([b"still here"], PATIENCE_S)
        assert listener.poll(PATIENCE_S) == [(server, [b"still here"])]

    def test_a_tail_that_goes_back(self, listener: Listener) -> None:
        with EvilClient(path_of(listener)) as evil:
            evil.record(64, DATA, 1, payload=struct.pack("<II", 4, 0))
            ((server, parts),) = listener.poll(PATIENCE_S)
            assert parts == [bytes(4)]
            evil.put(TX_TAIL, struct.pack("<Q", 0))
            evil.ring()
            assert listener.poll(PATIENCE_S) == [(server, None)]

    def test_a_head_ahead_of_the_tail_fails_the_sender(self, listener: Listener) -> None:
        with EvilClient(path_of(listener)) as evil:
            evil.record(64, DATA, 1, payload=struct.pack("<II", 4, 0))
            ((server, _),) = listener.poll(PATIENCE_S)
            evil.put(RX_HEAD, struct.pack("<Q", 1 << 50))
            server.send([bytes(60_000)], 0)  # what fits once
            server.send([bytes(60_000)], 0)
            server.send([bytes(60_000)], 0)
            server.send([bytes(60_000)], 0)
            with pytest.raises(IncompatiblePeer, match="protocol"):
                server.send([bytes(60_000)], 0)

    def test_pages_without_seals_are_refused(self, listener: Listener) -> None:
        with pytest.raises(ConnectionResetError):
            EvilClient(path_of(listener), sealed=False)
        assert listener.stats()["rejected"] == 1
        meet(listener)

    @pytest.mark.parametrize(
        "packet", [b"x", b"\0" * 40, handshake.MAGIC, b"GET / HTTP/1.1\r\n\r\n", bytes(handshake.MAX_PACKET_BYTES + 10)]
    )
    def test_bytes_that_are_no_hello(self, listener: Listener, packet: bytes) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stranger:
            stranger.settimeout(PATIENCE_S)
            stranger.connect(path_of(listener))
            stranger.send(packet)
            assert hung_up(stranger)
        meet(listener)

    def test_a_hello_of_another_version_learns_ours(self, listener: Listener) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stranger:
            stranger.settimeout(PATIENCE_S)
            stranger.connect(path_of(listener))
            stranger.send(handshake.Hello(99, 0, NO_NONCE, b"").pack())
            verdict = handshake.Verdict.unpack(stranger.recv(1000))
        assert (verdict.status, verdict.version) == (handshake.INCOMPATIBLE, handshake.VERSION)

    def test_a_guest_that_says_nothing_is_sent_away(self, listener: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(shm_listener, "HANDSHAKE_SECONDS", 0.1)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stranger:
            stranger.settimeout(PATIENCE_S)
            stranger.connect(path_of(listener))
            assert stranger.recv(1000) == b""

    def test_a_silent_listener_is_a_timeout(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as silent:
            silent.bind(socket_name("silent-test"))
            silent.listen()
            with pytest.raises(TimeoutError, match="did not answer"):
                transports.connect("shm://silent-test", timeout=0.1)

    def test_a_listener_that_hangs_up_is_a_refusal(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as rude:
            rude.bind(socket_name("rude-test"))
            rude.listen()
            hang_up = threading.Thread(target=lambda: rude.accept()[0].close())
            hang_up.start()
            with pytest.raises(ConnectionRefused, match="during the handshake"):
                transports.connect("shm://rude-test", timeout=PATIENCE_S)
            hang_up.join()


@pytest.mark.parametrize("scenario", fork_scenarios.ALL)
def test_fork(scenario: str) -> None:
    """In a program of its own, since this one has threads."""
    subprocess.run([sys.executable, "-m", "tests.transports.fork_scenarios", scenario], check=True, timeout=60)
