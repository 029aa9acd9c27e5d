"""What a server remembers of its clients, so that a retried request is executed once.

Each connection of a client is a *lane*. A lane remembers its replies until the client's later requests say that they arrived
(`oldest`). It outlives the connection for a while, since a client whose link broke comes back and asks again.
"""

from __future__ import annotations

from collections import OrderedDict
from enum import Enum
from typing import TYPE_CHECKING, Final

from edgeml_ipc._outgoing import Outgoing
from edgeml_ipc.transports.base import Buffer

if TYPE_CHECKING:
    from edgeml_ipc._session import Session

MAX_REPLIES_PER_LANE: Final = 1024
MAX_BYTES_PER_LANE: Final = 256 << 20
MAX_LANES_WITHOUT_CONNECTION: Final = 256
MAX_LANES_WITHOUT_REPLIES: Final = 16_384
_COPIED_UP_TO_BYTES: Final = 64 << 10


def hold(parts: list[Buffer]) -> tuple[list[Buffer], int]:
    """Keep parts for a second sending; return them and their sum in bytes.

    What its owner may write to is copied, so that a second sending shows what the first one did; of a large read-only buffer
    a reference is kept.
    """
    held: list[Buffer] = []
    total_bytes = 0
    for part in parts:
        if type(part) is bytes:
            total_bytes += len(part)
            held.append(part)
        else:
            view = memoryview(part)
            total_bytes += view.nbytes
            held.append(part if view.readonly and view.nbytes > _COPIED_UP_TO_BYTES else view.tobytes())
    return held, total_bytes


class Verdict(Enum):
    """What to do with a request."""

    EXECUTE = 1
    WAIT = 2  # the same request is being executed; its reply goes to the lane's newest connection
    ANSWER = 3  # executed before; the reply is remembered
    FORGOTTEN = 4  # executed before; the reply is no longer remembered


EXECUTE: Final = Verdict.EXECUTE  # looked up for every request


class Lane:
    """The replies of one lane.

    Attributes:
        session: the newest connection of the lane, None while there is none.
        transport, outgoing: what that connection is of, or was, and how replies are made for it. The server sets both.
        highest: the highest sequence that was admitted.
        executing: sequences that were admitted and have no reply yet.
        replies: sequence -> (envelope and codec parts, their sum in bytes).
        forgets: keep no replies: the client is away, and others are too many.
    """

    __slots__ = (
        "executing",
        "forgets",
        "highest",
        "outgoing",
        "remembered_bytes",
        "replies",
        "session",
        "transport",
    )
    outgoing: Outgoing
    transport: str

    def __init__(self) -> None:
        self.session: Session | None = None
        self.highest = 0
        self.executing: set[int] = set()
        self.replies: dict[int, tuple[list[Buffer], int]] = {}
        self.forgets = False
        self.remembered_bytes = 0

    def admit(self, sequence: int, oldest: int) -> Verdict:
        """Judge a request, and forget the replies below `oldest`."""
        if self.replies:
            if oldest > self.highest:  # as it is where calls come one after the other: all have been answered
                self.forget_all()
            else:
                for answered in [known for known in self.replies if known < oldest]:
                    self._forget(answered)
        if sequence > self.highest:
            self.highest = sequence
            self.executing.add(sequence)
            return EXECUTE
        if sequence in self.replies:
            return Verdict.ANSWER
        return Verdict.WAIT if sequence in self.executing else Verdict.FORGOTTEN

    def remember(self, sequence: int, held: tuple[list[Buffer], int]) -> None:
        """Keep a reply, as `hold` returned it, in place of an earlier one of the same sequence."""
        self.executing.discard(sequence)
        if self.forgets:
            return
        if sequence in self.replies:
            self._forget(sequence)
        self.replies[sequence] = held
        self.remembered_bytes += held[1]
        while len(self.replies) > MAX_REPLIES_PER_LANE or self.remembered_bytes > MAX_BYTES_PER_LANE:
            self._forget(next(iter(self.replies)))

    def forget_all(self) -> None:
        """Drop all replies; which requests were executed stays known."""
        self.replies.clear()
        self.remembered_bytes = 0

    def _forget(self, sequence: int) -> None:
        self.remembered_bytes -= self.replies.pop(sequence)[1]


class ReplyMemory:
    """The lanes of all clients. For the server's loop only.

    Of those without a connection, the replies are bounded in number and bytes. A lane past that keeps what it has executed, so
    that a retry is answered with an unknown outcome and not executed again, up to a larger number of lanes.
    """

    def __init__(self) -> None:
        self._lanes: dict[tuple[bytes, int], Lane] = {}
        self._left: OrderedDict[tuple[bytes, int], Lane] = OrderedDict()
        self._bare: OrderedDict[tuple[bytes, int], Lane] = OrderedDict()

    def attach(self, client: bytes, lane_number: int, session: Session) -> Lane:
        """Return the lane that a new connection serves, with what is remembered of it."""
        key = (client, lane_number)
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = Lane()
        self._left.pop(key, None)
        self._bare.pop(key, None)
        lane.forgets = False
        lane.session = session
        return lane

    def detach(self, client: bytes, lane_number: int, session: Session) -> None:
        """Note that a connection ended; the lane stays for a while, unless it has a newer connection."""
        key = (client, lane_number)
        lane = self._lanes.get(key)
        if lane is None or lane.session is not session:
            return
        lane.session = None
        self._left[key] = lane
        left_bytes = sum(left.remembered_bytes for left in self._left.values())  # replies may have come since they left
        while len(self._left) > MAX_LANES_WITHOUT_CONNECTION or left_bytes > MAX_BYTES_PER_LANE:
            old_key, old = self._left.popitem(last=False)
            left_bytes -= old.remembered_bytes
            old.forget_all()
            old.forgets = True
            self._bare[old_key] = old
        while len(self._bare) > MAX_LANES_WITHOUT_REPLIES:
            del self._lanes[self._bare.popitem(last=False)[0]]
