"""How a client reaches its server: the handshake, and what it makes of a refusal."""

from __future__ import annotations

import copy
import os
import threading
from collections.abc import Sequence
from typing import Final

from edgeml_ipc import transports
from edgeml_ipc._deadline import Deadline
from edgeml_ipc.errors import ConnectionRefused, PeerDied, TimeoutError
from edgeml_ipc.protocol import ID_BYTES, pack_hello, plain_config, rejection_error, unpack_welcome
from edgeml_ipc.transports.base import Connection, HandshakeRejected, Options

_FIRST_PAUSE_SECONDS: Final = 0.02
_LONGEST_PAUSE_SECONDS: Final = 0.5
_ONE_ATTEMPT_SECONDS: Final = 5.0


class Pauses:
    """The pauses between attempts to connect: doubling, up to half a second."""

    def __init__(self) -> None:
        self._next = _FIRST_PAUSE_SECONDS

    def next(self) -> float:
        pause, self._next = self._next, min(2 * self._next, _LONGEST_PAUSE_SECONDS)
        return pause


class Link:
    """A connection together with what the server's welcome said.

    Attributes:
        incarnation: 16 bytes that name this life of the server.
        methods: method name -> number in envelopes.
        newest_version: the newest published version that a message of this link told of.
    """

    __slots__ = ("connection", "incarnation", "methods", "newest_version")

    def __init__(self, connection: Connection) -> None:
        welcome = unpack_welcome(connection.welcome, connection.address)
        self.connection = connection
        self.incarnation = welcome.incarnation
        self.methods = {name: number for number, name in enumerate(welcome.methods)}
        self.newest_version = 0


class Dialer:
    """One client's identity and its server's address; `dial` makes a connection. Any thread."""

    def __init__(self, address: str, service: str, config: object, options: Options) -> None:
        self.address = address
        self.service = service
        self.config = plain_config(config)
        self.options = options
        self._client_id = os.urandom(ID_BYTES)

    def at(self, address: str) -> Dialer:
        """Return the same client's dialer for another address on this machine, which has no use for keys."""
        dialer = copy.copy(self)
        dialer.address, dialer.options = address, Options()
        return dialer

    def another(self) -> Dialer:
        """Return a dialer of another client for the same server."""
        dialer = copy.copy(self)
        dialer._client_id = os.urandom(ID_BYTES)
        return dialer

    def dial(self, lane: int, topics: Sequence[int], seconds: float) -> Link:
        """Connect once.

        Raises:
            ConnectionRefused, TimeoutError, AuthenticationError, TransportUnavailable: as the transport says.
            ConfigMismatch: other config. IncompatiblePeer: other service, version or program.
        """
        deadline = Deadline(seconds)
        hello = pack_hello(self.service, self._client_id, lane, self.config)
        try:
            connection = transports.connect(self.address, hello=hello, topics=topics, timeout=seconds, options=self.options)
        except HandshakeRejected as error:
            raise rejection_error(error.payload, self.address) from error
        except ConnectionRefused as error:
            raise ConnectionRefused(
                f"{self.address}: refused after {deadline.spent():.3f} s: nothing listens there; does the {self.service} "
                f"server run, on this port? ({error})"
            ) from error
        except TimeoutError as error:
            raise TimeoutError(
                f"{self.address}: silent for {deadline.spent():.3f} s: something listens there and does not answer the "
                f"handshake of a {self.service} client ({error})"
            ) from error
        try:
            return Link(connection)
        except BaseException:
            connection.close()
            raise

    def dial_until(self, lane: int, seconds: float, stop: threading.Event) -> Link:
        """Connect, trying again while nothing answers, for up to `seconds`.

        Raises:
            TimeoutError: no server came up in that time; its cause is the last attempt's error. Others as `dial`.
        """
        deadline = Deadline(seconds)
        pause = Pauses()
        while True:
            remaining = deadline.remaining()
            attempt_seconds = _ONE_ATTEMPT_SECONDS if remaining is None else max(0.05, min(_ONE_ATTEMPT_SECONDS, remaining))
            try:
                return self.dial(lane, (), attempt_seconds)
            except (ConnectionRefused, TimeoutError, PeerDied) as error:
                if deadline.expired or stop.wait(pause.next()):
                    raise TimeoutError(
                        f"{self.address}: no {self.service} server came up within {deadline.spent():.1f} s; last: {error}"
                    ) from error
