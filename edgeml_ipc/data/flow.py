"""Flow: how the inserts and samples of a buffer wait for each other, and samples for rows.

Who may go on is counted when it is granted, before the rows are there or the batch is drawn. What then fails is given back;
what a writer was granted and had not committed when it ended, by death or by `close`, is given back when its place is
recovered. So the counts stray from the truth by no more than the rows that are under way; and for good only where a process
is killed in the instant between a grant and the note of it, or between a sampler's grant and its batch: by that one insert or
batch.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from edgeml_ipc._deadline import Deadline
from edgeml_ipc.data.limiter import Allowed, Ledger, LocalLedger, RateLimiter
from edgeml_ipc.data.storage import Storage
from edgeml_ipc.errors import BufferEmpty, ConnectionClosed, TimeoutError

if TYPE_CHECKING:
    from edgeml_ipc.data._rows import Flow as NativeFlow

Batch = TypeVar("Batch")
_RECOVER_SECONDS: Final = 1.0


class SharedLedger:
    """The counts of a segment, for all its processes; see `Ledger`."""

    def __init__(self, words: NativeFlow, recover: Callable[[], int]) -> None:
        """Use the words of a segment. `recover` ends writers that died, whose grants are given back so."""
        self._words, self._recover = words, recover
        self._recovered_at = -math.inf
        self.begin, self.wake = words.begin, words.wake
        self.read = words.granted
        self.give_back = words.give_back

    def wait(self, seen: int, seconds: float | None, /) -> None:
        """See `Changes`; looks for the dead, too, whose grants may be what one waits for."""
        now = time.monotonic()
        if now - self._recovered_at > _RECOVER_SECONDS:
            self._recovered_at = now
            with contextlib.suppress(ConnectionClosed):  # a forked child cannot
                self._recover()
        self._words.wait(seen, seconds)

    def add(self, inserted: int, sampled: int, allowed: Allowed) -> bool:
        """Add to one of the counts and wake all, if `allowed` says so of both.

        The other may rise meanwhile, which never makes this one's rise too much; or rows be given back, by which the balance
        may then be beyond its bounds until it is asked for the next time.
        """
        while True:
            seen = self._words.granted()
            if not allowed(*seen):
                return False
            added = self._words.grant_insert(seen[0], inserted) if inserted else self._words.grant_sample(seen[1], sampled)
            if added:
                return True


class Flow:
    """What in this process may go on now, and what waits.

    Threads and processes: any thread may call. Waits end with their deadline, with `close`, or with a signal.
    """

    def __init__(self, storage: Storage, timeout: float) -> None:
        """Keep to the limits of a storage.

        Args:
            timeout: seconds that an insert, or a sample without a timeout of its own, waits for the other side.
        Raises:
            ValueError: `timeout` is below 0, or not finite.
        """
        check_timeout("flow_timeout", timeout)
        self._table, self._changes, self._timeout = storage.table, storage.changes, timeout
        self._closed = False
        self.limiter: RateLimiter | None = None
        self._words: NativeFlow | None = None
        if storage.limits is not None:
            ledger: Ledger
            if storage.segment is None:
                ledger = LocalLedger()
            else:
                self._words = cast("NativeFlow", storage.changes)
                ledger = SharedLedger(self._words, storage.table.recover)
            rate, min_rows, slack = storage.limits
            self.limiter = RateLimiter(rate, min_rows=min_rows, slack_samples=slack, ledger=ledger)

    def insert(self, rows: int, place: int, put: Callable[[], None]) -> None:
        """Call `put`, which inserts `rows` rows by the writer at `place`, once it may.

        Raises:
            TimeoutError: the learner did not sample enough in time. ConnectionClosed: closed. ValueError: too many at once.
            Whatever `put` raises. In all cases nothing was counted.
        """
        if self.limiter is None:
            put()
            return
        self.limiter.await_insert(rows, self._timeout)
        done = False
        try:
            self._charge(place, rows)
            put()
            done = True
        finally:
            if not done:
                self._charge(place, -rows)
                self.limiter.take_back(inserted=rows)

    def sample(
        self,
        draw: Callable[[], Batch],
        rows: int,
        timeout: float | None,
        missing: Callable[[], str],
        is_stopped: Callable[[], bool] | None = None,
    ) -> Batch:
        """Call `draw`, which samples `rows` rows, once it may and as soon as it finds something.

        Args:
            timeout: seconds to wait for rows; None: not for rows, but for the rate limiter as long as is usual.
            missing: says what there is instead.
            is_stopped: asked after each `wake`; if it says so the wait ends.
        Raises:
            BufferEmpty: there is nothing to be drawn, and no waiting. TimeoutError: nor was there in time.
            ConnectionClosed: closed, or stopped.
        """
        if timeout is not None:
            check_timeout("timeout", timeout)
        if self.limiter is None:
            return self._draw(draw, rows, Deadline(timeout or 0), bool(timeout), missing, is_stopped)
        usual = self._timeout if timeout is None else timeout
        deadline = Deadline(usual)
        self.limiter.await_sample(rows, usual, is_stopped)
        done = False
        try:
            batch = self._draw(draw, rows, deadline, usual > 0, missing, is_stopped)
            done = True
        finally:
            if not done:
                self.limiter.take_back(sampled=rows)
        return batch

    def wake(self) -> None:
        """Let all who wait look again."""
        self._changes.wake()
        if self.limiter is not None:
            self.limiter.wake()

    def close(self) -> None:
        """End all waits of this process, now and later, with `ConnectionClosed`. Idempotent."""
        self._closed = True
        self._changes.wake()
        if self.limiter is not None:
            self.limiter.close()

    def stats(self) -> dict[str, int]:
        """Return the limiter's counters, if there is one: rows granted in all processes, waits in this one."""
        if self.limiter is None:
            return {}
        counters = self.limiter.stats()
        granted = {"granted_inserts": counters.pop("inserted"), "granted_samples": counters.pop("sampled")}
        return granted | {f"flow_{key}": value for key, value in counters.items()}

    @property
    def piece_inserts(self) -> int | None:
        """How many rows of many to insert at once; None: any number."""
        return None if self.limiter is None else self.limiter.piece_inserts

    def _charge(self, place: int, rows: int) -> None:
        if self._words is not None:
            self._words.charge(place, rows)

    def _draw(
        self,
        draw: Callable[[], Batch],
        rows: int,
        deadline: Deadline,
        waits: bool,
        missing: Callable[[], str],
        is_stopped: Callable[[], bool] | None,
    ) -> Batch:
        try:
            return draw()
        except BufferEmpty:
            if not waits:
                raise
        while True:
            seen = self._changes.begin()
            if self._closed or (is_stopped is not None and is_stopped()):
                raise ConnectionClosed(f"cannot sample {rows} rows: the buffer or the iterator was closed while it waited")
            try:
                return draw()
            except BufferEmpty as error:
                if deadline.expired:
                    raise TimeoutError(f"waited {deadline.spent():.1f} s: {error}; {missing()}") from error
            self._changes.wait(seen, deadline.remaining())


def check_timeout(name: str, seconds: Any) -> None:
    """Raise `ValueError` unless it is a finite number of seconds from 0."""
    if not 0 <= seconds < math.inf:
        raise ValueError(f"{name} must be a finite number of seconds from 0, got {seconds}")
