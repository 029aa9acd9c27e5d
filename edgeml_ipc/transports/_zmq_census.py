"""Which TCP connections of a listening port are alive, and whose they are.

zmq hides the connections behind routing ids, but a received frame tells the descriptor of the TCP socket that it came through,
and the monitor names the same descriptor when a connection is accepted and when it ends. Descriptors are used again, so each
is known together with its *birth*, a count of accepted connections. zmq reports the end of a connection before it closes the
descriptor, so a new connection with an old descriptor is never reported before the end of the old one.

A message may be read long after its connection has ended, when its descriptor is another's. Routing ids are not used again: the
connection that has the descriptor is the sender's if the socket still takes something for the sender's routing id.
"""

from __future__ import annotations

import contextlib
import os
import socket
from typing import Final

import zmq

from edgeml_ipc.transports._zmq_peer import TcpPeer
from edgeml_ipc.transports._zmq_port import Port

_HANDSHAKE_FAILURES: Final = frozenset(
    {zmq.EVENT_HANDSHAKE_FAILED_AUTH, zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL, zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL}
)


class Census:
    """The TCP connections of one port. All methods are called with the port's lock held.

    Attributes:
        handshakes_failed: connections that ended before zmq's own handshake, wrong keys among them.
    """

    def __init__(self, port: Port) -> None:
        self.handshakes_failed = 0
        self._port = port
        self._births: dict[int, int] = {}
        self._born = 0
        self._peers: dict[int, TcpPeer] = {}
        self._bereaved: list[TcpPeer] = []

    def update(self) -> None:
        """Take in what the monitor has reported."""
        for event, value in self._port.events():
            if event == zmq.EVENT_ACCEPTED:
                self._born += 1
                self._births[value] = self._born
            elif event == zmq.EVENT_DISCONNECTED:
                self._births.pop(value, None)
                peer = self._peers.pop(value, None)
                if peer is not None:
                    self._bereaved.append(peer)
            elif event in _HANDSHAKE_FAILURES:
                self.handshakes_failed += 1

    @property
    def has_bereaved(self) -> bool:
        """True if `take_bereaved` would return somebody."""
        return bool(self._bereaved)

    def take_bereaved(self) -> list[TcpPeer]:
        """Return the peers whose connection has ended since the last call.

        All that they had sent is in the socket by then: drain it before you tell anybody.
        """
        bereaved, self._bereaved = self._bereaved, []
        return bereaved

    def birth(self, descriptor: int) -> int | None:
        """Return the birth of the connection that has this descriptor now.

        It is the one that a message came through if something can be sent to the message's routing id after this call.
        """
        self.update()
        birth = self._births.get(descriptor)
        self._port.notice_ends()  # after the monitor: what makes room for a newer connection is then known too
        return birth

    def bind(self, peer: TcpPeer) -> TcpPeer | None:
        """Note whose connection it is; return whose it was before, who must have died unnoticed."""
        previous = self._peers.get(peer.descriptor)
        self._peers[peer.descriptor] = peer
        return previous

    def release(self, peer: TcpPeer) -> None:
        """Note that the connection is nobody's any more."""
        if self._peers.get(peer.descriptor) is peer:
            del self._peers[peer.descriptor]

    def cut(self, descriptor: int, birth: int | None) -> None:
        """Break off the TCP connection that has had this descriptor since `birth`, if it still has.

        zmq owns the descriptor and may close it at any moment, but says so on the monitor first: what a duplicate refers to is
        the connection that is meant if the monitor has not reported its end after the duplicate was made.
        """
        try:
            duplicate = os.dup(descriptor)
        except OSError:
            return
        self.update()
        if birth is None or self._births.get(descriptor) != birth:
            os.close(duplicate)
            return
        with socket.socket(fileno=duplicate) as connection, contextlib.suppress(OSError):  # it may be broken off already
            connection.shutdown(socket.SHUT_RDWR)
