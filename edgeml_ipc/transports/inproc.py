"""`inproc://name`: the same contract between threads of one process, over deques.

A message is copied once, when it is sent. Each receiving side has one condition variable: a connecting end its own, a listener
one for all of its connections. `welcome` runs on the connecting thread, so it is answered whatever the polling thread does.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence

from edgeml_ipc.errors import (
    AddressInUse,
    BufferFull,
    ConnectionClosed,
    ConnectionRefused,
    MessageTooLarge,
    PeerDied,
    TimeoutError,
)
from edgeml_ipc.transports.base import (
    MAX_HELLO_BYTES,
    MAX_PARTS,
    MAX_TOPICS,
    Buffer,
    Connection,
    HandshakeRejected,
    Listener,
    Options,
    Parts,
    Shorten,
    Transport,
    Welcome,
)

MAX_QUEUED_MESSAGES = 1024
_MESSAGES_PER_TURN = 8

_listeners: dict[str, InprocListener] = {}
_registry_lock = threading.Lock()


def _copy(parts: Parts, options: Options, address: str) -> tuple[list[Buffer], int]:
    """Return the parts as immutable bytes, and their sum in bytes."""
    if not parts or len(parts) > MAX_PARTS:
        raise MessageTooLarge(f"{address}: a message has 1 to {MAX_PARTS} parts, this one has {len(parts)}")
    total_bytes = 0
    for part in parts:
        total_bytes += len(part) if type(part) is bytes else memoryview(part).nbytes
    if total_bytes > options.max_message_bytes:
        raise MessageTooLarge(f"{address}: message of {total_bytes} bytes, the limit is {options.max_message_bytes}")
    return [part if type(part) is bytes else memoryview(part).tobytes() for part in parts], total_bytes


class _Pipe:
    """One direction of a connection. Everything in it is guarded by `ready`, the receiving side's condition.

    `sender_left` still lets what is queued be received; `receiver_left` drops it.
    """

    def __init__(self, ready: threading.Condition, options: Options) -> None:
        self.ready = ready
        self.options = options  # of the receiving side
        self.messages: deque[tuple[list[Buffer], int]] = deque()
        self.queued_bytes = 0
        self.topics: dict[int, tuple[list[Buffer], int]] = {}
        self.sender_left = False
        self.receiver_left = False
        self.received = 0
        self.received_bytes = 0
        self.senders_waiting = 0

    def has_room(self, total_bytes: int) -> bool:
        if not self.messages:
            return True
        return len(self.messages) < MAX_QUEUED_MESSAGES and self.queued_bytes + total_bytes <= self.options.slot_budget_bytes

    def take(self) -> list[Buffer] | None:
        """Remove the next message, or the newest value of a topic, or return None."""
        if self.messages:
            parts, total_bytes = self.messages.popleft()
            self.queued_bytes -= total_bytes
            if self.senders_waiting:
                self.ready.notify_all()
        elif self.topics:
            parts, total_bytes = self.topics.pop(next(iter(self.topics)))
        else:
            return None
        self.received += 1
        self.received_bytes += total_bytes
        return parts


class InprocConnection(Connection):
    """One end of a connection within this process."""

    transport = "inproc"

    def __init__(
        self, address: str, incoming: _Pipe, outgoing: _Pipe, options: Options, listener: InprocListener | None
    ) -> None:
        self.address = address
        self._incoming = incoming
        self._outgoing = outgoing
        self._options = options
        self._listener = listener  # on the listener's end: whom an incoming message concerns
        self._sent = 0
        self._sent_bytes = 0
        self._closed = False
        self.peer: InprocConnection | None = None

    @property
    def closed(self) -> bool:
        return self._closed or self._incoming.sender_left

    def send(self, parts: Parts, timeout: float) -> None:
        copied, total_bytes = _copy(parts, self._options, self.address)
        pipe = self._outgoing
        with pipe.ready:
            if total_bytes > pipe.options.max_message_bytes:
                self._raise_if_gone()
                over_limit = True
            else:
                over_limit = False
                if not pipe.has_room(total_bytes):
                    self._wait_for_room(total_bytes, timeout)
                self._raise_if_gone()
                pipe.messages.append((copied, total_bytes))
                pipe.queued_bytes += total_bytes
                self._sent += 1
                self._sent_bytes += total_bytes
                self._tell_receiver()
        if over_limit and self.peer is not None:  # for the receiving side: it closes a connection that brings such a message
            self.peer.close()

    def _wait_for_room(self, total_bytes: int, timeout: float) -> None:
        pipe = self._outgoing
        if timeout <= 0:
            self._raise_if_gone()
            raise BufferFull(f"{self.address}: {len(pipe.messages)} messages, {pipe.queued_bytes} bytes are not yet received")
        pipe.senders_waiting += 1
        try:
            done = pipe.ready.wait_for(lambda: self._gone() or pipe.has_room(total_bytes), timeout)
        finally:
            pipe.senders_waiting -= 1
        if not done:
            raise TimeoutError(
                f"{self.address}: no room for {total_bytes} bytes within {timeout:.3f} s; the peer does not receive"
            )

    def _tell_receiver(self) -> None:
        """Wake the receiving side. Called with its condition held."""
        if self.peer is not None and self.peer._listener is not None:
            self.peer._listener._has_input(self.peer)
        self._outgoing.ready.notify_all()

    def _gone(self) -> bool:
        return self._closed or self._outgoing.receiver_left

    def _raise_if_gone(self) -> None:
        if self._closed:
            raise ConnectionClosed(f"{self.address}: this end was closed")
        if self._outgoing.receiver_left:
            raise PeerDied(f"{self.address}: the other end was closed")

    def recv(self, timeout: float | None) -> list[Buffer]:
        pipe = self._incoming
        deadline = None
        with pipe.ready:
            while True:
                if self._closed:
                    raise ConnectionClosed(f"{self.address}: this end was closed")
                parts = pipe.take()
                if parts is not None:
                    return parts
                if pipe.sender_left:
                    raise PeerDied(f"{self.address}: the other end was closed")
                if timeout is None:
                    pipe.ready.wait()
                    continue
                now = time.monotonic()
                deadline = now + timeout if deadline is None else deadline
                if now >= deadline:
                    raise TimeoutError(f"{self.address}: nothing received within {timeout:.3f} s")
                pipe.ready.wait(deadline - now)

    def close(self) -> None:
        with self._incoming.ready:
            self._closed = True
            self._incoming.receiver_left = True
            self._incoming.messages.clear()
            self._incoming.topics.clear()
            self._incoming.queued_bytes = 0
            if self._listener is not None:
                self._listener._has_input(self)
            self._incoming.ready.notify_all()
        with self._outgoing.ready:
            self._outgoing.sender_left = True
            self._tell_receiver()

    def stats(self) -> dict[str, int]:
        with self._incoming.ready:
            received, received_bytes = self._incoming.received, self._incoming.received_bytes
        return {
            "messages_sent": self._sent,
            "messages_received": received,
            "bytes_sent": self._sent_bytes,
            "bytes_received": received_bytes,
        }

    def _offer(self, topic: int, value: tuple[list[Buffer], int]) -> None:
        """Make `value` what this end's peer sees next of `topic`."""
        pipe = self._outgoing
        with pipe.ready:
            if not pipe.receiver_left and not pipe.sender_left and value[1] <= pipe.options.max_message_bytes:
                pipe.topics[topic] = value
                pipe.ready.notify_all()


