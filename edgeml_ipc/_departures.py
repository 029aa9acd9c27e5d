"""Clients that went away, and whether they came back: a link that breaks for a moment must not end a client's episodes."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Final

GRACE_SECONDS: Final = 3.0


class Departures:
    """Remembers who left, and says after a while who did not come back. For one thread."""

    def __init__(self, grace_seconds: float = GRACE_SECONDS) -> None:
        self._grace = grace_seconds
        self._left: dict[bytes, float] = {}

    def note(self, client: bytes) -> None:
        """Note that a client's last connection ended."""
        self._left.pop(client, None)  # so that the dict stays in the order of the moments
        self._left[client] = monotonic() + self._grace

    def due(self, is_connected: Callable[[bytes], bool]) -> list[bytes]:
        """Return, once, the clients that have been away for long enough."""
        now, gone = monotonic(), []
        for client, end in list(self._left.items()):
            if end > now:
                break
            del self._left[client]
            if not is_connected(client):
                gone.append(client)
        return gone

    def seconds_to_next(self) -> float | None:
        """Return when `due` may have something to say; None: it has not."""
        return max(0.0, next(iter(self._left.values())) - monotonic()) if self._left else None
