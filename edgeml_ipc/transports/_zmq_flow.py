"""How much one side of a tcp connection may have under way: the windows, as counters. No sockets.

zmq's own high-water marks cannot hold back one client of a shared socket without holding back all, so each direction of each
connection has a window: a sender stops while `WINDOW_MESSAGES` messages or `WINDOW_BYTES` bytes of its own have not been taken
by the caller of the other side's `recv` or `poll`. Every head carries the totals that its sender has taken; when half a window
has been taken and nothing went the other way, a CREDIT says so. A receiver thus holds at most a window and one message for each
connection, and a peer that sends past its window breaks the protocol.
"""

from __future__ import annotations

from typing import Final

from edgeml_ipc.transports._zmq_frames import Malformed

WINDOW_MESSAGES: Final = 1024
WINDOW_BYTES: Final = 1 << 24
TOPIC_WINDOW: Final = 2


class Flow:
    """The counters of both directions of one connection. Guarded by the lock of its port."""

    __slots__ = (
        "acknowledged_bytes",
        "acknowledged_messages",
        "received_bytes",
        "received_messages",
        "sent_bytes",
        "sent_messages",
        "taken_bytes",
        "taken_messages",
        "told_bytes",
        "told_messages",
    )

    def __init__(self) -> None:
        self.sent_messages = self.sent_bytes = 0
        self.acknowledged_messages = self.acknowledged_bytes = 0  # of what we sent, what the peer says that it has taken
        self.received_messages = self.received_bytes = 0
        self.taken_messages = self.taken_bytes = 0  # of what we received, what our caller has taken
        self.told_messages = self.told_bytes = 0  # of that, what the peer was told

    def has_room(self) -> bool:
        """True if one more message, of whatever size, may be sent."""
        return (
            self.sent_messages - self.acknowledged_messages < WINDOW_MESSAGES
            and self.sent_bytes - self.acknowledged_bytes < WINDOW_BYTES
        )

    @property
    def must_tell(self) -> bool:
        """True if the peer should be told what was taken, although there is nothing else to send."""
        return (
            self.taken_messages - self.told_messages >= WINDOW_MESSAGES // 2
            or self.taken_bytes - self.told_bytes >= WINDOW_BYTES // 2
        )

    def tell(self) -> tuple[int, int]:
        """Return the totals for the head of a message that is sent now."""
        self.told_messages, self.told_bytes = self.taken_messages, self.taken_bytes
        return self.told_messages, self.told_bytes

    def on_sent(self, cost_bytes: int) -> None:
        self.sent_messages += 1
        self.sent_bytes += cost_bytes

    def on_taken(self, cost_bytes: int) -> None:
        self.taken_messages += 1
        self.taken_bytes += cost_bytes

    def on_received(self, cost_bytes: int) -> None:
        """Count a message that arrived.

        Raises:
            Malformed: the window was full before it.
        """
        if (
            self.received_messages - self.told_messages >= WINDOW_MESSAGES
            or self.received_bytes - self.told_bytes >= WINDOW_BYTES
        ):
            raise Malformed("more messages than the window allows")
        self.received_messages += 1
        self.received_bytes += cost_bytes

    def on_acknowledged(self, messages: int, total_bytes: int) -> None:
        """Note the totals that the peer has taken.

        Raises:
            Malformed: fewer than before, or more than was sent.
        """
        if not (
            self.acknowledged_messages <= messages <= self.sent_messages
            and self.acknowledged_bytes <= total_bytes <= self.sent_bytes
        ):
            raise Malformed(f"the peer says that it took {messages} messages of {self.sent_messages}")
        self.acknowledged_messages, self.acknowledged_bytes = messages, total_bytes
