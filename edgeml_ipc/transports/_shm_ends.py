"""The two ends of a shared-memory connection, as far as they are alike, and the end that a listener has."""

from __future__ import annotations

import os
import socket

from edgeml_ipc.errors import ConnectionClosed, TransportUnavailable
from edgeml_ipc.transports import _shm_handshake as handshake
from edgeml_ipc.transports.base import Buffer, Connection, Options, Parts

try:
    from edgeml_ipc.transports import _core
except ImportError as error:
    raise TransportUnavailable(
        f"shared memory needs the C core, which was not built here ({error}); reinstall with a C compiler, or use tcp"
    ) from error

__all__ = ["NO_NONCE", "ShmEnd", "ShmServerConnection", "_core", "new_link"]

NO_NONCE = bytes(handshake.NONCE_BYTES)


def new_link(waiter: _core.Waiter, sock: socket.socket, options: Options, label: str) -> _core.Link:
    """Make this side's endpoint for a connection over `sock`, which stays the caller's."""
    fd = os.dup(sock.fileno())
    try:
        return _core.Link(waiter, fd, options.ring_bytes, options.max_message_bytes, options.slot_budget_bytes, label)
    except ValueError:  # before it took the descriptor over
        os.close(fd)
        raise


class ShmEnd(Connection):
    """What both ends have: a link, until they are closed, which gives its memory back."""

    transport = "shm"

    def __init__(self, address: str, link: _core.Link) -> None:
        self.address = address
        self._link: _core.Link | None = link
        self._last_stats: dict[str, int] = {}

    @property
    def closed(self) -> bool:
        """True once this end was closed or the other's end was noticed."""
        link = self._link
        return link is None or not link.alive

    def send(self, parts: Parts, timeout: float) -> None:
        """See `Connection.send`."""
        link = self._link
        if link is None:
            raise self._closed_here()
        link.send(parts, timeout)

    def _closed_here(self) -> ConnectionClosed:
        return ConnectionClosed(f"{self.address}: this side closed the connection")

    def _let_go(self) -> None:
        """Close, and drop the link: views that were received keep what they lie in."""
        link = self._link
        if link is not None:
            link.close()
            self._last_stats = link.stats()
            self._link = None

    def stats(self) -> dict[str, int]:
        """Return the counters of both directions."""
        link = self._link
        return self._last_stats if link is None else link.stats()


class ShmServerConnection(ShmEnd):
    """The listener's end: read by the listener's `poll`."""

    def __init__(self, address: str, link: _core.Link, hello: bytes, topics: int) -> None:
        super().__init__(address, link)
        self.hello = hello
        self.topics = topics
        self.link = link

    def recv(self, timeout: float | None) -> list[Buffer]:
        """Not for this end: raise TypeError."""
        raise TypeError("a listener's connection is read by the listener's poll(), not by recv()")

    def close(self) -> None:
        """See `Connection.close`. The memory goes when the listener has reported the end."""
        link = self._link
        if link is not None:
            link.close()

    def release(self) -> None:
        """Give the memory back. For the listener, when it reads this connection no more."""
        self._let_go()
        del self.link
