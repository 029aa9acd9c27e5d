"""Samplers: which rows a batch is made of. Pure index logic: no storage, no copying, no state but the generator's.

    anchors   one drawn step t for each element of the batch, whose window [t + begin, t + end) lies in one episode
    samplers  for each field of the batch, rows relative to its anchors; -1 and a mask that is False where there is none

An anchor is found by drawing the *last* step of its window uniformly from all rows and accepting it if enough steps of its
episode lie before it. So every window is equally likely, the one that ends with an episode's terminal step included, and no
index is ever moved to make it fit.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from enum import IntEnum
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from edgeml_ipc.data.gather import Rows
from edgeml_ipc.data.priority import Drawn, Priorities, importance_weights
from edgeml_ipc.errors import BufferEmpty

Mask = npt.NDArray[np.bool_]
Accept = Callable[[Rows], Mask]

_ROUNDS: Final = 8  # of drawing and rejecting; then the eligible rows are listed, which takes a pass over all of them
_DRAWS_PER_MISSING: Final = 64


class Steps(Protocol):
    """What a sampler must know of the rows that a store holds at one moment.

    Rows may lie anywhere: an episode's steps are found by `shift`, not by adding to a row number.
    """

    def draw(self, rng: np.random.Generator, count: int) -> Rows:
        """Draw rows uniformly from `rows()`, with replacement; raise `BufferEmpty` if there are none."""

    def rows(self) -> Rows:
        """Return all rows that may be drawn, each once, in an order that depends on what was inserted only."""

    def before(self, rows: Rows) -> Rows:
        """Return, for each row, how many steps just before it in its episode are held."""

    def after(self, rows: Rows) -> Rows:
        """Return, for each row, how many steps just after it in its episode are held."""

    def shift(self, rows: Rows, offsets: Rows) -> Rows:
        """Return the row that lies `offset` steps further on (broadcast); asked only within `before` and `after`."""


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

    def draw(self, rng: np.random.Generator, count: int) -> Rows:
        """Draw rows uniformly, with replacement."""
        if not len(self._order):
            raise BufferEmpty(f"cannot draw {count} rows: none of {len(self._rank)} holds a step")
        return self._order[rng.integers(0, len(self._order), count)]

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
        return self._order[self._rank[rows] + offsets]


class Pick(NamedTuple):
    """Rows for one field of a batch.

    Attributes:
        rows: `(batch,)` or `(batch, time)` int64, -1 where the episode has no such step (or it is no longer held).
        mask: of the same shape, False where rows is -1.
        offset: `(batch,)` steps from the anchor, where the sampler chose them; else None.
    """

    rows: Rows
    mask: Mask
    offset: Rows | None = None


class Sampler(ABC):
    """Chooses the rows of one field, given the anchors of the batch.

    Attributes:
        source: name of the stored field; None: the one that is called as the field of the batch is.
    """

    def __init__(self, source: str | None = None) -> None:
        self.source = source

    @abstractmethod
    def pick(self, steps: Steps, anchors: Rows, rng: np.random.Generator) -> Pick:
        """Return rows for `anchors`, `(batch,)`. Never leaves an anchor's episode, never moves an index to make it fit."""


class LatestSampler(Sampler):
    """The anchor's own step, `(batch, *item)`."""

    def pick(self, steps: Steps, anchors: Rows, rng: np.random.Generator) -> Pick:
        """Return the anchors."""
        return Pick(anchors, np.ones(anchors.shape, bool))


class SequenceSampler(Sampler):
    """The steps `[anchor + begin, anchor + end)`, `(batch, end - begin, *item)`, masked where the episode has none.

    Example:
        >>> steps = ArraySteps(position=[0, 1, 2], episode=[0, 0, 0])
        >>> SequenceSampler(begin=-1, end=2).pick(steps, np.array([0, 1]), np.random.default_rng()).rows.tolist()
        [[-1, 0, 1], [0, 1, 2]]
    """

    def __init__(self, squeeze: bool = False, begin: int = 0, end: int = 1, source: str | None = None) -> None:
        """Choose the window.

        Args:
            squeeze: leave out the time axis; only for windows of one step.
        Raises:
            ValueError: `end` is not past `begin`, or `squeeze` with a longer window.
        """
        super().__init__(source)
        _check_range("begin and end", begin, end)
        if squeeze and end - begin != 1:
            raise ValueError(f"squeeze needs a window of one step, got begin={begin}, end={end}")
        self.squeeze, self.begin, self.end = squeeze, begin, end

    def pick(self, steps: Steps, anchors: Rows, rng: np.random.Generator) -> Pick:
        """Return the window of each anchor."""
        if self.squeeze:
            return _reach(steps, anchors, np.full(anchors.shape, self.begin))
        return _reach(steps, anchors[:, None], np.arange(self.begin, self.end)[None, :])


