"""The listening end of shared memory: a reception thread that shakes hands, and one waiter that reads all connections."""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import socket
import threading
import time
from collections import deque
from dataclasses import dataclass, field

from edgeml_ipc.errors import AddressInUse, ConnectionClosed, EdgeMLError, MessageTooLarge
from edgeml_ipc.transports import _shm_handshake as handshake
from edgeml_ipc.transports._shm_ends import NO_NONCE, ShmServerConnection, _core, new_link
from edgeml_ipc.transports.base import (
    MAX_TOPICS,
    Buffer,
    Connection,
    HandshakeRejected,
    Listener,
    Options,
    Parts,
    Shorten,
    Welcome,
)

_LOG = logging.getLogger(__name__)
HANDSHAKE_SECONDS = 5.0  # that a client may take for its side of a handshake
SECONDS_WITHOUT_DESCRIPTORS = 0.05  # until the next look
MAX_GUESTS = 64  # clients that shake hands at one time; more wait in the socket's backlog
EVENTS_PER_POLL = 64


@dataclass
class _Guest:
    """A client in the middle of its handshake."""

    sock: socket.socket
    deadline: float
    connection: ShmServerConnection | None = None  # once HELLO was answered; PROOF is awaited
    expected_proof: bytes = b""


@dataclass
class _Counters:
    accepted: int = 0
    rejected: int = 0
    ended: int = 0
    publishes: int = 0
    bytes_published: int = 0
    messages_received: int = 0
    bytes_received_by_ended: int = 0


@dataclass
class _Published:
    """The topics, and the lock under which they are published and subscribed to."""

    lock: threading.RLock = field(default_factory=threading.RLock)  # again by a signal handler that closes
    topics: dict[int, _core.Topic] = field(default_factory=dict)


