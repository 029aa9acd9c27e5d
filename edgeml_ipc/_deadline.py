"""One deadline for all the steps of an operation."""

from __future__ import annotations

import time


class Deadline:
    """A moment `seconds` from now, on the monotonic clock; None means never."""

    __slots__ = ("_at", "_start")

    def __init__(self, seconds: float | None) -> None:
        self._start = time.monotonic()
        self._at = None if seconds is None else self._start + seconds

    def remaining(self) -> float | None:
        """Return the seconds that are left, at least 0; None if there is no end."""
        return None if self._at is None else max(0.0, self._at - time.monotonic())

    @property
    def expired(self) -> bool:
        return self._at is not None and time.monotonic() >= self._at

    def spent(self) -> float:
        """Return the seconds since the deadline was set."""
        return time.monotonic() - self._start
