"""Waiting: how a thread waits until something changes in a buffer, in this process or in another.

    seen = changes.begin()          # before one looks: what happens from here on ends the wait
    if not there():
        changes.wait(seen, seconds)

`_rows.Flow` does this with a futex in the segment; `LocalChanges` with a condition variable, for the threads of one process.
"""

from __future__ import annotations

from threading import Condition
from typing import Protocol


class Changes(Protocol):
    """Something that changes, and those who wait for it."""

    def begin(self) -> int:
        """Return what to hand to `wait`; look at what is waited for only after this."""

    def wait(self, seen: int, seconds: float | None, /) -> None:
        """Return once something changed since `begin` returned `seen`, or after so many seconds, or sooner."""

    def wake(self) -> None:
        """Let all who wait return."""


class LocalChanges:
    """Changes in the memory of one process; who makes one calls `wake` after it."""

    def __init__(self) -> None:
        """Begin with none."""
        self._changed = Condition()
        self._count = 0

    def begin(self) -> int:
        """See `Changes`."""
        return self._count

    def wait(self, seen: int, seconds: float | None, /) -> None:
        """See `Changes`."""
        with self._changed:
            self._changed.wait_for(lambda: self._count != seen, seconds)

    def wake(self) -> None:
        """See `Changes`."""
        with self._changed:
            self._count += 1
            self._changed.notify_all()