class ShmListener(Listener):
    """Listens at an abstract socket; `nonce` must be shown by clients, if given.

    Threads: `poll` belongs to one thread; `publish`, `wake`, `close` and `stats` to any.
    """

    port = 0

    def __init__(
        self, address: str, path: str, *, welcome: Welcome, options: Options, nonce: bytes = NO_NONCE, watch_fd: int = -1
    ) -> None:
        self.address = address
        self._welcome = welcome
        self._options = options
        self._nonce = nonce
        self._waiter = _core.Waiter()
        if watch_fd >= 0:
            self._waiter.watch(watch_fd)
        self._connections: dict[_core.Link, ShmServerConnection] = {}
        self._arrived: deque[ShmServerConnection] = deque()
        self._published = _Published()
        self._count = _Counters()
        self._closed = False
        self._closing = threading.Lock()  # taken by the first close, for ever
        self._woken = False
        self._polling = threading.Lock()
        self._poller = 0  # the thread that is in poll_once
        self._process = os.getpid()
        self._door_shut_until = 0.0
        self._socket = self._bind(path)
        self._stop_reader, self._stop_writer = os.pipe()
        self._reception = threading.Thread(target=self._receive_guests, name=f"reception {address}", daemon=True)
        self._reception.start()

    def _bind(self, path: str) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        try:
            sock.bind(path)
            sock.listen(128)
        except OSError as error:
            sock.close()
            raise AddressInUse(f"{self.address}: another process of this user listens there") from error
        return sock

    # ---- the thread of the caller of poll

    def poll(self, timeout: float | None) -> list[tuple[Connection, list[Buffer] | None]]:
        """See `Listener.poll`."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            events = self.poll_once(timeout)
            if events or self.was_woken():
                return events
            if deadline is not None:
                timeout = deadline - time.monotonic()
                if timeout <= 0:
                    return events

    def was_woken(self) -> bool:
        """Say, once, whether `wake` was called."""
        woken, self._woken = self._woken, False
        return woken

    def poll_once(self, timeout: float | None) -> list[tuple[Connection, list[Buffer] | None]]:
        """As `poll`, but return with nothing also for a new connection, and when the watched descriptor is readable."""
        self._poller = threading.get_ident()
        try:
            with self._polling:
                if self._arrived:
                    self._adopt()
                events = [] if self._closed else self._waiter.recv_many(timeout, EVENTS_PER_POLL)
                if events:
                    return self._name_connections(events)
                if self._closed:
                    raise ConnectionClosed(f"{self.address}: this listener was closed")
                return []
        finally:
            self._poller = 0
            if self._closed:
                self._end_connections()

    def _name_connections(
        self, events: list[tuple[_core.Link, list[Buffer] | None]]
    ) -> list[tuple[Connection, list[Buffer] | None]]:
        connections = self._connections
        if len(events) == 1 and (parts_of_one := events[0][1]) is not None:
            return [(connections[events[0][0]], parts_of_one)]
        result: list[tuple[Connection, list[Buffer] | None]] = [(connections[link], parts) for link, parts in events]
        for link, parts in events:
            if parts is None:
                self._forget(connections[link])
        return result

    def _adopt(self) -> None:
        """Take over what the reception thread has let in."""
        while self._arrived:
            connection = self._arrived.popleft()
            if self._closed:
                connection.release()
                continue
            self._connections[connection.link] = connection
            self._waiter.add(connection.link)

    def _forget(self, connection: ShmServerConnection) -> None:
        del self._connections[connection.link]
        counters = connection.link.stats()
        self._count.ended += 1
        self._count.messages_received += counters["messages_received"]
        self._count.bytes_received_by_ended += counters["bytes_received"]
        if connection.topics:
            with self._published.lock:
                for topic in self._published.topics.values():
                    topic.remove(connection.link)
        connection.release()

    # ---- any thread

    def publish(self, topic: int, parts: Parts, shorten: Shorten | None = None) -> None:
        """See `Listener.publish`."""
        self._publish(topic, parts, hold=False)

    def publish_and_hold(self, topic: int, parts: Parts) -> list[Buffer] | None:
        """Publish, and return the value as read-only views on the slot; None if too many earlier ones are still held."""
        return self._publish(topic, parts, hold=True)

    def _publish(self, topic: int, parts: Parts, *, hold: bool) -> list[Buffer] | None:
        parts = parts if isinstance(parts, list | tuple) else list(parts)
        total_bytes = sum(memoryview(part).nbytes for part in parts)
        if total_bytes > self._options.max_message_bytes:
            raise MessageTooLarge(
                f"{self.address}: a value of {total_bytes} bytes is over the limit of {self._options.max_message_bytes}"
            )
        with self._published.lock:
            if self._closed:
                raise ConnectionClosed(f"{self.address}: this listener was closed")
            publisher = self._topic(topic)
            publisher.publish(parts)
            self._count.publishes += 1
            self._count.bytes_published += total_bytes
            return publisher.hold() if hold else None

    def _topic(self, index: int) -> _core.Topic:
        if index not in self._published.topics:
            self._published.topics[index] = _core.Topic(self._waiter, index, self._options.slot_budget_bytes)
        return self._published.topics[index]

    def wake(self) -> None:
        """See `Listener.wake`."""
        self._woken = True
        self._waiter.wake()

    def close(self) -> None:
        """See `Listener.close`."""
        if os.getpid() != self._process:  # a forked child: pipe, waiter and locks are the parent's, perhaps held by its threads
            self._closed = True
            self._socket.close()
            return
        if not self._closing.acquire(blocking=False):
            return
        self._closed = True
        os.write(self._stop_writer, b"x")
        os.close(self._stop_writer)
        if threading.current_thread() is not self._reception:
            self._reception.join()
        self._waiter.wake()
        # A signal handler may close in the midst of its thread's poll, which then ends the connections as it leaves.
        if self._poller != threading.get_ident():
            self._end_connections()

    def _end_connections(self) -> None:
        with self._polling:  # whoever waits in poll has left it, or is about to find the listener closed
            self._adopt()
            for connection in list(self._connections.values()):
                self._waiter.remove(connection.link)
                self._forget(connection)
            with self._published.lock:
                self._published.topics.clear()

    def stats(self) -> dict[str, int]:
        """Return counters; those of each connection are its own."""
        live = [c.stats() for c in list(self._connections.values())]
        with self._published.lock:
            topics = [topic.stats() for topic in list(self._published.topics.values())]
        return {
            "connections": len(live),
            "accepted": self._count.accepted,
            "rejected": self._count.rejected,
            "ended": self._count.ended,
            "messages_received": self._count.messages_received + sum(s["messages_received"] for s in live),
            "bytes_received": self._count.bytes_received_by_ended + sum(s["bytes_received"] for s in live),
            "publishes": self._count.publishes,
            "bytes_published": self._count.bytes_published,
            "subscribers": sum(t["subscribers"] for t in topics),
            "slot_bytes": sum(s["slot_bytes"] for s in live) + sum(t["slot_bytes"] for t in topics),
            "ring_used_bytes": sum(s["ring_used_bytes"] for s in live),
            "ring_capacity_bytes": sum(s["ring_capacity_bytes"] for s in live),
            **self._waiter.stats(),
        }

    # ---- the reception thread

    def _receive_guests(self) -> None:
        with selectors.DefaultSelector() as selector, self._socket, os.fdopen(self._stop_reader):
            selector.register(self._stop_reader, selectors.EVENT_READ, "stop")
            guests: dict[int, _Guest] = {}
            while True:
                self._mind_door(selector, len(guests))
                deadlines = [guest.deadline for guest in guests.values()]
                if self._door_shut_until:
                    deadlines.append(self._door_shut_until)
                first = min(deadlines, default=None)
                events = selector.select(None if first is None else max(first - time.monotonic(), 0))
                if any(key.data == "stop" for key, _ in events):
                    break
                for key, _ in events:
                    if key.data == "door":
                        self._open_door(selector, guests)
                    elif not self._hear(guests[key.fd]):
                        self._dismiss(selector, guests, key.fd)
                for fd in [fd for fd, guest in guests.items() if guest.deadline <= time.monotonic()]:
                    self._dismiss(selector, guests, fd)
            for fd in list(guests):
                self._dismiss(selector, guests, fd)

    def _open_door(self, selector: selectors.BaseSelector, guests: dict[int, _Guest]) -> None:
        try:
            sock, _ = self._socket.accept()
        except (BlockingIOError, ConnectionError):
            return
        except OSError as error:  # no descriptor is left, perhaps only for now
            _LOG.error("%s: no client can be let in: %s", self.address, error)
            self._door_shut_until = time.monotonic() + SECONDS_WITHOUT_DESCRIPTORS
            return
        sock.setblocking(False)
        if handshake.peer_uid(sock) != os.getuid():
            self._count.rejected += 1
            sock.close()
            return
        guests[sock.fileno()] = _Guest(sock, time.monotonic() + HANDSHAKE_SECONDS)
        selector.register(sock, selectors.EVENT_READ)

    def _mind_door(self, selector: selectors.BaseSelector, guests: int) -> None:
        """While as many guests as may be are here, others wait outside, in the backlog."""
        if self._door_shut_until <= time.monotonic():
            self._door_shut_until = 0.0
        may_open = guests < MAX_GUESTS and not self._door_shut_until
        is_open = self._socket in selector.get_map()
        if is_open and not may_open:
            selector.unregister(self._socket)
        elif may_open and not is_open:
            selector.register(self._socket, selectors.EVENT_READ, "door")

    def _dismiss(self, selector: selectors.BaseSelector, guests: dict[int, _Guest], fd: int) -> None:
        """The handshake of that guest is over. One that was let in lives on in its link's own copy of the socket."""
        guest = guests.pop(fd)
        selector.unregister(guest.sock)
        guest.sock.close()
        if guest.connection is not None:
            guest.connection.close()

    def _hear(self, guest: _Guest) -> bool:
        """Take one packet of a guest; False when its handshake is over, whether it was let in or not."""
        fds: list[int] = []
        try:
            packet, fds = handshake.recv_packet(guest.sock)
            if guest.connection is None:
                return self._answer(guest, packet, fds)
            if packet == guest.expected_proof:
                self._let_in(guest)
                return False
        except BlockingIOError:
            return True
        except (handshake.MalformedPacket, EdgeMLError, OSError):
            pass  # counted below: a guest that does not keep the protocol is sent away
        finally:
            handshake.close_fds(fds)
        self._count.rejected += 1
        return False

    def _answer(self, guest: _Guest, packet: bytes, fds: list[int]) -> bool:
        hello = handshake.Hello.unpack(packet)
        if hello.version != handshake.VERSION:
            return self._refuse(guest, handshake.INCOMPATIBLE, b"")
        if hello.nonce != self._nonce or hello.topics >> MAX_TOPICS or len(fds) != 2:
            return self._refuse(guest, handshake.WRONG_NONCE, b"")
        try:
            answer = self._welcome(hello.hello)
        except HandshakeRejected as rejection:
            return self._refuse(guest, handshake.REJECTED, rejection.payload)
        except Exception:  # noqa: BLE001 - a user's callback must not end the reception of all others
            _LOG.exception("%s: `welcome` failed, and its client was sent away", self.address)
            self._count.rejected += 1
            return False
        link = new_link(self._waiter, guest.sock, self._options, self.address)
        pidfd = handshake.peer_pidfd(guest.sock)
        theirs = link.attach(fds.pop(0), fds.pop(0), pidfd, 0)
        guest.connection = ShmServerConnection(self.address, link, hello.hello, hello.topics)
        guest.expected_proof = link.challenge()
        verdict = handshake.Verdict(handshake.OK, theirs, answer)
        handshake.send_packet(guest.sock, verdict.pack(), [link.endpoint_fd(), self._waiter.board_fd()])
        return True

    def _refuse(self, guest: _Guest, status: int, payload: bytes) -> bool:
        self._count.rejected += 1
        with contextlib.suppress(OSError):
            handshake.send_packet(guest.sock, handshake.Verdict(status, bytes(handshake.CHALLENGE_BYTES), payload).pack())
        return False

    def _let_in(self, guest: _Guest) -> None:
        connection = guest.connection
        assert connection is not None
        if self._closed:  # by `welcome`, on this thread
            raise ConnectionClosed(f"{self.address}: this listener was closed")
        handshake.send_packet(guest.sock, handshake.READY)
        if connection.topics:
            self._subscribe(connection)
        guest.connection = None  # it stays when the guest is dismissed
        self._count.accepted += 1
        self._arrived.append(connection)
        self._waiter.wake()

    def _subscribe(self, connection: ShmServerConnection) -> None:
        with self._published.lock:
            try:
                for topic in range(MAX_TOPICS):
                    if connection.topics >> topic & 1:
                        self._topic(topic).add(connection.link)
                connection.link.open_topics()
            except EdgeMLError:
                for publisher in self._published.topics.values():
                    publisher.remove(connection.link)
                raise