class FutureSampler(Sampler):
    """One step of the anchor's own future (the anchor included), for hindsight goals; `Pick.offset` says how far.

    UNIFORM: each of the steps from the anchor to the end of its episode, or of the first `max_future` of them, is equally likely.
    EXPONENTIAL: the offset is k with a probability proportional to exp(-k / lambda_), among the same steps. Nothing piles up at
    the end of an episode.
    """

    class Distribution(IntEnum):
        """How offsets are drawn."""

        UNIFORM = 0
        EXPONENTIAL = 1

    def __init__(
        self,
        distribution: Distribution | str = Distribution.UNIFORM,
        max_future: int | None = None,
        lambda_: float | None = None,
        source: str | None = None,
    ) -> None:
        """Choose the distribution.

        Args:
            distribution: one of `Distribution`, or its name.
            max_future: offsets are below this; None: up to the end of the episode.
            lambda_: for EXPONENTIAL, in steps, above 0.
        Raises:
            ValueError: an argument is out of range, or `lambda_` is missing or superfluous.
        """
        super().__init__(source)
        names = {kind.name.lower(): kind for kind in self.Distribution}
        if isinstance(distribution, str):
            if distribution.lower() not in names:
                raise ValueError(f"distribution must be one of {sorted(names)}, got {distribution!r}")
            distribution = names[distribution.lower()]
        self.distribution = self.Distribution(distribution)
        if max_future is not None and max_future < 1:
            raise ValueError(f"max_future must be at least 1 step, or None, got {max_future}")
        exponential = self.distribution is self.Distribution.EXPONENTIAL
        if exponential and not (lambda_ is not None and 0 < lambda_ < np.inf):
            raise ValueError(f"EXPONENTIAL needs lambda_ above 0, in steps, got {lambda_}")
        if not exponential and lambda_ is not None:
            raise ValueError(f"lambda_ belongs to EXPONENTIAL, got {lambda_} with {self.distribution.name}")
        self.max_future, self.lambda_ = max_future, lambda_

    def pick(self, steps: Steps, anchors: Rows, rng: np.random.Generator) -> Pick:
        """Draw one offset for each anchor."""
        limit = steps.after(anchors) + 1
        if self.max_future is not None:
            limit = np.minimum(limit, self.max_future)
        if self.lambda_ is None:
            offsets = rng.integers(0, limit)
        else:
            # The inverse of the distribution function, cut off at `limit`: 1 - exp(-k / lambda) over 1 - exp(-limit / lambda).
            share = rng.random(anchors.shape) * -np.expm1(-limit / self.lambda_)
            offsets = np.minimum((-self.lambda_ * np.log1p(-share)).astype(np.int64), limit - 1)  # rounding only
        return Pick(steps.shift(anchors, offsets), np.ones(anchors.shape, bool), offsets)


class PrioritySampler(Sampler):
    """Lets a config draw its anchors by priority, by `draw_prioritized` with `priorities(capacity)`; rows as `LatestSampler`."""

    def __init__(self, alpha: float = 0.6, beta: float = 0.4, epsilon: float = 1e-6, source: str | None = None) -> None:
        """Choose the exponents; see `Priorities`."""
        super().__init__(source)
        self.alpha, self.beta, self.epsilon = alpha, beta, epsilon
        self.priorities(1)  # checks the arguments

    def priorities(self, capacity: int) -> Priorities:
        """Make the priorities of `capacity` rows that this sampler's exponents ask for."""
        return Priorities(capacity, alpha=self.alpha, beta=self.beta, epsilon=self.epsilon)

    def pick(self, steps: Steps, anchors: Rows, rng: np.random.Generator) -> Pick:
        """Return the anchors."""
        return Pick(anchors, np.ones(anchors.shape, bool))


