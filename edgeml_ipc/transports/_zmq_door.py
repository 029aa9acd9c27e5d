"""Where clients of a tcp listener say HELLO and wait for an answer, which the layer above gives without any lock."""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass
from typing import Final

import zmq

from edgeml_ipc.transports import _zmq_frames as wire
from edgeml_ipc.transports._zmq_census import Census
from edgeml_ipc.transports._zmq_hello import HelloInfo, Offer, read_hello
from edgeml_ipc.transports._zmq_port import Port, descriptor_of
from edgeml_ipc.transports.base import MAX_HELLO_BYTES, HandshakeRejected, Welcome

_LOG = logging.getLogger(__name__)
MAX_CONNECTIONS: Final = 4096


@dataclass(frozen=True, slots=True)
class Arrival:
    """A HELLO that waits for its answer."""

    info: HelloInfo
    routing_id: bytes
    descriptor: int
    birth: int


class Door:
    """The clients that have come and are not yet let in. All methods but `ask` are called with the port's lock held.

    Attributes:
        rejected: clients that were turned away.
    """

    def __init__(self, port: Port, census: Census, address: str, welcome: Welcome, offer: Offer | None) -> None:
        self.rejected = 0
        self._port = port
        self._census = census
        self._address = address
        self._welcome = welcome
        self._offer = offer
        self._arrivals: deque[Arrival] = deque()

    @property
    def waiting(self) -> bool:
        """True if a client waits for an answer. Any thread, without the lock."""
        return bool(self._arrivals)

    def knock(self, routing_id: bytes, first: bytes, frames: list[zmq.Frame], connections: int) -> None:
        """Note a HELLO.

        Args:
            first: the head frame as bytes.
            frames: all of the message, routing id and head included.
            connections: how many clients there are already.
        Raises:
            Malformed: it is something else.
        """
        version, kind = wire.read_prefix(first)
        if kind != wire.HELLO or any(arrival.routing_id == routing_id for arrival in self._arrivals):
            raise wire.Malformed(f"a message of kind {kind} before the handshake")
        if version != wire.VERSION:
            self.turn_away(routing_id, wire.INCOMPATIBLE)
            return
        info = read_hello(first, frames[2:])
        descriptor = descriptor_of(frames[1])
        if descriptor is None:
            raise wire.Malformed("a HELLO over an early version of zmq's protocol")
        birth = self._census.birth(descriptor)
        if birth is None:
            return  # it is already gone
        if connections + len(self._arrivals) >= MAX_CONNECTIONS:
            self.rejected += 1
            self.show_out(routing_id, descriptor)
            return
        self._arrivals.append(Arrival(info, routing_id, descriptor, birth))

    def ask(self) -> tuple[Arrival, int, wire.Packed] | None:
        """Have the layer above answer the next client: (who, kind of the answer, its parts). Any thread, without the lock."""
        try:
            arrival = self._arrivals.popleft()
        except IndexError:  # another thread was quicker
            return None
        try:
            offer = self._offer(arrival.info) if self._offer is not None else b""
            return arrival, wire.WELCOME, self._pack([self._welcome(arrival.info.hello), offer])
        except HandshakeRejected as rejection:
            return arrival, wire.REJECT, self._pack([rejection.payload])
        except Exception as error:  # noqa: BLE001 - a user's callback: carried to the client as RemoteError
            _LOG.exception("%s: the handshake callback failed", self._address)
            return arrival, wire.FAILED, self._pack([repr(error).encode(errors="replace")[:MAX_HELLO_BYTES]])

    def _pack(self, parts: list[bytes]) -> wire.Packed:
        return wire.pack(parts, wire.MAX_ANSWER_BYTES, self._address)

    def turn_away(self, routing_id: bytes, kind: int, message: wire.Packed | None = None) -> None:
        """Tell a client that it is not let in."""
        self.rejected += 1
        self._tell(routing_id, kind, message)

    def show_out(self, routing_id: bytes, descriptor: int) -> None:
        """Break off the connection of somebody who is no client, unless it is over and the descriptor is another's."""
        birth = self._census.birth(descriptor)
        if birth is not None and self._tell(routing_id, wire.BYE):
            self._census.cut(descriptor, birth)

    def is_still_there(self, arrival: Arrival) -> bool:
        """Return False if the client has not stayed to hear the answer; if True, only sending it shows that it has."""
        return self._census.birth(arrival.descriptor) == arrival.birth

    def _tell(self, routing_id: bytes, kind: int, message: wire.Packed | None = None) -> bool:
        """Send to somebody who is no client; return False if nobody is there any more."""
        head = wire.head(kind, count=message.part_count if message else 0)
        try:
            self._port.transmit([routing_id, head + message.body, *message.frames] if message else [routing_id, head])
        except zmq.ZMQError as error:
            if error.errno not in (zmq.EHOSTUNREACH, zmq.EAGAIN):
                raise
            return error.errno == zmq.EAGAIN
        return True
