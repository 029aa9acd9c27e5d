"""One subscription for a whole machine: each published version crosses the network once, however many clients here read it.

The first client that subscribes to a remote server opens a *relay*: a listener at an address of shared memory that follows from
the server's. It pulls what the server publishes and publishes it here, and everybody subscribes to it, the first client too.
When the relay's process ends, in whatever way, its address is free at once; the others notice, and the first that comes back
opens the next relay. When the server ends the relay closes, and all come back in the same way. Requests do not pass through it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from typing import Final

import msgspec

from edgeml_ipc import transports
from edgeml_ipc._deadline import Deadline
from edgeml_ipc._dial import Dialer, Link, Pauses
from edgeml_ipc.errors import AddressInUse, BufferFull, ConnectionClosed, ConnectionRefused, EdgeMLError, TimeoutError
from edgeml_ipc.protocol import ACK, BACKGROUND_LANE, ENVELOPE, MAGIC, PUBLISH, ProtocolViolation, judge, open_envelope
from edgeml_ipc.transports.base import Buffer, HandshakeRejected, Listener, Options

logger = logging.getLogger("edgeml_ipc")

TOPIC: Final = 0
_LOOK_EVERY_SECONDS: Final = 0.5
_STOP_SECONDS: Final = 5.0
_pack = msgspec.msgpack.Encoder(order="deterministic").encode


def relay_address(dialer: Dialer) -> str:
    """Return where the relay of that server is: clients share one if server, service, config and keys are the same."""
    from hashlib import sha256  # here, since it brings OpenSSL with it, and most clients have no relay

    keys = dialer.options.keys
    terms = [dialer.address, dialer.service, dialer.config, repr(keys.server_public) if keys is not None else ""]
    return f"shm://relay-{sha256(_pack(terms)).hexdigest()[:32]}"


class Relay:
    """Publishes here what a server elsewhere publishes, until the server ends or `close`. Any thread.

    Args:
        dialer: of the server; the relay is a client of its own.
        address: where to listen. seconds: for connecting.
    Raises:
        AddressInUse: another relay listens there. Others as `Dialer.dial`.
    """

    def __init__(self, dialer: Dialer, address: str, seconds: float) -> None:
        self.address = address
        self._dialer = dialer.another()
        self._upstream: Link | None = None
        self._connected = threading.Event()  # or failed to
        self._closing = threading.Event()
        self._seconds = seconds
        self._versions = self._bytes = self._not_published = 0
        self._listener: Listener = transports.listen(address, welcome=self._welcome, options=Options())
        try:
            self._upstream = self._dialer.dial(BACKGROUND_LANE, (TOPIC,), seconds)
        except BaseException:
            self._listener.close()
            raise
        finally:
            self._connected.set()
        self._threads = [
            threading.Thread(target=target, name=f"edgeml_ipc-relay-{target.__name__.strip('_')}", daemon=True)
            for target in (self._pull, self._serve)
        ]
        for thread in self._threads:
            thread.start()
        logger.info("%s: this process relays what is published there to others on this machine, at %s", dialer.address, address)

    def close(self) -> None:
        """End the relay; its subscribers find another one. Idempotent."""
        self._closing.set()
        if self._upstream is not None:
            self._upstream.connection.close()
        self._listener.close()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(_STOP_SECONDS)

    def stats(self) -> dict[str, int]:
        """Return plain counters: versions and bytes that came over the network, and clients on this machine."""
        return {
            "versions_pulled": self._versions,
            "bytes_pulled": self._bytes,
            "versions_not_published": self._not_published,
            "subscribers": self._listener.stats()["connections"],
        }

    def _welcome(self, hello: bytes) -> bytes:
        """Answer for the server, with what it answered."""
        rejection = judge(hello, self._dialer.service, self._dialer.config)
        if rejection is not None:
            raise HandshakeRejected(rejection)
        self._connected.wait(self._seconds)
        if self._upstream is None:
            raise ConnectionClosed(f"{self.address}: the server does not answer this relay")
        return self._upstream.connection.welcome

    def _pull(self) -> None:
        """Take what the server publishes and publish it, until either end is gone."""
        assert self._upstream is not None  # made before this thread was
        connection = self._upstream.connection
        try:
            self._acknowledge(0)
            while not self._closing.is_set():
                try:
                    self._pass_on(connection.recv(_LOOK_EVERY_SECONDS))
                except TimeoutError:
                    continue
        except (EdgeMLError, ProtocolViolation) as error:
            logger.debug("%s: the relay ends: %s", self._dialer.address, error)
        finally:
            connection.close()
            self._listener.close()

    def _pass_on(self, parts: list[Buffer]) -> None:
        kind, _, _, version = open_envelope(parts[0])
        if kind != PUBLISH:
            return
        self._versions += 1
        self._bytes += sum(memoryview(part).nbytes for part in parts)
        try:
            self._listener.publish(TOPIC, parts)
        except BufferFull as error:
            self._not_published += 1
            logger.error("%s: version %d cannot be relayed: %s", self._dialer.address, version, error)
        self._acknowledge(version)

    def _acknowledge(self, version: int) -> None:
        assert self._upstream is not None
        try:
            self._upstream.connection.send([ENVELOPE.pack(MAGIC, ACK, 0, 0, 0, version)], 0)
        except (BufferFull, TimeoutError):
            return  # the next version's says more

    def _serve(self) -> None:
        """Read what subscribers say: acknowledgements, which nobody needs here, and that they are gone."""
        try:
            while not self._closing.is_set():
                self._listener.poll(None)
        except ConnectionClosed:
            pass


class RelayedDialer:
    """Dials the relay of a server, and opens it where there is none. For subscriptions; stands in for a `Dialer`."""

    def __init__(self, dialer: Dialer) -> None:
        self.address = dialer.address
        self.service = dialer.service
        self._dialer = dialer
        self._relay: Relay | None = None
        self._relay_address = relay_address(dialer)
        self._closed = threading.Event()

    def dial(self, lane: int, topics: Sequence[int], seconds: float) -> Link:
        """As `Dialer.dial`; TimeoutError also where relays come and go for all of `seconds`."""
        deadline = Deadline(seconds)
        pauses = Pauses()
        local = self._dialer.at(self._relay_address)
        while True:
            left = max(0.05, deadline.remaining() or 0.0)
            try:
                return local.dial(lane, topics, left)
            except ConnectionRefused:
                if deadline.expired:
                    raise TimeoutError(f"{self.address}: no relay at {local.address} came up within {seconds:g} s") from None
            self.close_relay()
            try:
                self._relay = Relay(self._dialer, self._relay_address, left)
            except AddressInUse:
                self._closed.wait(pauses.next())  # another process was quicker; its relay is about to answer
            if self._closed.is_set():
                self.close_relay()
                raise ConnectionClosed(f"{self.address}: this client was closed")

    def close_relay(self) -> None:
        """Close the relay that this dialer opened, if it did."""
        relay, self._relay = self._relay, None
        if relay is not None:
            relay.close()

    def close(self) -> None:
        """Open no more relays, and close the one that is open."""
        self._closed.set()
        self.close_relay()

    def stats(self) -> dict[str, int]:
        """Return the counters of the relay that this process runs; empty where another one does."""
        relay = self._relay
        return relay.stats() if relay is not None else {}
