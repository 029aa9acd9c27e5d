"""Flow control: how many samples a learner takes for each row that actors insert.

    balance = inserted * samples_per_insert - sampled        samples that the learner may be said to be owed

    |<-------- slack -------->|<-------- slack -------->|
    lowest                 target                    highest      target = min_rows * samples_per_insert
      a sample waits where it would bring the balance below `lowest`; an insert waits where it would bring it above `highest`

A learner that is too fast waits for actors, actors that are too fast wait for the learner; in between nobody waits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from threading import Lock
from typing import NamedTuple, Protocol

from edgeml_ipc._deadline import Deadline
from edgeml_ipc.data.waiting import Changes, LocalChanges
from edgeml_ipc.errors import ConnectionClosed, TimeoutError

Allowed = Callable[[int, int], bool]


class Limits(NamedTuple):
    """What a rate limiter keeps to; see `RateLimiter`."""

    samples_per_insert: float | None
    min_rows: int
    slack_samples: float


class Ledger(Changes, Protocol):
    """Where the two counts stand, and how to wait until they change: the seam between one process and several."""

    def read(self) -> tuple[int, int]:
        """Return (inserted, sampled) in rows."""

    def add(self, inserted: int, sampled: int, allowed: Allowed) -> bool:
        """If `allowed(inserted, sampled)` is true of the counts as they stand, add to one in the same step and wake all."""

    def give_back(self, inserted: int, sampled: int) -> None:
        """Subtract from the counts and wake all."""


class LocalLedger(LocalChanges):
    """The counts of one process."""

    def __init__(self, inserted: int = 0, sampled: int = 0) -> None:
        """Begin with counts, those of a buffer that was loaded, say."""
        super().__init__()
        self._counts = (inserted, sampled)
        self._lock = Lock()

    def read(self) -> tuple[int, int]:
        """Return (inserted, sampled) in rows."""
        return self._counts

    def add(self, inserted: int, sampled: int, allowed: Allowed) -> bool:
        """Add to the counts and wake all, if `allowed` says so of them."""
        with self._lock:
            if not allowed(*self._counts):
                return False
            self._counts = (self._counts[0] + inserted, self._counts[1] + sampled)
        self.wake()
        return True

    def give_back(self, inserted: int, sampled: int) -> None:
        """Subtract from the counts and wake all."""
        self.add(-inserted, -sampled, lambda *_: True)


class RateLimiter:
    """Makes inserts and samples wait for each other, so that rows are sampled some number of times on average.

    Threads and processes: any thread may call; blocking calls release the interpreter lock and end with their deadline, with
    `close`, or with a signal. As wide as its ledger: the default is of one process.

    Example:
        >>> limiter = RateLimiter(samples_per_insert=2, min_rows=10, slack_samples=12)
        >>> limiter.await_insert(10, timeout=1)
        >>> limiter.await_sample(4, timeout=1)
        >>> limiter.await_sample(10, timeout=0)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        edgeml_ipc.errors.TimeoutError: cannot sample 10 rows: waited 0.0 s for 1 more inserted rows: 10 rows were inserted ...
    """

    def __init__(
        self,
        samples_per_insert: float | None,
        *,
        min_rows: int = 1,
        slack_samples: float | None = None,
        ledger: Ledger | None = None,
    ) -> None:
        """Set the rate.

        Args:
            samples_per_insert: sampled rows per inserted row, on average; None: no rate, only `min_rows`.
            min_rows: nothing is sampled before so many rows were inserted, and no insert waits until then.
            slack_samples: how far the sampled rows may be from the rate, to both sides; None: the most of 1024 rows, the worth
                of 64 inserts, and a tenth of the worth of `min_rows`.
            ledger: the counts; None: new ones, of this process.
        Raises:
            ValueError: a number out of range; a slack so small that neither side could ever move.
        """
        if samples_per_insert is not None and not (0 < samples_per_insert < math.inf):
            raise ValueError(f"samples_per_insert must be None, or finite and above 0, got {samples_per_insert}")
        if min_rows < 1:
            raise ValueError(f"min_rows must be at least 1 row, got {min_rows}")
        rate = samples_per_insert or 0.0
        slack = max(1024.0, 64 * rate, 0.1 * min_rows * rate) if slack_samples is None else slack_samples
        if not (1 + rate) / 2 <= slack < math.inf:
            raise ValueError(
                f"slack_samples must be at least (1 + samples_per_insert) / 2 = {(1 + rate) / 2}, got {slack_samples}"
            )
        self.samples_per_insert, self.min_rows, self.slack_samples = samples_per_insert, min_rows, slack
        self.limits = Limits(samples_per_insert, min_rows, slack)
        self._rate = rate
        self._lowest, self._highest = min_rows * rate - slack, min_rows * rate + slack
        self._ledger: Ledger = LocalLedger() if ledger is None else ledger
        self._closed = False
        self._lock = Lock()
        self._counters = {"insert_waits": 0, "sample_waits": 0, "insert_timeouts": 0, "sample_timeouts": 0, "waited_us": 0}

    def await_insert(self, rows: int, timeout: float | None = None, is_stopped: Callable[[], bool] | None = None) -> None:
        """Wait until `rows` rows may be inserted, and count them as inserted.

        Args:
            timeout: seconds; None waits for ever, 0 not at all.
            is_stopped: asked whenever the ledger is woken; if it says so the wait ends as by `close`.
        Raises:
            TimeoutError: the learner did not take enough samples in time; nothing was counted.
            ConnectionClosed: the limiter was closed. ValueError: so many rows at once can never be inserted at this slack.
        """
        self._refuse("insert", rows, rows * self._rate + 1)
        self._await("insert", rows, timeout, self._may_insert, is_stopped)

    def await_sample(self, rows: int, timeout: float | None = None, is_stopped: Callable[[], bool] | None = None) -> None:
        """Wait until `rows` rows may be sampled, and count them as sampled; arguments and errors as `await_insert`."""
        self._refuse("sample", rows, rows + self._rate)
        self._await("sample", rows, timeout, self._may_sample, is_stopped)

    def take_back(self, *, inserted: int = 0, sampled: int = 0) -> None:
        """Subtract rows that were counted but, for an error, neither inserted nor sampled."""
        self._ledger.give_back(inserted, sampled)

    @property
    def most_inserts(self) -> int | None:
        """The most rows that may ever be inserted at once; None: any number."""
        if not self._rate:
            return None
        most = int((2 * self.slack_samples - 1) / self._rate) + 1  # the quotient may have been rounded
        while most > 1 and most * self._rate + 1 > 2 * self.slack_samples:
            most -= 1
        return most

    @property
    def piece_inserts(self) -> int | None:
        """How many rows to insert at once so that samples of up to `slack_samples` rows always let them pass; None: any number.

        Larger inserts and samples that wait for each other may both find no room, until one of them gives up.
        """
        return max(1, int(self.slack_samples / self._rate)) if self._rate else None

    def wake(self) -> None:
        """Let all who wait look again, and ask whether they are stopped."""
        self._ledger.wake()

    def close(self) -> None:
        """End all waits, now and later, with `ConnectionClosed`. Idempotent."""
        self._closed = True
        self._ledger.wake()

    def stats(self) -> dict[str, int]:
        """Return counters: rows inserted and sampled, waits and timeouts of both sides, microseconds waited in all."""
        inserted, sampled = self._ledger.read()
        with self._lock:
            return {"inserted": inserted, "sampled": sampled, **self._counters}

    def _may_insert(self, rows: int, inserted: int, sampled: int) -> bool:
        if self.samples_per_insert is None or inserted < self.min_rows:  # before, the learner could not move either
            return True
        return (inserted + rows) * self._rate - sampled <= self._highest

    def _may_sample(self, rows: int, inserted: int, sampled: int) -> bool:
        if inserted < self.min_rows:
            return False
        return self.samples_per_insert is None or inserted * self._rate - sampled - rows >= self._lowest

    def _refuse(self, verb: str, rows: int, samples: float) -> None:
        if rows < 1:
            raise ValueError(f"the rows to {verb} must be at least 1, got {rows}")
        if self.samples_per_insert is not None and samples > 2 * self.slack_samples:
            most = self.most_inserts if verb == "insert" else int(2 * self.slack_samples - self._rate)
            raise ValueError(
                f"cannot {verb} {rows} rows at once: with samples_per_insert {self.samples_per_insert} this needs "
                f"slack_samples of at least {samples / 2}, got {self.slack_samples}, which allows {most} rows at once"
            )

    def _await(
        self,
        verb: str,
        rows: int,
        timeout: float | None,
        may: Callable[[int, int, int], bool],
        is_stopped: Callable[[], bool] | None,
    ) -> None:
        def grant() -> bool:
            if self._closed or (is_stopped is not None and is_stopped()):
                raise ConnectionClosed(f"cannot {verb} {rows} rows: the buffer or its rate limiter was closed")
            return self._ledger.add(*added, lambda inserted, sampled: may(rows, inserted, sampled))

        added = (rows, 0) if verb == "insert" else (0, rows)
        if grant():
            return
        deadline = Deadline(timeout)
        self._count(f"{verb}_waits", int(timeout != 0))
        try:
            while True:
                seen = self._ledger.begin()
                if grant():
                    return
                if deadline.expired:
                    self._count(f"{verb}_timeouts")
                    raise TimeoutError(self._reason(verb, rows, deadline.spent()))
                self._ledger.wait(seen, deadline.remaining())
        finally:
            if timeout != 0:
                self._count("waited_us", int(deadline.spent() * 1e6))

    def _count(self, name: str, amount: int = 1) -> None:
        with self._lock:
            self._counters[name] += amount

    def _reason(self, verb: str, rows: int, seconds: float) -> str:
        inserted, sampled = self._ledger.read()
        if verb == "insert":
            lacking = math.ceil((inserted + rows) * self._rate - sampled - self._highest)
            needed = f"the learner to sample {lacking} more rows"
        elif inserted < self.min_rows:
            needed = f"{self.min_rows - inserted} more inserted rows, to begin with"
        else:
            needed = f"{math.ceil((self._lowest + rows + sampled) / self._rate) - inserted} more inserted rows"
        return (
            f"cannot {verb} {rows} rows: waited {seconds:.1f} s for {needed}: {inserted} rows were inserted and {sampled} "
            f"sampled, samples_per_insert is {self.samples_per_insert}, min_rows {self.min_rows}, "
            f"slack_samples {self.slack_samples}"
        )


def limits_in(samples_per_insert: float, min_rows: int, slack_samples: float) -> Limits | None:
    """Return the limits that a segment's header has, or None if it has none. Raises ValueError: they are no limits."""
    if min_rows == 0:
        return None
    return RateLimiter(samples_per_insert or None, min_rows=min_rows, slack_samples=slack_samples).limits
