"""Anchors: from which rows of a shared buffer the batches of a sample config are made, and how likely each is.

A config has one source of anchors: its PrioritySampler, or its TrajectorySampler, or what is recent, or all rows alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import numpy as np

from edgeml_ipc.data.draws import Accept, ByPriority, draw_anchors, draw_proposed, uniform
from edgeml_ipc.data.gather import Rows
from edgeml_ipc.data.prioritized import PriorityTracker
from edgeml_ipc.data.priority import Weights
from edgeml_ipc.data.recent import Recency, RecentRows
from edgeml_ipc.data.runs import Runs, View
from edgeml_ipc.data.sampler import PrioritySampler, Sampler, TrajectorySampler
from edgeml_ipc.data.storage import Storage


class Windowing(NamedTuple):
    """What must be held around an anchor.

    Attributes:
        sample_range: the window [begin, end).
        min_length: steps of the episode.
    """

    sample_range: tuple[int, int]
    min_length: int

    def is_one_row(self) -> bool:
        """Tell whether any row will do."""
        return self.sample_range[0] >= 0 and self.sample_range[1] <= 1 and self.min_length <= 1


class Anchors(NamedTuple):
    """Rows drawn, each `(batch,)`.

    Attributes:
        stamps: by which to tell later whether the rows were overwritten.
        weights: of their priorities, where they were drawn so.
    """

    rows: Rows
    stamps: Rows
    weights: Weights | None = None


class AnchorSource(Protocol):
    """Draws anchors for one config.

    Threads and processes: one thread's at a time. Views must come in the order in which they were made.
    """

    def draw(self, view: View, rng: np.random.Generator, count: int, windowing: Windowing) -> Anchors:
        """Draw anchors with replacement from a view that is not empty. Raises `BufferEmpty`: none fits."""

    def given(self, view: View, rows: Rows) -> Anchors:
        """Make anchors of rows of a view."""


class UniformAnchors:
    """Each anchor whose window fits is equally likely."""

    def draw(self, view: View, rng: np.random.Generator, count: int, windowing: Windowing) -> Anchors:
        """See `AnchorSource`."""
        if windowing.is_one_row():
            rows, stamps = np.empty(count, np.int64), np.empty(count, np.int64)
            view.table.resolve(view.spans, len(view.spans), uniform(rng, view.total, count), rows, stamps)
            return Anchors(rows, stamps)
        return self.given(view, draw_anchors(view.steps, rng, count, windowing.sample_range, min_length=windowing.min_length))

    def given(self, view: View, rows: Rows) -> Anchors:
        """See `AnchorSource`."""
        return Anchors(rows, view.steps.stamps(rows))


class RecentAnchors(UniformAnchors):
    """Anchors that are new enough, the more likely the newer if there is a half-life."""

    def __init__(self, recent: RecentRows) -> None:
        self._recent = recent

    def draw(self, view: View, rng: np.random.Generator, count: int, windowing: Windowing) -> Anchors:
        """See `AnchorSource`."""
        return self.given(view, draw_proposed(lambda: view.steps, self._recent.look(view), rng, count, *windowing))


class TrajectoryAnchors(UniformAnchors):
    """The first steps that are held of episodes, each episode equally likely, whatever its length.

    Those are the rows with position 0, and where overwriting has taken an episode's beginning, the first row of what a writer
    has left. The rows of the first kind are looked for in runs that changed only.
    """

    def __init__(self, storage: Storage, recent: RecentRows | None) -> None:
        self._position = storage.about.arrays["position"]
        self._recent = recent
        self._runs = Runs(storage.capacity, storage.chunk_rows)
        self._starts: dict[int, Rows] = {}

    def draw(self, view: View, rng: np.random.Generator, count: int, windowing: Windowing) -> Anchors:
        """See `AnchorSource`."""
        starts = _Listed(self._in(view))
        if self._recent is not None:
            starts = _Listed(starts.rows[self._recent.look(view).accept(starts.rows)])
        return self.given(view, draw_proposed(lambda: view.steps, starts, rng, count, *windowing))

    def _in(self, view: View) -> Rows:
        for change in self._runs.follow(view):
            run = slice(change.after.begin, change.after.end)
            self._starts[change.key] = np.flatnonzero(self._position[run] == 0) + change.after.begin
        starts = [self._starts[key] for key in self._runs.keys_of(view).tolist()]
        first = view.spans[:, 1]
        cut = first[(self._position[first] != 0) & (view.steps.before(first) == 0)]
        return np.concatenate([cut, *starts])


class PriorityAnchors:
    """Anchors in proportion to their priorities."""

    def __init__(self, tracker: PriorityTracker, recent: RecentRows | None) -> None:
        self.tracker = tracker
        self._recent = recent

    def draw(self, view: View, rng: np.random.Generator, count: int, windowing: Windowing) -> Anchors:
        """See `AnchorSource`."""
        self.tracker.follow(view)
        if windowing.is_one_row() and self._recent is None:
            rows, weights = self.tracker.priorities.tree.sample(rng, count)
            return Anchors(rows, self.tracker.stamps(rows), weights)
        accept: Accept | None = None if self._recent is None else self._recent.look(view).accept
        by_priority = ByPriority(self.tracker.priorities, lambda: view.steps, accept)
        return self._known(draw_proposed(lambda: view.steps, by_priority, rng, count, *windowing))

    def given(self, view: View, rows: Rows) -> Anchors:
        """See `AnchorSource`."""
        self.tracker.follow(view)
        return self._known(rows)

    def _known(self, rows: Rows) -> Anchors:
        return Anchors(rows, self.tracker.stamps(rows), self.tracker.priorities.tree.get(rows))


class _Listed:
    """`Proposals` of some rows, each equally likely."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    def propose(self, rng: np.random.Generator, count: int) -> Rows:
        return self.rows[uniform(rng, len(self.rows), count)] if len(self.rows) else self.rows

    def listed(self) -> tuple[Rows, None]:
        return self.rows, None


def source_for(samplers: Mapping[str, Sampler], recency: Recency, storage: Storage) -> AnchorSource:
    """Return the source of anchors that samplers ask for.

    Raises:
        ValueError: they ask for more than one.
    """
    choosing = [field for field, sampler in samplers.items() if isinstance(sampler, (PrioritySampler, TrajectorySampler))]
    kinds = {type(samplers[field]) for field in choosing}
    prioritized = [sampler for sampler in samplers.values() if isinstance(sampler, PrioritySampler)]
    if len(kinds) > 1 or len(prioritized) > 1:
        raise ValueError(f"the samplers of {choosing} each say how anchors are drawn; one at most can")
    if choosing and recency.half_life_rows is not None:
        raise ValueError(f"the sampler of {choosing[0]!r} says how anchors are drawn; half_life_rows cannot say so, too")
    recent = RecentRows(storage, recency) if recency != Recency() else None
    if prioritized:
        return PriorityAnchors(PriorityTracker(storage, prioritized[0].priorities(storage.capacity)), recent)
    if choosing:
        return TrajectoryAnchors(storage, recent)
    return UniformAnchors() if recent is None else RecentAnchors(recent)
