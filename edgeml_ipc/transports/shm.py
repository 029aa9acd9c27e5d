"""Shared memory between the processes of one host and one user: `shm://name`.

A connection is a socket and a few sealed memfds; nothing has a name in a file system, so nothing can be left behind. Rings,
slots and waiting are the C core's (`transports/` at the root of the repository, with their specification in `SHM.md`).
"""

from __future__ import annotations

import builtins
import os
import socket
import struct
from collections.abc import Iterable, Sequence

from edgeml_ipc._deadline import Deadline
from edgeml_ipc.errors import (
    AuthenticationError,
    ConnectionRefused,
    EdgeMLError,
    IncompatiblePeer,
    TimeoutError,
)
from edgeml_ipc.transports import _shm_handshake as handshake
from edgeml_ipc.transports._shm_ends import NO_NONCE, ShmEnd, _core, new_link
from edgeml_ipc.transports.base import (
    MAX_HELLO_BYTES,
    MAX_TOPICS,
    Buffer,
    Connection,
    HandshakeRejected,
    Listener,
    Options,
    Transport,
    Welcome,
)
from edgeml_ipc.transports.shm_listener import ShmListener


def socket_name(name: str) -> str:
    """Return the abstract socket that stands for `shm://name`; users do not share names."""
    if not name or len(name) > 80 or "\0" in name:
        raise ValueError(f"shm://{name!r}: a name has 1 to 80 characters")
    return f"\0edgeml_ipc/{os.getuid()}/{name}"


def topic_bits(topics: Iterable[int]) -> int:
    """Return topics as a bit set. Raises ValueError for numbers past MAX_TOPICS."""
    bits = 0
    for topic in topics:
        if not 0 <= topic < MAX_TOPICS:
            raise ValueError(f"topic must be 0 to {MAX_TOPICS - 1}, not {topic}")
        bits |= 1 << topic
    return bits


class ShmConnection(ShmEnd):
    """The connecting end: it has a waiter of its own."""

    def __init__(self, address: str, link: _core.Link, waiter: _core.Waiter, welcome: bytes) -> None:
        super().__init__(address, link)
        self.welcome = welcome
        self._waiter: _core.Waiter | None = waiter
        waiter.add(link)

    def recv(self, timeout: float | None) -> list[Buffer]:
        """See `Connection.recv`."""
        waiter = self._waiter
        if waiter is None:
            raise self._why_ended()
        event = waiter.recv(timeout)
        if type(event) is tuple and event[1] is not None:
            return event[1]
        if event is False:
            raise TimeoutError(f"{self.address}: nothing came within {timeout} s; the peer is alive")
        self._waiter = None  # no message, no timeout: the link ended, and its waiter has nothing else to tell
        raise self._why_ended()

    def _why_ended(self) -> EdgeMLError:
        link = self._link
        if link is not None:
            try:
                link.check()
            except EdgeMLError as error:
                return error
        return self._closed_here()

    def close(self) -> None:
        """See `Connection.close`."""
        self._let_go()
        self._waiter = None  # a thread that waits in it holds it until it has noticed

    def stats(self) -> dict[str, int]:
        """Return the counters of both directions, and of waiting."""
        waiter = self._waiter
        return {**super().stats(), **(waiter.stats() if waiter is not None else {})}


def _left(deadline: Deadline) -> float:
    return max(deadline.remaining() or 0.0, 1e-3)  # 0 would mean: do not block


def _is_connected(sock: socket.socket) -> bool:
    """Tell a connection from a wait that a signal ended, which Python (3.11 to 3.14) takes for one."""
    try:
        sock.getpeername()
    except OSError:
        return False
    return True


