"""The contract that every transport keeps: it moves lists of buffers and never knows what they mean.

The language-neutral half (C sources, wire and memory specs) lies in the folder `transports/` at the root of the repository.

A *message* is a list of up to `MAX_PARTS` buffers. Boundaries are kept: what was sent as three parts arrives as three.
A transport delivers each message once, whole and in order, or reports that the connection ended. Beside messages there are
*topics*, numbered 0..MAX_TOPICS-1: a listener publishes the newest value, each subscriber sees the newest and may miss older
ones, and one that joins late gets the newest at once. The value of a topic arrives through `recv` like any other message.

`edgeml_ipc.testing` has the suite that a transport must pass.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from edgeml_ipc.errors import EdgeMLError

if TYPE_CHECKING:
    from edgeml_ipc.security import Keys

# Anything that exports a C-contiguous buffer. Python 3.12 has a name for it, 3.11 has not.
Buffer: TypeAlias = Any
Parts: TypeAlias = Sequence[Buffer]
Shorten: TypeAlias = Callable[[Parts], Parts]

MAX_PARTS = 16384
MAX_TOPICS = 16
MAX_HELLO_BYTES = 64 * 1024


class HandshakeRejected(EdgeMLError):
    """The listener's `welcome` refused this client; `payload` is its reason, for the layer above to read."""

    def __init__(self, payload: bytes) -> None:
        super().__init__("the server rejected the handshake")
        self.payload = payload


Welcome: TypeAlias = Callable[[bytes], bytes]


@dataclass(frozen=True)
class Options:
    """What both sides of a transport may be told; each transport uses what concerns it.

    Attributes:
        max_message_bytes: sum over the parts of one message, past which `send` and `publish` raise `MessageTooLarge` and
            an incoming message ends its connection.
        ring_bytes: capacity of each shared-memory ring; a power of two. Messages over a quarter of it travel in slots.
        slot_budget_bytes: shared memory that one sender may hold in slots, per connection and for topics.
        keys: CURVE keys (tcp only); None means no encryption.
        insecure: allow listening beyond loopback without keys.
    """

    max_message_bytes: int = 1 << 30
    ring_bytes: int = 1 << 18
    slot_budget_bytes: int = 1 << 31
    keys: Keys | None = None
    insecure: bool = False

    def __post_init__(self) -> None:
        """Raise ValueError for what no transport can use: here, not when the first client comes."""
        if not 4096 <= self.ring_bytes <= 1 << 30 or self.ring_bytes & (self.ring_bytes - 1):
            raise ValueError(f"ring_bytes must be a power of two from 4096 to 2**30, not {self.ring_bytes}")


