"""Drawing the anchors of a batch: one step t for each element, whose window [t + begin, t + end) lies in one episode.

An anchor is found by drawing the *last* step of its window uniformly from all rows and accepting it if enough steps of its
episode lie before it. So every window is equally likely, the one that ends with an episode's terminal step included, and no
index is ever moved to make it fit. Pure index logic: no storage, no copying, no state but the generator's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from edgeml_ipc.data.gather import Rows
from edgeml_ipc.data.priority import Priorities, Weights
from edgeml_ipc.errors import BufferEmpty

Mask = npt.NDArray[np.bool_]
Accept = Callable[[Rows], Mask]

_ROUNDS: Final = 8  # of drawing and rejecting; then the eligible rows are listed, which takes a pass over all of them
_DRAWS_PER_MISSING: Final = 64


class Steps(Protocol):
    """What a sampler must know of the rows that a store holds at one moment.

    Rows may lie anywhere: an episode's steps are found by `shift`, not by adding to a row number.
    """

    def draw(self, rng: np.random.Generator, count: int, first: int, last: int, min_length: int) -> Rows:
        """Draw the last steps of `count` windows uniformly from `rows()`, and return the anchors of those that fit.

        Args:
            first, last: the window reaches from `anchor + first` to `anchor + last`, at most and at least the anchor itself.
            min_length: steps of the episode.
        Returns:
            up to `count` rows, in the order in which they were drawn.
        Raises:
            BufferEmpty: there are no rows.
        """

    def rows(self) -> Rows:
        """Return all rows that may be drawn, each once, in an order that depends on what was inserted only."""

    def before(self, rows: Rows) -> Rows:
        """Return, for each row, how many steps just before it in its episode are held."""

    def after(self, rows: Rows) -> Rows:
        """Return, for each row, how many steps just after it in its episode are held."""

    def shift(self, rows: Rows, offsets: Rows) -> Rows:
        """Return the row that lies `offset` steps further on (broadcast); asked only within `before` and `after`."""

    def window(self, anchors: Rows, begin: int, end: int) -> tuple[Rows, Mask]:
        """Return the rows `[anchor + begin, anchor + end)` of each anchor's episode, and which those are.

        Returns:
            rows `(batch, end - begin)`, -1 where the episode has no such step; the mask, False there.
        """


class ArraySteps:
    """`Steps` of plain arrays, for stores that are small or seldom change: preparing it sorts all rows.

    Example:
        >>> steps = ArraySteps(position=[0, 1, 2, 0, 1], episode=[7, 7, 7, 9, 9])
        >>> steps.before(np.array([2, 3])).tolist(), steps.after(np.array([0, 3])).tolist()
        ([2, 0], [2, 1])
    """

    def __init__(self, position: Any, episode: Any, valid: Any = None) -> None:
        """Sort the rows into episodes.

        Args:
            position: `(rows,)`, which step of its episode a row is.
            episode: `(rows,)`, a number of its own for each episode of each writer.
            valid: `(rows,)`, False for rows that hold nothing; None: all hold a step.
        """
        positions, episodes = np.asarray(position, np.int64), np.asarray(episode, np.int64)
        held = np.arange(len(positions)) if valid is None else np.flatnonzero(np.asarray(valid, bool))
        self._order: Rows = held[np.lexsort((positions[held], episodes[held]))]
        first, second = self._order[:-1], self._order[1:]
        joined = (episodes[first] == episodes[second]) & (positions[first] + 1 == positions[second])
        ranks = np.arange(len(self._order))
        begins = np.maximum.accumulate(np.where(np.append(False, joined)[: len(ranks)], 0, ranks))
        ends = np.minimum.accumulate(np.where(np.append(joined, False)[: len(ranks)], len(ranks), ranks)[::-1])[::-1]
        self._rank = np.full(len(positions), -1, np.int64)
        self._rank[self._order] = ranks
        self._before, self._after = ranks - begins, ends - ranks

    def draw(self, rng: np.random.Generator, count: int, first: int, last: int, min_length: int) -> Rows:
        """Draw windows; see `Steps`."""
        if not len(self._order):
            raise BufferEmpty(f"cannot draw {count} rows: none of {len(self._rank)} holds a step")
        return fitting(self, self._order[uniform(rng, len(self._order), count)], first, last, min_length)

    def rows(self) -> Rows:
        """Return all rows that hold a step, episode by episode."""
        return self._order

    def before(self, rows: Rows) -> Rows:
        """Return how many steps of the episode lie before each row, without a gap."""
        return self._before[self._rank[rows]]

    def after(self, rows: Rows) -> Rows:
        """Return how many steps of the episode lie after each row, without a gap."""
        return self._after[self._rank[rows]]

    def shift(self, rows: Rows, offsets: Rows) -> Rows:
        """Return the rows `offsets` steps further on."""
        shifted: Rows = self._order[self._rank[rows] + offsets]
        return shifted

    def window(self, anchors: Rows, begin: int, end: int) -> tuple[Rows, Mask]:
        """Return the rows of each anchor's window, and which are there; see `Steps`."""
        return window(self, anchors, begin, end)


