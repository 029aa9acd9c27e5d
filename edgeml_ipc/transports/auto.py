"""`auto://host:port`: shared memory where it is proven to work between the two processes, else zmq over tcp.

The client connects over tcp and says on which running kernel it is. A server on the same one offers a door: an abstract socket
with a random name, and a nonce that only this tcp connection has told. If the client finds the door, both run as one user, and
each reads in its own mapping what the other wrote, they talk through shared memory and the tcp connection is closed. Otherwise
they stay on tcp, and the log says why.
"""

from __future__ import annotations

import logging
import os
import secrets
import struct
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from edgeml_ipc._deadline import Deadline
from edgeml_ipc.errors import EdgeMLError, TransportUnavailable
from edgeml_ipc.transports.base import Buffer, Connection, Listener, Options, Parts, Shorten, Transport, Welcome
from edgeml_ipc.transports.zeromq import HelloInfo, TcpListener, boot_id, connect_tcp, listen_tcp

if TYPE_CHECKING:
    from edgeml_ipc.transports.shm_listener import ShmListener

_LOG = logging.getLogger(__name__)
_DOOR: Final = struct.Struct("<H16s")  # length of the name, nonce; the name follows
_LEAST_SECONDS_FOR_SHM: Final = 0.2  # a handshake takes a few ms; a client that came late still gets a chance


def _to_tcp(address: str) -> str:
    return f"tcp://{address.removeprefix('auto://')}"


class AutoTransport(Transport):
    """`auto://host:port`, the default."""

    scheme = "auto"

    def connect(self, address: str, *, hello: bytes, topics: Sequence[int], timeout: float, options: Options) -> Connection:
        """See `Transport.connect`. The `transport` of the connection says what was chosen."""
        start = time.monotonic()
        tcp = connect_tcp(_to_tcp(address), hello=hello, topics=topics, timeout=timeout, options=options, wants_shm=True)
        try:
            seconds = max(timeout - (time.monotonic() - start), _LEAST_SECONDS_FOR_SHM)
            shared = self._through_door(tcp.offer, address, hello, topics, seconds, options)
        except (EdgeMLError, OSError) as error:  # OSError: a sandbox that forbids abstract sockets, or no descriptor left
            _LOG.warning("%s: tcp, because shared memory was offered and failed: %s", address, error)
            tcp.stay()
            return tcp
        if shared is None:
            tcp.stay()
            return tcp
        tcp.close()
        _LOG.info("%s: shared memory, proven by a challenge read in the peer's page", address)
        return shared

    @staticmethod
    def _through_door(
        offer: bytes, address: str, hello: bytes, topics: Sequence[int], timeout: float, options: Options
    ) -> Connection | None:
        if not offer:
            _LOG.info("%s: tcp, because the server offers no shared memory (another machine, or no C core there)", address)
            return None
        try:
            from edgeml_ipc.transports import shm
        except TransportUnavailable as error:
            _LOG.info("%s: tcp, because %s", address, error)
            return None
        length, nonce = _DOOR.unpack_from(offer)
        path = offer[_DOOR.size : _DOOR.size + length].decode()
        return shm.connect(path, address, hello=hello, topics=topics, timeout=timeout, options=options, nonce=nonce)

    def listen(self, address: str, *, welcome: Welcome, options: Options) -> Listener:
        """See `Transport.listen`. Without the C core this is a tcp listener."""
        try:
            from edgeml_ipc.transports.shm_listener import ShmListener
        except TransportUnavailable as error:
            _LOG.warning("%s: tcp only, because %s", address, error)
            return listen_tcp(_to_tcp(address), welcome=welcome, options=options)
        path = f"\0edgeml_ipc/{os.getuid()}/auto-{secrets.token_hex(16)}"
        nonce = secrets.token_bytes(16)
        door = _DOOR.pack(len(path), nonce) + path.encode()
        here = boot_id()

        def offer(info: HelloInfo) -> bytes:
            return door if info.wants_shm and info.boot_id == here else b""

        tcp = listen_tcp(_to_tcp(address), welcome=welcome, options=options, offer=offer)
        try:
            shm = ShmListener(address, path, welcome=welcome, options=options, nonce=nonce, watch_fd=tcp.fileno())
        except EdgeMLError:
            tcp.close()
            raise
        return AutoListener(tcp, shm)


class AutoListener(Listener):
    """A tcp listener and a shared-memory one, read by one loop that sleeps in one place."""

    def __init__(self, tcp: TcpListener, shm: ShmListener) -> None:
        self._tcp = tcp
        self._shm = shm
        self._publishing = threading.Lock()
        self.port = tcp.port
        self.address = f"auto://{tcp.address.removeprefix('tcp://')}"

    def poll(self, timeout: float | None) -> list[tuple[Connection, list[Buffer] | None]]:
        """See `Listener.poll`."""
        deadline = Deadline(timeout)
        while True:
            seconds = 0.0 if self._tcp.pending else deadline.remaining()
            # Shared memory lets tcp have its turn, by returning nothing, at least once in 64 messages.
            events = self._shm.poll_once(seconds) or self._tcp.poll(0)
            if events or self._shm.was_woken() or deadline.expired:
                return events

    def publish(self, topic: int, parts: Parts, shorten: Shorten | None = None) -> None:
        """See `Listener.publish`. The value is copied once, into a slot, which tcp then sends from, or shortens."""
        with self._publishing:
            held = self._shm.publish_and_hold(topic, parts)
            if held is None:
                self._tcp.publish(topic, parts, shorten)
            else:
                self._tcp.publish_owned(topic, held, shorten)

    def wake(self) -> None:
        """See `Listener.wake`."""
        self._shm.wake()

    def close(self) -> None:
        """See `Listener.close`. The one that sleeps goes first: it waits on the other's descriptor."""
        self._shm.close()
        self._tcp.close()

    def stats(self) -> dict[str, int]:
        """Return the sums of both, and each one's own under `tcp_` and `shm_`."""
        tcp, shm = self._tcp.stats(), self._shm.stats()
        sums = {name: tcp[name] + shm[name] for name in tcp.keys() & shm.keys()}
        sums["publishes"] = shm["publishes"]  # each value goes to both
        sums["accepted"] = tcp["accepted"]  # each client comes by tcp
        parts = {f"tcp_{name}": value for name, value in tcp.items()} | {f"shm_{name}": value for name, value in shm.items()}
        return sums | parts


__all__ = ["AutoListener", "AutoTransport"]