class Connection(ABC):
    """One established connection, seen from one of its ends.

    One thread may send while another receives; two threads must not send, or receive, at the same time.
    `close` may be called by any thread at any time.
    """

    transport: str  # "shm", "tcp", "inproc"
    address: str
    hello: bytes = b""  # what the connecting side said; set on the listener's end
    welcome: bytes = b""  # what the listener answered; set on the connecting end

    @property
    @abstractmethod
    def closed(self) -> bool:
        """True once this end was closed, or the other end's death was noticed."""

    @abstractmethod
    def send(self, parts: Parts, timeout: float) -> None:
        """Send one message; when this returns, the parts may be changed by their owner.

        Args:
            parts: C-contiguous buffers, at least one.
            timeout: seconds to wait for room; 0 means do not wait.
        Raises:
            MessageTooLarge: over `max_message_bytes` or `MAX_PARTS`; nothing was sent.
            BufferFull: no room, and `timeout` was 0; nothing was sent.
            TimeoutError: no room within `timeout`; nothing was sent.
            PeerDied: the other end is gone. ConnectionClosed: this end is.
        """

    def lend(self, parts: Parts, timeout: float) -> None:
        """As `send`, but the parts must not change until their receiver has answered, or `reclaim` has returned.

        So a transport need not copy them first. What was lent arrives as it was, and whole, or not at all. A transport that
        copies anyway inherits both methods.
        """
        self.send(parts, timeout)

    def reclaim(self) -> bool:
        """Take back what was lent: when this returns, its owner may change it. By the thread that lends; also after `close`.

        Returns:
            False if some of it had not left yet, which ended the connection.
        """
        return True

    @abstractmethod
    def recv(self, timeout: float | None) -> list[Buffer]:
        """Wait for the next message or topic value. For the connecting end only: a listener's end is read by `poll`.

        Args:
            timeout: seconds; 0 means do not wait, None means without end.
        Returns:
            The parts, read-only. They stay valid as long as they, or anything made on them, are referenced, also after `close`.
        Raises:
            TimeoutError: nothing came. PeerDied: the other end is gone, and everything that it had sent was delivered before.
            ConnectionClosed: this end was closed, perhaps by another thread during the wait.
        """

    @abstractmethod
    def close(self) -> None:
        """End the connection. Idempotent."""

    @abstractmethod
    def stats(self) -> dict[str, int]:
        """Plain counters: at least messages_sent, messages_received, bytes_sent, bytes_received."""

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Listener(ABC):
    """The serving end of one address: it accepts connections and reads from all of them, fairly.

    Handshakes are answered by threads of the listener's own, so also while the caller of `poll` is busy elsewhere.
    """

    address: str  # canonical, with the port that the system chose
    port: int  # 0 where there is none

    @abstractmethod
    def poll(self, timeout: float | None) -> list[tuple[Connection, list[Buffer] | None]]:
        """Wait for messages. One thread at a time.

        Args:
            timeout: seconds; 0 means do not wait, None means without end.
        Returns:
            (connection, parts) for each message, at most a few per connection so that none starves the others, and
            (connection, None) once for each connection that ended, after its last message. Empty after a timeout or `wake`.
            Parts are as in `Connection.recv`.
        Raises:
            ConnectionClosed: the listener was closed, perhaps by another thread during the wait.
        """

    @abstractmethod
    def publish(self, topic: int, parts: Parts, shorten: Shorten | None = None) -> None:
        """Make `parts` the newest value of `topic`. Any thread. Never waits for a subscriber; the parts are copied.

        Args:
            shorten: makes of the parts what subscribers behind a network get in their place. It is called at most once for a
                value, only once such a subscriber waits for it, and not on the caller's thread. A transport within one
                machine ignores it.
        Raises:
            MessageTooLarge: over `max_message_bytes` or `MAX_PARTS`. BufferFull: the slot budget cannot hold even this value.
        """

    @abstractmethod
    def wake(self) -> None:
        """Make a `poll` that waits return at once, or the next one not wait. Any thread."""

    @abstractmethod
    def close(self) -> None:
        """Stop listening and end all connections. Idempotent, any thread."""

    @abstractmethod
    def stats(self) -> dict[str, int]:
        """Plain counters: at least connections, accepted, rejected, messages_received, bytes_received, publishes."""

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Transport(ABC):
    """A way to reach a listener, named by the scheme of its addresses. Stateless; found by `edgeml_ipc.transports`."""

    scheme: str

    @abstractmethod
    def connect(self, address: str, *, hello: bytes, topics: Sequence[int], timeout: float, options: Options) -> Connection:
        """Connect, show `hello`, and subscribe to `topics`.

        Raises:
            ConnectionRefused: nothing listens. TimeoutError: something listens and did not answer within `timeout` seconds.
            HandshakeRejected: `welcome` refused. IncompatiblePeer: another protocol or version answers.
            AuthenticationError: keys or users do not match. TransportUnavailable: not usable here.
        """

    @abstractmethod
    def listen(self, address: str, *, welcome: Welcome, options: Options) -> Listener:
        """Listen at `address` (port 0: the system chooses).

        Args:
            welcome: called with each client's `hello`, on a thread of the listener's; returns the answer, or raises
                `HandshakeRejected`. Must be quick and thread-safe.
        Raises:
            AddressInUse: another server listens there. TransportUnavailable: not usable here.
        """
