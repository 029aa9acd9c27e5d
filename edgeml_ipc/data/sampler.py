"""Samplers: for each field of a batch, which rows it is made of, relative to the anchors that `draws.py` draws.

Where an episode has no such step, the row is -1 and the mask False. Pure index logic: no storage, no copying, no state but the
generator's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from enum import IntEnum
from typing import Any, Final, NamedTuple

import numpy as np

from edgeml_ipc.data.draws import Mask, Steps, check_window
from edgeml_ipc.data.gather import Rows
from edgeml_ipc.data.priority import Priorities

ANCHOR: Final = -1  # the number of the pick that is the anchors themselves


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


class Read(NamedTuple):
    """A stored field that a sampler needs.

    Attributes:
        source: its name.
        pick: which of the sampler's picks says of which rows; `ANCHOR`: of the anchors themselves.
    """

    source: str
    pick: int


class Sampler(ABC):
    """Chooses the rows of one field, given the anchors of the batch.

    One that needs a single stored field defines `pick` alone.

    Attributes:
        source: name of the stored field; None: the one that is called as the field of the batch is.
    """

    def __init__(self, source: str | None = None) -> None:
        self.source = source

    @abstractmethod
    def pick(self, steps: Steps, anchors: Rows, rng: np.random.Generator) -> Pick:
        """Return rows for `anchors`, `(batch,)`. Never leaves an anchor's episode, never moves an index to make it fit."""

    def reads(self, field: str) -> list[Read]:
        """Return the stored fields that the field `field` of a batch is made of."""
        return [Read(field if self.source is None else self.source, 0)]

    def picks(self, steps: Steps, anchors: Rows, rng: np.random.Generator) -> list[Pick]:
        """Return all picks that `reads` refers to."""
        return [self.pick(steps, anchors, rng)]

    def same_rows(self) -> tuple[Any, ...] | None:
        """Return what the picks depend on beside the anchors: samplers of one class that return the same share their picks.

        None: the picks are this sampler's own, as those are that are drawn at random.
        """
        return None

    def value(self, field: str, stored: list[Any], picks: list[Pick]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Make what goes into the batch's data and mask.

        Args:
            stored: for each of `reads` its rows, an array or a nested dict; to keep.
            picks: those of `picks`, and at the end, as `ANCHOR`, that of the anchors.
        """
        return {field: stored[0]}, {field: picks[0].mask}


class LatestSampler(Sampler):
    """The anchor's own step, `(batch, *item)`."""

    def pick(self, steps: Steps, anchors: Rows, rng: np.random.Generator) -> Pick:
        """Return the anchors."""
        return Pick(anchors, np.ones(anchors.shape, bool))

    def reads(self, field: str) -> list[Read]:
        """See `Sampler`."""
        return [Read(field if self.source is None else self.source, ANCHOR)]

    def picks(self, steps: Steps, anchors: Rows, rng: np.random.Generator) -> list[Pick]:
        """Return none: the anchors are there already."""
        return []


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
        rows, mask = steps.window(anchors, self.begin, self.end)
        return Pick(rows[:, 0], mask[:, 0]) if self.squeeze else Pick(rows, mask)

    def same_rows(self) -> tuple[Any, ...] | None:
        """See `Sampler`; None in a class that picks otherwise."""
        return (self.begin, self.end, self.squeeze) if type(self).pick is SequenceSampler.pick else None


class TrajectorySampler(SequenceSampler):
    """Whole trajectories, `(batch, max_length, *item)`: what is held of an episode, from its first step on, then zeros.

    It makes its config draw anchors so: each is the first held step of an episode, and each episode is equally likely,
    whatever its length. Other fields of the config follow the same anchors.
    """

    def __init__(self, max_length: int, source: str | None = None) -> None:
        """Choose how long.

        Args:
            max_length: of longer episodes, the first so many steps.
        Raises:
            ValueError: `max_length` is below 1.
        """
        if max_length < 1:
            raise ValueError(f"max_length must be at least 1 step, got {max_length}")
        super().__init__(begin=0, end=max_length, source=source)
        self.max_length = max_length


class FutureSampler(Sampler):
    """One step of the anchor's own future (the anchor included), for hindsight goals.

    In a batch the field `goal`, say, comes with `goal_offset`, `(batch,)` int64: how many steps after the anchor it lies.

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

    def value(self, field: str, stored: list[Any], picks: list[Pick]) -> tuple[dict[str, Any], dict[str, Any]]:
        """See `Sampler`."""
        return {field: stored[0], f"{field}_offset": picks[0].offset}, {field: picks[0].mask}


class PrioritySampler(Sampler):
    """Makes its config draw anchors by priority (proportional prioritized experience replay).

    Its field is no stored one. It holds `indices`, `(batch,)` int64, to be handed to `ReplayBuffer.update_priorities`, and
    `importance`, `(batch,)` float32 in (0, 1], with which each loss is to be multiplied. New rows get the greatest priority
    seen so far.

    Attributes:
        beta: may be changed between samples, as schedules do that raise it to 1.

    Example:
        >>> import gymnasium
        >>> from edgeml_ipc.data import ReplayBuffer
        >>> box = gymnasium.spaces.Box(-1, 1, (1,))
        >>> with ReplayBuffer(box, box, capacity=100, seed=0) as buffer:
        ...     step = {"observations": [0.0], "actions": [0.0], "rewards": 1.0, "masks": 1.0, "next_observations": [0.0]}
        ...     buffer.insert(step)
        ...     buffer.register_sample_config("replay", {"rewards": LatestSampler(), "priority": PrioritySampler()})
        ...     data, mask = buffer.sample("replay", 4)
        ...     buffer.update_priorities("replay", data["priority"]["indices"], errors=[0.5, 0.5, 0.5, 0.5])
        4
        >>> data["priority"]["importance"].tolist()
        [1.0, 1.0, 1.0, 1.0]
    """

    def __init__(self, alpha: float = 0.6, beta: float = 0.4, epsilon: float = 1e-6) -> None:
        """Choose the exponents; see `Priorities`."""
        super().__init__()
        self.alpha, self.beta, self.epsilon = alpha, beta, epsilon
        self.priorities(1)  # checks the arguments

    def priorities(self, capacity: int) -> Priorities:
        """Make the priorities of `capacity` rows that this sampler's exponents ask for."""
        return Priorities(capacity, alpha=self.alpha, beta=self.beta, epsilon=self.epsilon)

    def pick(self, steps: Steps, anchors: Rows, rng: np.random.Generator) -> Pick:
        """Return the anchors."""
        return Pick(anchors, np.ones(anchors.shape, bool))

    def reads(self, field: str) -> list[Read]:
        """Return none: what the field holds is not stored."""
        return []

    def picks(self, steps: Steps, anchors: Rows, rng: np.random.Generator) -> list[Pick]:
        """Return none: the anchors are there already."""
        return []