def connect_socket(path: str, address: str, timeout: float) -> socket.socket:
    """Connect to a listener's abstract socket and check that its user is ours. Raises as `Transport.connect`."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        # A listener whose backlog is full makes connect wait; Python's own timeout would turn that into an error at once.
        deadline = Deadline(timeout)
        connected = False
        while not connected:
            seconds = _left(deadline)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(seconds), int(seconds % 1 * 1e6)))
            sock.connect(path)
            connected = _is_connected(sock)
        sock.settimeout(_left(deadline))
        if handshake.peer_uid(sock) != os.getuid():
            raise AuthenticationError(f"{address}: the server runs as another user (uid {handshake.peer_uid(sock)})")
    except BlockingIOError as error:
        sock.close()
        raise TimeoutError(f"{address}: the server did not accept within {timeout} s") from error
    except ConnectionRefusedError as error:
        sock.close()
        raise ConnectionRefused(f"{address}: nothing listens there in this network namespace") from error
    except EdgeMLError:
        sock.close()
        raise
    return sock


def _exchange(
    sock: socket.socket, link: _core.Link, waiter: _core.Waiter, address: str, message: handshake.Hello, deadline: Deadline
) -> bytes:
    """Run the client's half of the handshake; return the server's answer."""
    sock.settimeout(_left(deadline))
    handshake.send_packet(sock, message.pack(), [link.endpoint_fd(), waiter.board_fd()])
    packet, fds = handshake.recv_packet(sock)
    try:
        if not packet:
            raise ConnectionRefused(f"{address}: the listener ended, or sent us away, during the handshake")
        verdict = handshake.Verdict.unpack(packet)
        if verdict.status == handshake.REJECTED:
            raise HandshakeRejected(verdict.payload)
        if verdict.status != handshake.OK or verdict.version != handshake.VERSION or len(fds) != 2:
            raise IncompatiblePeer(
                f"{address}: the server speaks version {verdict.version} of the shared-memory handshake and answered "
                f"{verdict.status}; this side speaks version {handshake.VERSION}"
            )
        theirs = link.attach(fds.pop(0), fds.pop(0), handshake.peer_pidfd(sock), message.topics)
    finally:
        handshake.close_fds(fds)
    if verdict.challenge != link.challenge():
        raise IncompatiblePeer(f"{address}: the server read other bytes in our page than we wrote")
    sock.settimeout(_left(deadline))
    handshake.send_packet(sock, theirs)
    if handshake.recv_packet(sock)[0] != handshake.READY:
        raise IncompatiblePeer(f"{address}: the server could not prove that it shares memory with this process")
    return verdict.payload


def connect(
    path: str, address: str, *, hello: bytes, topics: Sequence[int], timeout: float, options: Options, nonce: bytes
) -> ShmConnection:
    """Connect to the listener at the abstract socket `path`, showing `nonce`; raises as `Transport.connect`."""
    if len(hello) > MAX_HELLO_BYTES:
        raise ValueError(f"hello has {len(hello)} bytes; the limit is {MAX_HELLO_BYTES}")
    deadline = Deadline(timeout)
    message = handshake.Hello(handshake.VERSION, topic_bits(topics), nonce, hello)
    sock = connect_socket(path, address, timeout)
    waiter = _core.Waiter()
    with sock:
        link = new_link(waiter, sock, options, address)
        try:
            welcome = _exchange(sock, link, waiter, address, message, deadline)
            return ShmConnection(address, link, waiter, welcome)
        except builtins.TimeoutError as error:
            link.close()
            raise TimeoutError(f"{address}: something listens there and did not answer within {timeout} s") from error
        except (ConnectionResetError, BrokenPipeError) as error:
            link.close()
            raise ConnectionRefused(f"{address}: the listener ended, or sent us away, during the handshake") from error
        except handshake.MalformedPacket as error:
            link.close()
            raise IncompatiblePeer(f"{address}: what listens there does not speak this protocol: {error}") from error
        except EdgeMLError:
            link.close()
            raise


class ShmTransport(Transport):
    """`shm://name`: an abstract socket in the network namespace; only the same user may connect."""

    scheme = "shm"

    def connect(self, address: str, *, hello: bytes, topics: Sequence[int], timeout: float, options: Options) -> Connection:
        """See `Transport.connect`."""
        name = address.removeprefix("shm://")
        return connect(socket_name(name), address, hello=hello, topics=topics, timeout=timeout, options=options, nonce=NO_NONCE)

    def listen(self, address: str, *, welcome: Welcome, options: Options) -> Listener:
        """See `Transport.listen`."""
        name = address.removeprefix("shm://")
        return ShmListener(address, socket_name(name), welcome=welcome, options=options)