def draw_anchors(
    steps: Steps,
    rng: np.random.Generator,
    count: int,
    sample_range: tuple[int, int] = (0, 1),
    *,
    min_length: int = 1,
    accept: Accept | None = None,
) -> Rows:
    """Draw steps uniformly, with replacement, from all whose window lies in their episode.

    Args:
        sample_range: the window `[anchor + begin, anchor + end)`; the anchor itself must be there too.
        min_length: episodes of which fewer steps are held are left out.
        accept: tells which anchors may be used (new enough, say); None: all.
    Returns:
        `(count,)` rows.
    Raises:
        BufferEmpty: there is no such step. ValueError: `count` is below 1, or the range is empty.
    """
    first, last = _window(count, sample_range)

    def eligible(ends: Rows) -> Rows:
        before = steps.before(ends)
        fits = before >= last - first
        if min_length > last - first + 1:
            fits &= before + steps.after(ends) + 1 >= min_length
        ends = ends[fits]
        anchors = steps.shift(ends, np.full(ends.shape, -last)) if last else ends
        return anchors if accept is None else anchors[accept(anchors)]

    def listed(missing: int) -> Rows:
        every = eligible(steps.rows())
        if not len(every):
            raise BufferEmpty(_nothing_fits(steps, sample_range, min_length, accept))
        return every[rng.integers(0, len(every), missing)]

    return _filled(count, lambda wanted: eligible(steps.draw(rng, wanted)), listed)


def draw_prioritized(
    steps: Steps,
    priorities: Priorities,
    rng: np.random.Generator,
    count: int,
    sample_range: tuple[int, int] = (0, 1),
    *,
    min_length: int = 1,
    accept: Accept | None = None,
    beta: float | None = None,
) -> Drawn:
    """Draw steps by priority from all whose window lies in their episode; arguments and errors as `draw_anchors`.

    A row must have a priority only while `steps` holds it. Importance weights are those of `Priorities.sample`.
    """
    first, last = _window(count, sample_range)

    def eligible(rows: Rows) -> Rows:
        before, after = steps.before(rows), steps.after(rows)
        rows = rows[(before >= -first) & (after >= last) & (before + after + 1 >= min_length)]
        return rows if accept is None else rows[accept(rows)]

    def listed(missing: int) -> Rows:
        every = eligible(steps.rows())
        weights = priorities.tree.get(every)
        if not weights.sum() > 0:
            raise BufferEmpty(_nothing_fits(steps, sample_range, min_length, accept))
        return rng.choice(every, missing, p=weights / weights.sum())

    rounds = iter([True])  # the first round is stratified; those that make up for rejected rows cannot be

    def drawn(wanted: int) -> Rows:
        return eligible(priorities.tree.sample(rng, wanted, stratified=next(rounds, False))[0])

    rows = _filled(count, drawn, listed)
    weights = np.maximum(priorities.tree.get(rows), priorities.tree.least)  # a row may have been removed meanwhile
    return Drawn(rows, importance_weights(weights, priorities.tree.least, priorities.beta if beta is None else beta))


def draw_trajectories(
    steps: Steps, rng: np.random.Generator, count: int, max_length: int, *, min_length: int = 1, accept: Accept | None = None
) -> Pick:
    """Draw whole trajectories uniformly, with replacement: what is held of each, as `(count, max_length)` rows from its first.

    Args:
        max_length: of a longer one, the first so many steps. accept: tells which trajectories may be used, by their last row.
    Raises:
        BufferEmpty: there is none. ValueError: `count` or `max_length` is below 1.
    """
    if max_length < 1:
        raise ValueError(f"max_length must be at least 1 step, got {max_length}")

    def last_step(rows: Rows) -> Mask:
        last = steps.after(rows) == 0
        if accept is not None:
            last[last] = accept(rows[last])
        return last

    ends = draw_anchors(steps, rng, count, min_length=min_length, accept=last_step)
    begins = steps.shift(ends, -steps.before(ends))
    return _reach(steps, begins[:, None], np.arange(max_length)[None, :])


