"""Recent rows: anchors only from new rows, from rows of new policies, or the more likely the newer they are.

Age is counted in rows that were inserted since, by all writers: that of the newest row is 0. A run holds rows of one writer in
the order in which they were written, so its first and last row bound the ages of all; only runs that lie across the limit are
searched.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from edgeml_ipc.data.chunks import Ints
from edgeml_ipc.data.draws import Mask
from edgeml_ipc.data.gather import Rows
from edgeml_ipc.data.priority import Weights
from edgeml_ipc.data.runs import Runs, View
from edgeml_ipc.data.storage import Storage

_NO_VERSION: Final = -1


@dataclass(frozen=True)
class Recency:
    """Which rows may be anchors; see `ReplayBuffer.register_sample_config`.

    Raises:
        ValueError: a limit is out of range.
    """

    max_age_rows: int | None = None
    max_staleness: int | None = None
    half_life_rows: float | None = None

    def __post_init__(self) -> None:
        if self.max_age_rows is not None and self.max_age_rows < 1:
            raise ValueError(f"max_age_rows must be at least 1 row, or None, got {self.max_age_rows}")
        if self.max_staleness is not None and self.max_staleness < 0:
            raise ValueError(f"max_staleness must be at least 0 policy versions, or None, got {self.max_staleness}")
        if self.half_life_rows is not None and not 0 < self.half_life_rows < np.inf:
            raise ValueError(f"half_life_rows must be above 0 rows and finite, or None, got {self.half_life_rows}")

    def limits(self) -> bool:
        """Tell whether some rows may not be anchors."""
        return self.max_age_rows is not None or self.max_staleness is not None


class RecentRows:
    """Follows the policy versions of the runs, so that a draw need not look at all rows.

    Threads and processes: one thread's at a time. Views must come in the order in which they were made.
    """

    def __init__(self, storage: Storage, recency: Recency) -> None:
        """Begin with no rows."""
        about = storage.about.arrays
        self.recency = recency
        self.sequence, self.version = about["sequence"], about["policy_version"]
        self._runs = Runs(storage.capacity, storage.chunk_rows)
        self._versions = np.full((self._runs.keys, 2), _NO_VERSION, np.int64)  # least and greatest of each run

    def look(self, view: View) -> RecentProposals:
        """Return what may be drawn of the rows of a view, which must not be empty."""
        if self.recency.max_staleness is None:
            return RecentProposals(self, view, None)
        for change in self._runs.follow(view):
            versions = self.version[change.after.begin : change.after.end]
            self._versions[change.key] = (versions.min(), versions.max()) if len(versions) else _NO_VERSION
        return RecentProposals(self, view, self._versions[self._runs.keys_of(view)])


class RecentProposals:
    """`draws.Proposals` of the rows that are new enough, the more likely the newer if there is a half-life.

    With a half-life a run is chosen in proportion to the most that its rows could weigh, if no others had come between them;
    then a row in it likewise; and the row is accepted with what it does weigh over that. So the draws are exact.
    """

    def __init__(self, recent: RecentRows, view: View, versions: Ints | None) -> None:
        """Find the runs that have rows which are new enough. `versions`: `(runs, 2)`, the least and greatest of each."""
        self._sequence, self._version = recent.sequence, recent.version
        self._half_life = recent.recency.half_life_rows
        self._begin, self._count = view.spans[:, 1].copy(), view.counts.copy()
        last = self._sequence[self._begin + self._count - 1]
        self._newest = int(last.max())
        self._oldest = self._least_version = None
        if recent.recency.max_age_rows is not None:
            self._oldest = self._newest - recent.recency.max_age_rows + 1
            self._count[last < self._oldest] = 0
            across = (self._sequence[self._begin] < self._oldest) & (self._count > 0)
            for run in np.flatnonzero(across).tolist():
                begin, count = int(self._begin[run]), int(self._count[run])
                older = int(np.searchsorted(self._sequence[begin : begin + count], self._oldest))
                self._begin[run], self._count[run] = begin + older, count - older
        if recent.recency.max_staleness is not None and versions is not None:
            self._least_version = max(int(versions[:, 1].max()) - recent.recency.max_staleness, 0)
            self._count[versions[:, 1] < self._least_version] = 0
        self._weights: Weights = self._count.astype(np.float64)
        if self._half_life is not None:
            ages = np.maximum(self._newest - last, 0)
            self._weights = np.exp2(-ages / self._half_life) * -np.expm1(-np.log(2) / self._half_life * self._count)
        self._ends = np.cumsum(self._weights)

    def accept(self, rows: Rows) -> Mask:
        """Tell which rows are new enough."""
        accepted: Mask = np.ones(rows.shape, np.bool_)
        if self._oldest is not None:
            accepted &= self._sequence[rows] >= self._oldest
        if self._least_version is not None:
            accepted &= self._version[rows] >= self._least_version
        return accepted

    def propose(self, rng: np.random.Generator, count: int) -> Rows:
        """Draw rows that are new enough."""
        total = self._ends[-1]
        if not total > 0:
            return np.empty(0, np.int64)
        run = np.searchsorted(self._ends, rng.random(count) * total, side="right")
        run = np.minimum(run, np.flatnonzero(self._weights)[-1])  # rounding only
        rows: Rows = self._begin[run] + rng.integers(0, self._count[run]) if self._half_life is None else self._back(rng, run)
        return rows[self.accept(rows)]

    def listed(self) -> tuple[Rows, Weights | None]:
        """Return all rows that are new enough."""
        ends = np.cumsum(self._count)
        rows: Rows = np.arange(ends[-1]) + np.repeat(self._begin - ends + self._count, self._count)
        rows = rows[self.accept(rows)]
        return rows, None if self._half_life is None else self._wanted(rows)

    def _back(self, rng: np.random.Generator, run: Ints) -> Rows:
        """Draw a row of each run, and leave out some so that the others are as likely as they should be."""
        assert self._half_life is not None
        rate = np.log(2) / self._half_life
        count = self._count[run]
        share = rng.random(run.shape) * -np.expm1(-rate * count)
        back = np.minimum((-np.log1p(-share) / rate).astype(np.int64), count - 1)  # rows from the last; rounding only
        last = self._begin[run] + count - 1
        rows = last - back
        others = self._sequence[last] - self._sequence[rows] - back  # that came in between, of other writers
        rows_kept: Rows = rows[rng.random(run.shape) < np.exp2(-others / self._half_life)]
        return rows_kept

    def _wanted(self, rows: Rows) -> Weights:
        assert self._half_life is not None
        ages: npt.NDArray[np.float64] = (self._newest - self._sequence[rows]) / self._half_life
        weights: Weights = np.exp2(ages.min(initial=np.inf) - ages)
        return weights
