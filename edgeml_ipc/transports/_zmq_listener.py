"""The serving end of the `tcp` transport: one ROUTER socket for all clients.

Three kinds of thread use it, one at a time, under its port's lock: the caller of `poll`, which takes messages in and waits
outside of zmq; any thread that sends or publishes; and the steward, which looks after the socket only while the caller of
`poll` is elsewhere, so that handshakes, credits and acknowledgements go on while a user's callback runs. The shortener's
thread, which comes with the first value that is published to be shortened, sends as others do.

A client is known by three things: zmq's routing id while it is connected, the TCP socket's descriptor, which every received
frame tells and which the monitor's events name, and a random session number that the listener chose and its messages carry.

Longer than 400 lines because all of it works on one state under one lock; what does not need that lies in the other `_zmq_`
modules.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

import zmq

from edgeml_ipc._deadline import Deadline
from edgeml_ipc.errors import BufferFull, ConnectionClosed, EdgeMLError, PeerDied, TimeoutError
from edgeml_ipc.transports import _zmq_frames as wire
from edgeml_ipc.transports._zmq_census import Census
from edgeml_ipc.transports._zmq_door import Arrival, Door
from edgeml_ipc.transports._zmq_flow import TOPIC_WINDOW
from edgeml_ipc.transports._zmq_hello import Offer
from edgeml_ipc.transports._zmq_peer import TcpPeer
from edgeml_ipc.transports._zmq_port import Port, descriptor_of, limit_send_buffer
from edgeml_ipc.transports._zmq_shortener import LongValue, Shortener
from edgeml_ipc.transports.base import (
    MAX_TOPICS,
    Buffer,
    Connection,
    Listener,
    Options,
    Parts,
    Shorten,
    Welcome,
)

_LOG = logging.getLogger(__name__)
_MESSAGES_PER_TURN: Final = 8
_MESSAGES_PER_POLL: Final = 64
_STEWARD_TICK_S: Final = 0.05
_STEWARD_IDLE_TICK_S: Final = 0.25  # while somebody polls: twenty looks a second would be most of what an idle server costs


class TcpListener(Listener):
    """Accepts clients on one TCP port.

    A client that wants shared memory is welcomed, and counted as accepted, but `poll` and the count of connections know it only
    once it has said that it stays, or sent something.

    Args:
        port: a Port with a bound ROUTER.
        offer: called with each HELLO before `welcome`; its bytes reach the client as `TcpConnection.offer`.
        stop_authenticator: called before the socket is closed.
    """

    def __init__(
        self,
        port: Port,
        address: str,
        port_number: int,
        welcome: Welcome,
        options: Options,
        offer: Offer | None = None,
        stop_authenticator: Callable[[], None] | None = None,
    ) -> None:
        self.address = address
        self.port = port_number
        self._port = port
        self._options = options
        self._stop_authenticator = stop_authenticator
        self._peers: dict[bytes, TcpPeer] = {}  # by routing id
        self._census = Census(port)
        self._door = Door(port, self._census, address, welcome, offer)
        self._ready: deque[TcpPeer] = deque()
        self._newest: dict[int, tuple[int, wire.Packed | LongValue]] = {}  # serial number and value
        self._shortener = Shortener(self._shorten)
        self._publishing = threading.Lock()
        self._closing = False
        self._woken = False
        self._polling = False
        self._poller = 0  # the thread that called `poll` last
        self._poller_left_at = time.monotonic()
        self._counters = dict.fromkeys(
            ("accepted", "malformed", "messages_received", "messages_sent", "bytes_received", "bytes_sent",
             "publishes", "values_sent", "polls"), 0
        )  # fmt: skip
        with port.lock:
            self._for_poller = port.add_waiter()
        self._stop = threading.Event()
        self._steward = threading.Thread(target=self._look_after, name="edgeml-ipc-tcp", daemon=True)
        self._steward.start()

    def poll(self, timeout: float | None) -> list[tuple[Connection, list[Buffer] | None]]:
        deadline = Deadline(timeout)
        self._poller, self._polling = threading.get_ident(), True
        try:
            while True:
                with self._port.lock:
                    self._raise_if_closed()
                    self._for_poller.clear()
                    self._pump()
                if self._door.waiting:
                    self._answer_arrivals()
                with self._port.lock:
                    self._raise_if_closed()
                    self._counters["polls"] += 1
                    batch = self._take_batch()
                    woken, self._woken = self._woken, False
                    if batch or woken or deadline.expired:
                        if self._ready or self._door.waiting:
                            self._for_poller.wake()  # so that who waits for `fileno` comes back for the rest
                        return batch
                    if not self._door.waiting and not self._ready:
                        self._port.wait(self._for_poller, deadline.remaining())
        finally:
            self._poller_left_at = time.monotonic()
            self._polling = False

    def fileno(self) -> int:
        """Return a descriptor that is readable while `poll(0)` has something to do; for waiting only, level-triggered.

        Valid until `close`, after which the number may mean something else: leave the loop that waits on it first.
        """
        return self._for_poller.fileno()

    @property
    def pending(self) -> bool:
        """True if `poll(0)` is known to return something, without a system call; False may be late by what the kernel holds."""
        return bool(self._ready or self._door.waiting or self._woken)

    def publish(self, topic: int, parts: Parts, shorten: Shorten | None = None) -> None:
        self._publish(topic, parts, shorten, owned=False)

    def publish_owned(self, topic: int, parts: Parts, shorten: Shorten | None = None) -> None:
        """As `publish`, without a copy of large parts: they belong to the listener from now on and may never change."""
        self._publish(topic, parts, shorten, owned=True)

    def wake(self) -> None:
        with self._port.lock:
            if not self._port.closed:
                self._woken = True
                self._for_poller.wake()

    def close(self) -> None:
        with self._port.lock:
            if self._closing:
                return
            self._closing = True
        self._stop.set()
        if threading.current_thread() is not self._steward:
            self._steward.join()
        self._shortener.close()
        if self._stop_authenticator is not None:
            self._stop_authenticator()
        self._port.close()

    def stats(self) -> dict[str, int]:
        counters = {
            "connections": sum(peer.stays and not peer.ended for peer in list(self._peers.values())),
            "rejected": self._door.rejected,
            "handshakes_failed": self._census.handshakes_failed,
        }
        return counters | self._counters

    # What peers call.

    def send_to(self, peer: TcpPeer, parts: Parts, timeout: float) -> None:
        """Send one message to `peer`; see `Connection.send`."""
        message = wire.pack(parts, self._options.max_message_bytes, peer.address)
        with self._port.lock:
            self._raise_if_gone(peer)
            if not peer.flow.has_room():
                self._wait_for_room(peer, timeout)
            peer.flow.on_sent(message.cost_bytes)
            if not self._transmit(peer, wire.DATA, message):
                self._pump()
                raise PeerDied(f"{peer.address}: {peer.ended or 'the link to the peer broke'}")
            peer.messages_sent += 1
            peer.bytes_sent += message.payload_bytes
            self._counters["messages_sent"] += 1
            self._counters["bytes_sent"] += message.payload_bytes
            self._settle()

    def close_peer(self, peer: TcpPeer) -> None:
        """End the connection with `peer`, after what was sent to it."""
        with self._port.lock:
            if self._port.closed or peer.ended:
                return
            self._transmit(peer, wire.BYE)
            self._end(peer, "closed here")  # but known until its TCP connection is over: what it still sends is no mistake
            self._settle()

    # The steward.

    def _look_after(self) -> None:
        while not self._stop.wait(_STEWARD_IDLE_TICK_S if self._polling else _STEWARD_TICK_S):
            if self._polling or time.monotonic() - self._poller_left_at < _STEWARD_TICK_S:
                continue
            with self._port.lock:
                if self._port.closed:
                    return
                self._pump()
            self._answer_arrivals()

    def _answer_arrivals(self) -> None:
        """Answer the clients that have said HELLO. Without the lock while the layer above is asked."""
        while self._door.waiting:
            answer = self._door.ask()
            if answer is None:
                return
            arrival, kind, message = answer
            with self._port.lock:
                if self._port.closed:
                    return
                if kind == wire.WELCOME:
                    self._let_in(arrival, message)
                else:
                    self._door.turn_away(arrival.routing_id, kind, message)
                self._settle()

    # The shortener's thread.

    def _shorten(self, topic: int) -> None:
        """Shorten the newest value and send it to those who wait, if one that is newer still was not faster."""
        with self._port.lock:
            serial, value = self._newest[topic]
        if not isinstance(value, LongValue):
            return
        try:
            message = value.shortened()
        except EdgeMLError as error:
            _LOG.error("%s: a value of topic %d reaches nobody over tcp: %s", self.address, topic, error)
            return
        with self._port.lock:
            if self._port.closed:
                return
            if self._newest[topic][0] == serial:
                self._newest[topic] = (serial, message)
            for peer in list(self._peers.values()):
                self._send_value(peer, topic, serial, message)
            self._settle()

    # What follows is called with the port's lock held.

    def _raise_if_closed(self) -> None:
        if self._port.closed:
            raise ConnectionClosed(f"{self.address}: this listener was closed")

    def _raise_if_gone(self, peer: TcpPeer) -> None:
        self._raise_if_closed()
        if peer.ended == "closed here":
            raise ConnectionClosed(f"{peer.address}: this connection was closed here")
        if peer.ended:
            raise PeerDied(f"{peer.address}: {peer.ended}")

    def _wait_for_room(self, peer: TcpPeer, timeout: float) -> None:
        deadline = Deadline(timeout)
        self._pump()
        if peer.flow.has_room():
            return
        under_way = f"{peer.flow.sent_messages - peer.flow.acknowledged_messages} messages are not yet received"
        if timeout <= 0:
            self._raise_if_gone(peer)
            raise BufferFull(f"{peer.address}: {under_way}")
        peer.sender = self._port.add_waiter()
        try:
            while not peer.flow.has_room():
                self._raise_if_gone(peer)
                if deadline.expired:
                    raise TimeoutError(f"{peer.address}: no room within {timeout} s; {under_way}")
                peer.sender.clear()
                self._port.wait(peer.sender, deadline.remaining())
                self._raise_if_closed()
                self._pump()
        finally:
            if not self._port.closed:
                self._port.remove_waiter(peer.sender)
            peer.sender = None
        self._raise_if_gone(peer)

    def _transmit(self, peer: TcpPeer, kind: int, message: wire.Packed | None = None, topic: int = wire.NO_TOPIC) -> bool:
        """Send to `peer` and return True, or False if it cannot be reached any more."""
        if peer.ended:
            return False
        head = wire.head(kind, peer.session, peer.flow.tell(), topic, message.part_count if message else 0)
        try:
            self._port.transmit([peer.routing_id, head + message.body, *message.frames] if message else [peer.routing_id, head])
        except zmq.Again:
            self._expel(peer, "it has stopped reading")
            return False
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            return False  # its last messages may be on their way up; the monitor's event ends it after them
        return True

    def _publish(self, topic: int, parts: Parts, shorten: Shorten | None, *, owned: bool) -> None:
        if not 0 <= topic < MAX_TOPICS:
            raise ValueError(f"topic is {topic}, allowed are 0 to {MAX_TOPICS - 1}")
        with self._publishing:  # values become the newest in the order of the calls, although they are copied without the lock
            value: wire.Packed | LongValue
            if shorten is None:
                value = wire.pack(parts, self._options.max_message_bytes, self.address, owned=owned)
            else:
                value = LongValue(parts, shorten, self._options.max_message_bytes, self.address, owned=owned)
            with self._port.lock:
                self._raise_if_closed()
                self._counters["publishes"] += 1
                self._newest[topic] = (self._counters["publishes"], value)
                for peer in list(self._peers.values()):  # one that does not read is forgotten meanwhile
                    self._send_newest(peer, topic)
                self._settle()

    def _send_newest(self, peer: TcpPeer, topic: int) -> None:
        """Send the newest value of `topic` if `peer` has a credit and has not had it."""
        if peer.ended or topic not in self._newest or not peer.credits.get(topic):
            return
        serial, value = self._newest[topic]
        if isinstance(value, wire.Packed):
            self._send_value(peer, topic, serial, value)
        elif peer.published[topic] < serial:
            self._shortener.want(topic)

    def _send_value(self, peer: TcpPeer, topic: int, serial: int, value: wire.Packed) -> None:
        if not peer.ended and peer.credits.get(topic) and peer.published[topic] < serial:
            peer.credits[topic] -= 1
            peer.published[topic] = serial
            self._transmit(peer, wire.TOPIC, value, topic)
            self._counters["values_sent"] += 1

    def _take_batch(self) -> list[tuple[Connection, list[Buffer] | None]]:
        """Return a few messages of each peer that has some, and the ends of those that have no more."""
        batch: list[tuple[Connection, list[Buffer] | None]] = []
        used = False  # the socket
        for _ in range(len(self._ready)):
            peer = self._ready.popleft()
            for _ in range(min(_MESSAGES_PER_TURN, len(peer.inbox))):
                parts, payload_bytes = peer.inbox.popleft()
                peer.flow.on_taken(wire.cost(payload_bytes, len(parts)))
                batch.append((peer, list(parts)))
                peer.messages_received += 1
                peer.bytes_received += payload_bytes
                self._counters["messages_received"] += 1
                self._counters["bytes_received"] += payload_bytes
            if peer.inbox:
                self._ready.append(peer)
            else:
                peer.queued = False
                if peer.ended and not peer.reported:
                    peer.reported = True
                    if peer.stays:
                        batch.append((peer, None))
            if peer.flow.must_tell:
                self._transmit(peer, wire.CREDIT)
                used = True
            if len(batch) >= _MESSAGES_PER_POLL:
                break
        if used:
            self._settle()
        return batch

    def _pump(self) -> None:
        """Take in all that has arrived, then end the connections that the monitor knew to be over before that."""
        while self._port.has_news or self._census.has_bereaved:
            self._census.update()
            bereaved = self._census.take_bereaved()
            while self._port.readable:
                self._on_frames(self._port.receive())
            for peer in bereaved:
                self._end(peer, "the peer's process ended, or the link to it broke")
                self._forget(peer)
            if not self._census.has_bereaved:  # by what was asked of the census meanwhile
                return

    def _settle(self) -> None:
        """Take in what has arrived while the socket was used for something else; the monitor's own descriptor is untouched."""
        while self._port.readable:
            self._on_frames(self._port.receive())
        if self._census.has_bereaved:
            self._pump()

    def _on_frames(self, frames: list[zmq.Frame]) -> None:
        routing_id = frames[0].bytes
        peer = self._peers.get(routing_id)
        try:
            if len(frames) < 2:
                raise wire.Malformed("no head frame")
            first = frames[1].bytes
            if peer is None:
                self._door.knock(routing_id, first, frames, len(self._peers))
                if self._door.waiting:
                    self._tell_poller()
            else:
                self._on_message(peer, first, frames[2:])
        except wire.Malformed as error:
            self._counters["malformed"] += 1
            descriptor = descriptor_of(frames[-1])
            if peer is not None and peer.descriptor == descriptor:
                self._expel(peer, f"it broke the protocol: {error}")
            elif descriptor is not None:
                self._door.show_out(routing_id, descriptor)

    def _let_in(self, arrival: Arrival, message: wire.Packed) -> None:
        """Send the welcome and count the client in, if it is still there; if not, nobody has heard of it yet."""
        if not self._door.is_still_there(arrival):
            return
        info = arrival.info
        session = secrets.randbits(64)
        peer = TcpPeer(self, self.address, arrival.routing_id, session, arrival.descriptor, arrival.birth, info.topics)
        peer.hello = info.hello
        if info.wants_shm:
            peer.stays = False
            peer.credits = dict.fromkeys(info.topics, 0)  # until it says that it stays
        if not self._transmit(peer, wire.WELCOME, message):
            return  # the descriptor is another's by now
        limit_send_buffer(peer.descriptor, self.port)
        self._peers[peer.routing_id] = peer
        previous = self._census.bind(peer)
        if previous is not None:
            self._end(previous, "the link to it broke")
            self._forget(previous)
        self._counters["accepted"] += 1
        for topic in info.topics:
            self._send_newest(peer, topic)

    def _on_message(self, peer: TcpPeer, first: bytes, rest: list[zmq.Frame]) -> None:
        head = wire.read_head(first)
        if head.session != peer.session:
            raise wire.Malformed("another session's message")
        peer.flow.on_acknowledged(head.taken_messages, head.taken_bytes)
        peer.stays = True
        if peer.sender is not None and peer.flow.has_room():
            peer.sender.wake()
        if head.kind == wire.DATA and head.part_count:
            parts, payload_bytes = wire.unpack(head.part_count, first, rest, self._options.max_message_bytes)
            peer.flow.on_received(wire.cost(payload_bytes, head.part_count))
            if peer.ended:
                return
            peer.inbox.append((parts, payload_bytes))
            self._enqueue(peer)
        elif head.kind != wire.CREDIT:
            raise wire.Malformed(f"a message of kind {head.kind} with {head.part_count} parts")
        elif head.topic != wire.NO_TOPIC:
            if peer.credits.get(head.topic, TOPIC_WINDOW) >= TOPIC_WINDOW:
                raise wire.Malformed(f"a credit for topic {head.topic} that was not used")
            peer.credits[head.topic] += 1
            self._send_newest(peer, head.topic)

    def _enqueue(self, peer: TcpPeer) -> None:
        """Have `poll` look at `peer`."""
        if not peer.queued:
            peer.queued = True
            self._ready.append(peer)
        self._tell_poller()

    def _tell_poller(self) -> None:
        if not self._polling or threading.get_ident() != self._poller:
            self._for_poller.wake()

    def _end(self, peer: TcpPeer, why: str) -> None:
        """Note that the connection is over, for `poll` to report after the peer's last message."""
        if peer.ended:
            return
        peer.ended = why
        if peer.sender is not None:
            peer.sender.wake()
        self._enqueue(peer)

    def _forget(self, peer: TcpPeer) -> None:
        """From now on, what comes over the peer's TCP connection comes from a stranger."""
        self._census.release(peer)
        if self._peers.get(peer.routing_id) is peer:
            del self._peers[peer.routing_id]

    def _expel(self, peer: TcpPeer, why: str) -> None:
        """End a connection whose other end does not behave."""
        _LOG.warning("%s: a client was disconnected: %s", self.address, why)
        self._end(peer, why)
        self._forget(peer)
        self._census.cut(peer.descriptor, peer.birth)