class NStep(NamedTuple):
    """Returns over up to n steps.

    Attributes:
        returns: `(batch,)` sum over the steps used of gamma^k reward_k.
        discounts: `(batch,)` what the value of the observation after the last step used is to be multiplied with: gamma^length,
            0 where the episode terminated.
        lengths: `(batch,)` int64, steps used: n, or fewer where the episode ended before.
    """

    returns: npt.NDArray[np.float64]
    discounts: npt.NDArray[np.float64]
    lengths: Rows


def n_step_returns(rewards: Any, masks: Any, valid: Any, gamma: float) -> NStep:
    """Sum rewards over n steps, or up to the end of the episode.

    Args:
        rewards, masks: `(batch, n)`, of the steps from the anchor on; masks 0 where the episode terminated.
        valid: `(batch, n)`, False where there is no step: a `SequenceSampler(begin=0, end=n)` gives it.
    Raises:
        ValueError: shapes that differ, or `gamma` outside [0, 1].
    """
    given, alive_after, held = np.asarray(rewards, np.float64), np.asarray(masks, np.float64), np.asarray(valid, bool)
    if given.ndim != 2 or given.shape != alive_after.shape or given.shape != held.shape:
        raise ValueError(f"(batch, n) is required three times, got {given.shape}, {alive_after.shape}, {held.shape}")
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma must be from 0 to 1, got {gamma}")
    goes_on = held & (alive_after != 0)
    reached = np.logical_and.accumulate(np.concatenate([np.ones((len(held), 1), bool), goes_on[:, :-1]], axis=1), axis=1)
    used = reached & held
    lengths = used.sum(axis=1)
    terminated = (used & (alive_after == 0)).any(axis=1)
    powers = gamma ** np.arange(given.shape[1])
    returns = np.where(used, given, 0.0) @ powers
    return NStep(returns, np.where(terminated, 0.0, np.float64(gamma) ** lengths), lengths)


def _check_range(name: str, begin: int, end: int) -> None:
    if begin >= end:
        raise ValueError(f"{name} must make a window [begin, end) of at least one step, got begin={begin}, end={end}")


def _window(count: int, sample_range: tuple[int, int]) -> tuple[int, int]:
    """Return the offsets of the first and the last step that must be there, the anchor's 0 among them."""
    if count < 1:
        raise ValueError(f"the batch size must be at least 1, got {count}")
    _check_range("sample_range", *sample_range)
    return min(sample_range[0], 0), max(sample_range[1] - 1, 0)


def _reach(steps: Steps, anchors: Rows, offsets: Rows) -> Pick:
    there = (offsets >= -steps.before(anchors)) & (offsets <= steps.after(anchors))
    rows = steps.shift(anchors, np.where(there, offsets, 0))
    return Pick(np.where(there, rows, -1), there)


def _filled(count: int, draw: Callable[[int], Rows], listed: Callable[[int], Rows]) -> Rows:
    """Collect `count` rows: what some rounds of drawing and rejecting leave, and the rest from the list of all eligible rows."""
    found: list[Rows] = []
    missing, tried, kept = count, 0, 0
    for _ in range(_ROUNDS):
        # The more is rejected, the more is drawn at once.
        wanted = missing if tried == 0 else min(-(-missing * tried // max(kept, 1)) + 8, missing * _DRAWS_PER_MISSING)
        rows = draw(wanted)
        tried, kept = tried + wanted, kept + len(rows)
        found.append(rows[:missing])
        missing -= len(found[-1])
        if not missing:
            break
    else:
        found.append(listed(missing))
    return found[0] if len(found) == 1 else np.concatenate(found)


def _nothing_fits(steps: Steps, sample_range: tuple[int, int], min_length: int, accept: Accept | None) -> str:
    rows = steps.rows()
    longest = int((steps.before(rows) + steps.after(rows)).max(initial=-1)) + 1
    return (
        f"none of {len(rows)} rows fits: sample_range {sample_range} and min_length {min_length} are required, "
        f"the longest episode has {longest} steps{'' if accept is None else ', and accept refused the rest'}"
    )
