"""The connecting end of a tcp connection: a DEALER socket, its windows, its topics."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final

import zmq

from edgeml_ipc._deadline import Deadline
from edgeml_ipc.errors import BufferFull, ConnectionClosed, PeerDied, TimeoutError
from edgeml_ipc.transports import _zmq_frames as wire
from edgeml_ipc.transports._zmq_flow import TOPIC_WINDOW, Flow
from edgeml_ipc.transports._zmq_port import LINGER_MS, Port
from edgeml_ipc.transports.base import Buffer, Connection, Options, Parts

_NOT_A_TOPIC: Final = -1


class TcpConnection(Connection):
    """A connection to a `TcpListener`, made by `dial`.

    Attributes:
        offer: what the listener's `offer` said beside the welcome; empty if it has none.
    """

    transport = "tcp"

    def __init__(
        self, port: Port, address: str, options: Options, *, session: int, topics: Sequence[int], welcome: bytes, offer: bytes
    ) -> None:
        self.address = address
        self.welcome = welcome
        self.offer = offer
        self._port = port
        self._options = options
        self._session = session
        self._flow = Flow()
        self._topics_waiting = dict.fromkeys(topics, 0)
        self._inbox: deque[tuple[int, list[memoryview], int]] = deque()  # topic or -1, parts, cost in bytes
        self._ended = ""  # why, once the other end is gone
        self._for_receiver = port.add_waiter()
        self._for_sender = port.add_waiter()
        self._receiver_waits = False
        self._sender_waits = False
        self._lent: list[zmq.MessageTracker] = []  # of what zmq may still read; for the thread that sends
        self._messages_received = 0
        self._bytes_received = 0
        self._messages_sent = 0
        self._bytes_sent = 0

    @property
    def closed(self) -> bool:
        with self._port.lock:
            if not self._port.closed:
                self._pump()
            return self._port.closed or bool(self._ended)

    def send(self, parts: Parts, timeout: float) -> None:
        self._send(wire.pack(parts, self._options.max_message_bytes, self.address), timeout)

    def lend(self, parts: Parts, timeout: float) -> None:
        self._send(wire.pack(parts, self._options.max_message_bytes, self.address, lent=True), timeout)

    def reclaim(self) -> bool:
        under_way = not all(each.done for each in self._lent)
        if under_way:
            self._port.close(0)
            self._port.wait_until_gone()
        self._lent.clear()
        return not under_way

    def _send(self, message: wire.Packed, timeout: float) -> None:
        with self._port.lock:
            self._raise_if_closed()
            self._pump()
            if not self._flow.has_room():
                self._wait_for_room(timeout)
            self._raise_if_ended(True)
            if message.lent:
                self._lent = [each for each in self._lent if not each.done] + message.lent
            self._flow.on_sent(message.cost_bytes)
            self._transmit(wire.DATA, message)
            self._raise_if_ended(True)
            self._messages_sent += 1
            self._bytes_sent += message.payload_bytes
            self._settle()

    def recv(self, timeout: float | None) -> list[Buffer]:
        deadline: Deadline | None = None
        with self._port.lock:
            while True:
                self._raise_if_closed()
                self._pump()
                if self._inbox:
                    return self._take()
                self._raise_if_ended(False)
                if deadline is None:
                    deadline = Deadline(timeout)
                elif deadline.expired:
                    raise TimeoutError(f"{self.address}: nothing came within {timeout} s")
                self._for_receiver.clear()
                self._receiver_waits = True
                try:
                    self._port.wait(self._for_receiver, deadline.remaining())
                finally:
                    self._receiver_waits = False

    def stay(self) -> None:
        """Say that a connection that was made with `wants_shm` is kept, and start to receive its topics. Call it once."""
        with self._port.lock:
            self._raise_if_closed()
            self._transmit(wire.CREDIT)
            for topic in self._topics_waiting:
                for _ in range(TOPIC_WINDOW):
                    self._transmit(wire.CREDIT, topic=topic)
            self._pump()

    def close(self) -> None:
        self._port.close(0 if self._ended else LINGER_MS)

    def stats(self) -> dict[str, int]:
        return {
            "messages_sent": self._messages_sent,
            "messages_received": self._messages_received,
            "bytes_sent": self._bytes_sent,
            "bytes_received": self._bytes_received,
            "inbox": len(self._inbox),
            "window_messages": self._flow.sent_messages - self._flow.acknowledged_messages,
        }

    # What follows is called with the port's lock held.

    def _raise_if_closed(self) -> None:
        if self._port.closed:
            raise ConnectionClosed(f"{self.address}: this connection was closed here")

    def _raise_if_ended(self, sending: bool) -> None:
        if self._ended:
            left = f"; {len(self._inbox)} messages that it had sent are not yet received" if sending and self._inbox else ""
            raise PeerDied(f"{self.address}: {self._ended}{left}")

    def _wait_for_room(self, timeout: float) -> None:
        deadline = Deadline(timeout)
        while not self._flow.has_room() and not self._ended:
            under_way = f"{self._flow.sent_messages - self._flow.acknowledged_messages} messages are not yet received"
            if timeout <= 0:
                raise BufferFull(f"{self.address}: {under_way}")
            if deadline.expired:
                raise TimeoutError(f"{self.address}: no room within {timeout} s; {under_way}")
            self._for_sender.clear()
            self._sender_waits = True
            try:
                self._port.wait(self._for_sender, deadline.remaining())
            finally:
                self._sender_waits = False
            self._raise_if_closed()
            self._pump()

    def _transmit(self, kind: int, message: wire.Packed | None = None, topic: int = wire.NO_TOPIC) -> None:
        head = wire.head(kind, self._session, self._flow.tell(), topic, message.part_count if message else 0)
        try:
            self._port.transmit([head + message.body, *message.frames] if message else [head])
        except zmq.Again:
            self._ended = "the peer has stopped reading"
            self._wake_all()

    def _take(self) -> list[Buffer]:
        topic, parts, cost_bytes = self._inbox.popleft()
        if topic == _NOT_A_TOPIC:
            self._flow.on_taken(cost_bytes)
            tell = self._flow.must_tell
        else:
            self._topics_waiting[topic] -= 1
            tell = True
        if tell and not self._ended:
            self._transmit(wire.CREDIT, topic=wire.NO_TOPIC if topic == _NOT_A_TOPIC else topic)
            self._settle()
        self._messages_received += 1
        self._bytes_received += sum(map(len, parts))
        return list(parts)

    def _pump(self) -> None:
        """Take in all that has arrived, then what the monitor knew before that."""
        while not self._ended and self._port.has_news:
            happened = self._port.events()
            self._settle()
            if any(event == zmq.EVENT_DISCONNECTED for event, _ in happened) and not self._ended:
                self._ended = "the peer's process ended, or the link to it broke"
                self._wake_all()
            if not happened:
                return

    def _settle(self) -> None:
        """Take in what has arrived, and wake whom it concerns."""
        arrived = False
        while not self._ended and self._port.readable:
            arrived = True
            try:
                self._on_message(self._port.receive())
            except wire.Malformed as error:
                self._ended = f"the peer broke the protocol: {error}"
        if arrived:
            self._wake_all()

    def _wake_all(self) -> None:
        if self._receiver_waits and (self._ended or self._inbox):
            self._for_receiver.wake()
        if self._sender_waits and (self._ended or self._flow.has_room()):
            self._for_sender.wake()

    def _on_message(self, frames: list[zmq.Frame]) -> None:
        first = frames[0].bytes
        head = wire.read_head(first)
        if head.session != self._session:
            raise wire.Malformed("another session's message")
        self._flow.on_acknowledged(head.taken_messages, head.taken_bytes)
        if head.kind == wire.DATA or head.kind == wire.TOPIC:
            parts, payload_bytes = wire.unpack(head.part_count, first, frames[1:], self._options.max_message_bytes)
            cost_bytes = wire.cost(payload_bytes, head.part_count)
            if head.kind == wire.DATA:
                self._flow.on_received(cost_bytes)
                self._inbox.append((_NOT_A_TOPIC, parts, cost_bytes))
                return
            if self._topics_waiting.get(head.topic, TOPIC_WINDOW) >= TOPIC_WINDOW:
                raise wire.Malformed(f"topic {head.topic} was not asked for, or not so often")
            self._topics_waiting[head.topic] += 1
            self._inbox.append((head.topic, parts, cost_bytes))
        elif head.kind == wire.BYE:
            self._ended = "the peer closed the connection"
        elif head.kind != wire.CREDIT:
            raise wire.Malformed(f"a message of kind {head.kind}")
