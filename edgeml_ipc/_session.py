"""One client's connection, seen from the server: what waits to be sent to it, and the version that it has taken."""

from __future__ import annotations

import logging
from collections import deque
from typing import Final

from edgeml_ipc._guests import Offer
from edgeml_ipc._replies import Lane, ReplyMemory
from edgeml_ipc.errors import BufferFull, ConnectionClosed, EdgeMLError, MessageTooLarge, PeerDied, TimeoutError
from edgeml_ipc.protocol import Hello
from edgeml_ipc.transports.base import Buffer, Connection

logger = logging.getLogger("edgeml_ipc")

MAX_WAITING_REPLIES: Final = 256
MAX_WAITING_BYTES: Final = 512 << 20


class Session:
    """A connection with its lane and its outbox: replies that a slow client has no room for yet.

    Attributes:
        offer: the service that it came for.
        taken_version: the newest published version that the client says it has taken; None until it subscribes.
    """

    __slots__ = ("_outbox", "_outbox_bytes", "connection", "hello", "lane", "offer", "taken_version")

    def __init__(self, connection: Connection, hello: Hello, memory: ReplyMemory, offer: Offer) -> None:
        self.connection = connection
        self.hello = hello
        self.offer = offer
        self.lane: Lane = memory.attach(hello.client, hello.lane, self)
        self.taken_version: int | None = None
        self._outbox: deque[list[Buffer]] = deque()
        self._outbox_bytes = 0

    @property
    def waiting(self) -> bool:
        """True while the outbox is not empty."""
        return bool(self._outbox)

    def send(self, parts: list[Buffer]) -> bool:
        """Send now, or copy into the outbox what has no room; never waits.

        Returns:
            False if the outbox is full too: the client is too far behind, and its connection was closed.
        Raises:
            MessageTooLarge: nothing was sent.
        """
        if not self._outbox:
            try:
                self.connection.send(parts, 0)
                return True
            except (BufferFull, TimeoutError):
                pass
            except (PeerDied, ConnectionClosed):
                return True  # `poll` reports the end; the reply is remembered for when the client comes back
            except MessageTooLarge:
                raise
            except EdgeMLError as error:
                self.give_up(error)
                return True
        copied = [part if type(part) is bytes else memoryview(part).tobytes() for part in parts]
        self._outbox_bytes += sum(map(len, copied))
        self._outbox.append(copied)
        if len(self._outbox) > MAX_WAITING_REPLIES or self._outbox_bytes > MAX_WAITING_BYTES:
            self._close()
            return False
        return True

    def give_up(self, error: EdgeMLError) -> None:
        """Close the connection; what the client still wants to know is remembered for when it comes back."""
        logger.warning("%s: closing the connection of a client that cannot be sent to: %s", self.connection.address, error)
        self._close()

    def _close(self) -> None:
        self.connection.close()
        self._outbox.clear()
        self._outbox_bytes = 0

    def flush(self) -> None:
        """Send what there is room for now."""
        while self._outbox:
            try:
                self.connection.send(self._outbox[0], 0)
            except (BufferFull, TimeoutError):
                return
            except (PeerDied, ConnectionClosed):
                self._outbox.clear()
                return
            except EdgeMLError as error:  # a reply over the limit is known to be so only now
                self.give_up(error)
                return
            self._outbox_bytes -= sum(map(len, self._outbox.popleft()))