def window(steps: Steps, anchors: Rows, begin: int, end: int) -> tuple[Rows, Mask]:
    """Find the windows of `Steps.window` by its other methods."""
    anchors, offsets = anchors[:, None], np.arange(begin, end)[None, :]
    there = (offsets >= -steps.before(anchors)) & (offsets <= steps.after(anchors))
    rows = steps.shift(anchors, np.where(there, offsets, 0))
    return np.where(there, rows, -1), there


def fitting(steps: Steps, ends: Rows, first: int, last: int, min_length: int) -> Rows:
    """Return the anchors of the windows that end with the rows `ends`, of those that fit; see `Steps.draw`."""
    before = steps.before(ends)
    fits = before >= last - first
    if min_length > last - first + 1:
        fits &= before + steps.after(ends) + 1 >= min_length
    ends = ends[fits]
    return steps.shift(ends, np.full(ends.shape, -last)) if last else ends


def uniform(rng: np.random.Generator, end: int, count: int) -> Rows:
    """Draw integers below `end`, which is at most 2**40: what `rng.integers` does in four times the time.

    A random number in [0, 1) has 53 bits, so no integer is likelier than another by more than one part in 2**13, at 2**40.
    """
    return (rng.random(count) * end).astype(np.int64)


def draw_anchors(
    steps: Steps,
    rng: np.random.Generator,
    count: int,
    sample_range: tuple[int, int] = (0, 1),
    *,
    min_length: int = 1,
) -> Rows:
    """Draw steps uniformly, with replacement, from all whose window lies in their episode.

    Args:
        sample_range: the window `[anchor + begin, anchor + end)`; the anchor itself must be there too.
        min_length: episodes of which fewer steps are held are left out.
    Returns:
        `(count,)` rows.
    Raises:
        BufferEmpty: there is no such step. ValueError: `count` is below 1, or the range is empty.
    """
    first, last = _window(count, sample_range)

    def listed(missing: int) -> Rows:
        every = fitting(steps, steps.rows(), first, last, min_length)
        if not len(every):
            raise BufferEmpty(_nothing_fits(steps, sample_range, min_length))
        return every[uniform(rng, len(every), missing)]

    return _filled(count, lambda wanted: steps.draw(rng, wanted, first, last, min_length), listed, spare=count // 8)


class Proposals(Protocol):
    """Rows with a probability each, from which anchors are taken: any that is proposed, unless its window does not fit."""

    def propose(self, rng: np.random.Generator, count: int) -> Rows:
        """Draw up to `count` rows with replacement: all of them, or what is left after rejecting."""

    def listed(self) -> tuple[Rows, Weights | None]:
        """Return each row that can be proposed once, and their weights; None: all are equal."""


def draw_proposed(
    steps: Callable[[], Steps],
    proposals: Proposals,
    rng: np.random.Generator,
    count: int,
    sample_range: tuple[int, int] = (0, 1),
    min_length: int = 1,
) -> Rows:
    """Draw steps as they are proposed from all whose window lies in their episode; arguments and errors as `draw_anchors`.

    Args:
        steps: called only if there is a window to look at.
    """
    first, last = _window(count, sample_range)

    def fits(rows: Rows) -> Mask:
        if first == last == 0 and min_length <= 1:
            return np.ones(rows.shape, bool)
        before, after = steps().before(rows), steps().after(rows)
        fitting: Mask = (before >= -first) & (after >= last) & (before + after + 1 >= min_length)
        return fitting

    def drawn(wanted: int) -> Rows:
        rows = proposals.propose(rng, wanted)
        return rows[fits(rows)]

    def listed(missing: int) -> Rows:
        rows, weights = proposals.listed()
        fitting = fits(rows)
        rows = rows[fitting]
        weights = np.ones(len(rows)) if weights is None else weights[fitting]
        if not weights.sum() > 0:
            reason = _nothing_fits(steps(), sample_range, min_length)
            raise BufferEmpty(f"{reason}; {len(fitting)} rows may be anchors by priority, age and policy version")
        return rng.choice(rows, missing, p=weights / weights.sum())

    return _filled(count, drawn, listed)


class ByPriority:
    """`Proposals` in proportion to priorities.

    A row must have a priority only while the steps hold it.
    """

    def __init__(self, priorities: Priorities, steps: Callable[[], Steps], accept: Accept | None = None) -> None:
        """Take the rows that `accept` accepts; None: all."""
        self._tree, self._steps, self._accept = priorities.tree, steps, accept
        self._stratified = True  # the first round; those that make up for rejected rows cannot be

    def propose(self, rng: np.random.Generator, count: int) -> Rows:
        """Draw rows by priority."""
        rows = self._tree.sample(rng, count, stratified=self._stratified)[0]
        self._stratified = False
        return rows if self._accept is None else rows[self._accept(rows)]

    def listed(self) -> tuple[Rows, Weights]:
        """Return all rows and their priorities."""
        rows = self._steps().rows()
        rows = rows if self._accept is None else rows[self._accept(rows)]
        return rows, self._tree.get(rows)


def check_window(name: str, begin: int, end: int) -> None:
    """Raise `ValueError` unless `[begin, end)` has at least one step."""
    if begin >= end:
        raise ValueError(f"{name} must make a window [begin, end) of at least one step, got begin={begin}, end={end}")


def required_steps(sample_range: tuple[int, int]) -> tuple[int, int]:
    """Return the offsets of the first and the last step that must be there, the anchor's 0 among them."""
    return min(sample_range[0], 0), max(sample_range[1] - 1, 0)


def _window(count: int, sample_range: tuple[int, int]) -> tuple[int, int]:
    """Check the arguments of a draw, and return the `required_steps`."""
    if count < 1:
        raise ValueError(f"the batch size must be at least 1, got {count}")
    check_window("sample_range", *sample_range)
    return required_steps(sample_range)


def _filled(count: int, draw: Callable[[int], Rows], listed: Callable[[int], Rows], spare: int = 0) -> Rows:
    """Collect `count` rows: what some rounds of drawing and rejecting leave, the rest from the list of all eligible ones.

    The first round draws `spare` rows more, of which the last are not used: draws must not depend on one another.
    """
    found: list[Rows] = []
    missing, tried, kept = count, 0, 0
    for _ in range(_ROUNDS):
        # The more is rejected, the more is drawn at once.
        wanted = missing + spare if tried == 0 else min(-(-missing * tried // max(kept, 1)) + 8, missing * _DRAWS_PER_MISSING)
        rows = draw(wanted)
        tried, kept = tried + wanted, kept + len(rows)
        found.append(rows[:missing])
        missing -= len(found[-1])
        if not missing:
            break
    else:
        found.append(listed(missing))
    return found[0] if len(found) == 1 else np.concatenate(found)


def _nothing_fits(steps: Steps, sample_range: tuple[int, int], min_length: int) -> str:
    rows = steps.rows()
    longest = int((steps.before(rows) + steps.after(rows)).max(initial=-1)) + 1
    return (
        f"none of {len(rows)} rows fits: sample_range {sample_range} and min_length {min_length} are required, "
        f"the longest episode has {longest} steps"
    )
