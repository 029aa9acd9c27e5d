"""The listener's end of one tcp connection. Its state belongs to the listener, whose lock guards it."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from edgeml_ipc.errors import ConnectionClosed
from edgeml_ipc.transports._zmq_flow import TOPIC_WINDOW, Flow
from edgeml_ipc.transports.base import Buffer, Connection, Parts

if TYPE_CHECKING:
    from edgeml_ipc.transports._zmq_listener import TcpListener
    from edgeml_ipc.transports._zmq_port import Waiter


class TcpPeer(Connection):
    """A client, as the listener sees it."""

    transport = "tcp"

    def __init__(
        self,
        listener: TcpListener,
        address: str,
        routing_id: bytes,
        session: int,
        descriptor: int,
        birth: int,
        topics: tuple[int, ...],
    ) -> None:
        self.address = address
        self.listener = listener
        self.routing_id = routing_id
        self.session = session
        self.descriptor = descriptor  # of the TCP socket, owned by zmq; only ever compared, or used through a duplicate
        self.birth = birth  # tells this use of the descriptor from earlier and later ones
        self.stays = True  # False for one that wants shared memory, until it says something: it may go over and never be heard
        self.flow = Flow()
        self.inbox: deque[tuple[list[memoryview], int]] = deque()  # parts, and the sum of their bytes
        self.queued = False  # in the listener's queue of peers that have something for `poll`
        self.ended = ""  # why, once the connection is over
        self.reported = False
        self.sender: Waiter | None = None  # where a `send` waits for room
        self.credits = dict.fromkeys(topics, TOPIC_WINDOW)
        self.published = dict.fromkeys(topics, 0)  # topic -> serial number of the value that was sent last
        self.messages_sent = 0
        self.bytes_sent = 0
        self.messages_received = 0
        self.bytes_received = 0

    @property
    def closed(self) -> bool:
        return bool(self.ended)

    def send(self, parts: Parts, timeout: float) -> None:
        self.listener.send_to(self, parts, timeout)

    def recv(self, timeout: float | None) -> list[Buffer]:
        raise ConnectionClosed(f"{self.address}: the listener's end of a connection is read by its listener's poll")

    def close(self) -> None:
        self.listener.close_peer(self)

    def stats(self) -> dict[str, int]:
        return {
            "messages_sent": self.messages_sent,
            "messages_received": self.messages_received,
            "bytes_sent": self.bytes_sent,
            "bytes_received": self.bytes_received,
            "inbox": len(self.inbox),
            "window_messages": self.flow.sent_messages - self.flow.acknowledged_messages,
        }