class InprocListener(Listener):
    """The serving end of one name in this process."""

    port = 0

    def __init__(self, address: str, welcome: Welcome, options: Options) -> None:
        self.address = address
        self._welcome = welcome
        self._options = options
        self._ready = threading.Condition(threading.Lock())
        self._connections: dict[InprocConnection, frozenset[int]] = {}  # -> topics
        self._input: deque[InprocConnection] = deque()
        self._latest: dict[int, tuple[list[Buffer], int]] = {}
        self._publishing = threading.Lock()  # orders publishes and late joiners; taken before any condition
        self._woken = False
        self._closed = False
        self._accepted = self._rejected = self._received = self._received_bytes = self._publishes = 0

    def accept(self, address: str, hello: bytes, topics: Sequence[int], options: Options) -> InprocConnection:
        """Answer a handshake on the connecting thread and return the connecting end."""
        try:
            answer = self._welcome(hello)
        except HandshakeRejected:
            with self._ready:
                self._rejected += 1
            raise
        inward = _Pipe(self._ready, self._options)
        outward = _Pipe(threading.Condition(threading.Lock()), options)
        near = InprocConnection(address, outward, inward, options, None)
        far = InprocConnection(self.address, inward, outward, self._options, self)
        near.peer, far.peer = far, near
        near.welcome, far.hello = answer, hello
        with self._publishing:
            with self._ready:
                if self._closed:
                    raise ConnectionRefused(f"{address}: the server has just stopped listening")
                self._accepted += 1
                self._connections[far] = frozenset(topics)
            for topic in topics:
                if topic in self._latest:
                    far._offer(topic, self._latest[topic])
        return near

    def _has_input(self, connection: InprocConnection) -> None:
        """Note that `connection` has something to poll. Called with the condition held."""
        if connection in self._connections and connection not in self._input:
            self._input.append(connection)

    def poll(self, timeout: float | None) -> list[tuple[Connection, list[Buffer] | None]]:
        with self._ready:
            if not self._input and not self._woken and not self._closed and timeout != 0:
                self._ready.wait_for(lambda: self._input or self._woken or self._closed, timeout)
            if self._closed:
                raise ConnectionClosed(f"{self.address}: the listener was closed")
            self._woken = False
            found: list[tuple[Connection, list[Buffer] | None]] = []
            for _ in range(len(self._input)):
                connection = self._input.popleft()
                self._take_turn(connection, found)
            return found

    def _take_turn(self, connection: InprocConnection, found: list[tuple[Connection, list[Buffer] | None]]) -> None:
        pipe = connection._incoming
        for _ in range(_MESSAGES_PER_TURN):
            before = pipe.received_bytes
            parts = pipe.take()
            if parts is None:
                break
            self._received += 1
            self._received_bytes += pipe.received_bytes - before
            found.append((connection, parts))
        if pipe.messages:
            self._input.append(connection)
        elif pipe.sender_left or connection._closed:
            del self._connections[connection]
            found.append((connection, None))

    def publish(self, topic: int, parts: Parts, shorten: Shorten | None = None) -> None:
        if not 0 <= topic < MAX_TOPICS:
            raise ValueError(f"topic must be 0..{MAX_TOPICS - 1}, got {topic}")
        value = _copy(parts, self._options, self.address)
        with self._publishing:
            with self._ready:
                if self._closed:
                    raise ConnectionClosed(f"{self.address}: the listener was closed")
                self._publishes += 1
                subscribers = [end for end, topics in self._connections.items() if topic in topics]
            self._latest[topic] = value
            for end in subscribers:
                end._offer(topic, value)

    def wake(self) -> None:
        with self._ready:
            self._woken = True
            self._ready.notify_all()

    def close(self) -> None:
        with _registry_lock:
            if _listeners.get(self.address) is self:
                del _listeners[self.address]
        with self._ready:
            self._closed = True
            connections = list(self._connections)
            self._ready.notify_all()
        for connection in connections:
            connection.close()

    def stats(self) -> dict[str, int]:
        with self._ready:
            return {
                "connections": len(self._connections),
                "accepted": self._accepted,
                "rejected": self._rejected,
                "messages_received": self._received,
                "bytes_received": self._received_bytes,
                "publishes": self._publishes,
            }


class InprocTransport(Transport):
    """Reach a listener in this process by name."""

    scheme = "inproc"

    def connect(self, address: str, *, hello: bytes, topics: Sequence[int], timeout: float, options: Options) -> Connection:
        if len(hello) > MAX_HELLO_BYTES:
            raise MessageTooLarge(f"{address}: hello of {len(hello)} bytes, the limit is {MAX_HELLO_BYTES}")
        if any(not 0 <= topic < MAX_TOPICS for topic in topics):
            raise ValueError(f"topics must be 0..{MAX_TOPICS - 1}, got {list(topics)}")
        with _registry_lock:
            listener = _listeners.get(address)
        if listener is None:
            raise ConnectionRefused(f"{address}: refused, nothing in this process listens under that name")
        return listener.accept(address, hello, topics, options)

    def listen(self, address: str, *, welcome: Welcome, options: Options) -> Listener:
        listener = InprocListener(address, welcome, options)
        with _registry_lock:
            if address in _listeners:
                raise AddressInUse(f"{address}: another server in this process listens under that name")
            _listeners[address] = listener
        return listener
