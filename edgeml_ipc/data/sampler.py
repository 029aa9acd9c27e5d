"""Samplers: for each field of a batch, which rows it is made of, relative to the anchors that `draws.py` draws.

Where an episode has no such step, the row is -1 and the mask False. Pure index logic: no storage, no copying, no state but the
generator's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from edgeml_ipc.data.draws import Accept, Mask, Steps, check_window, draw_anchors
from edgeml_ipc.data.gather import Rows
from edgeml_ipc.data.priority import Priorities


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
        >>> from edgeml_ipc.data.draws import ArraySteps
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
        check_window("begin and end", begin, end)
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

    UNIFORM: each of the steps from the anchor to the end of its episode, or of the first `max_future`, is equally likely.
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
    """Lets a config draw anchors by priority: `draw_prioritized` with `priorities(capacity)`; rows as `LatestSampler`."""

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
        last: Mask = steps.after(rows) == 0
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


def _reach(steps: Steps, anchors: Rows, offsets: Rows) -> Pick:
    there = (offsets >= -steps.before(anchors)) & (offsets <= steps.after(anchors))
    rows = steps.shift(anchors, np.where(there, offsets, 0))
    return Pick(np.where(there, rows, -1), there)
