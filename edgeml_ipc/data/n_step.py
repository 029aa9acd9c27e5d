"""n-step returns: rewards summed over some steps of an episode, and what the value of the state after them counts."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from edgeml_ipc.data.draws import Steps
from edgeml_ipc.data.gather import Rows
from edgeml_ipc.data.sampler import ANCHOR, Pick, Read, Sampler


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
    _check_gamma(gamma)
    goes_on = held & (alive_after != 0)
    reached = np.logical_and.accumulate(np.concatenate([np.ones((len(held), 1), bool), goes_on[:, :-1]], axis=1), axis=1)
    used = reached & held
    lengths = used.sum(axis=1)
    terminated = (used & (alive_after == 0)).any(axis=1)
    powers = gamma ** np.arange(given.shape[1])
    returns = np.where(used, given, 0.0) @ powers
    return NStep(returns, np.where(terminated, 0.0, np.float64(gamma) ** lengths), lengths)


class NStepSampler(Sampler):
    """Returns over the n steps from the anchor on, and the observation after them, for bootstrapped targets.

    Its field holds `returns` (float32), `discounts` (float32), `lengths` (int64), as `NStep` has them, and
    `next_observations`: the observation after the last step used. The target is
    `returns + discounts * value(next_observations)`. Where fewer than n steps are held of the episode, those are used: at its
    end, and where it still goes on.

    Example:
        >>> import gymnasium
        >>> import numpy as np
        >>> from edgeml_ipc.data import ReplayBuffer
        >>> box = gymnasium.spaces.Box(-1, 1, (1,))
        >>> with ReplayBuffer(box, box, capacity=100, seed=0) as buffer:
        ...     for step in (1, 2, 3):
        ...         buffer.insert({
        ...             "observations": [step - 1], "actions": [0.0], "rewards": 1.0, "masks": float(step < 3),
        ...             "next_observations": [step],
        ...         })
        ...     buffer.register_sample_config("targets", {"target": NStepSampler(n=2, gamma=0.5)})
        ...     data, mask = buffer.sample("targets", 3, force_indices=np.arange(3))
        >>> data["target"]["returns"].tolist(), data["target"]["discounts"].tolist(), data["target"]["lengths"].tolist()
        ([1.5, 1.5, 1.0], [0.25, 0.0, 0.0], [2, 2, 1])
        >>> data["target"]["next_observations"].ravel().tolist()
        [2.0, 3.0, 3.0]
    """

    def __init__(
        self, n: int, gamma: float, rewards: str = "rewards", masks: str = "masks", source: str = "next_observations"
    ) -> None:
        """Choose the length and the discount.

        Args:
            n: steps, at least 1. gamma: discount of one step, from 0 to 1.
            rewards, masks: the stored fields with each step's reward and, 0 where the episode terminated, mask; scalars.
            source: the stored field with the observation after a step.
        Raises:
            ValueError: `n` or `gamma` is out of range.
        """
        super().__init__(source)
        if n < 1:
            raise ValueError(f"n must be at least 1 step, got {n}")
        _check_gamma(gamma)
        self.n, self.gamma = n, gamma
        self.rewards, self.masks, self.observations = rewards, masks, source

    def pick(self, steps: Steps, anchors: Rows, rng: np.random.Generator) -> Pick:
        """Return the steps used, `(batch, n)`, if the episode does not terminate before."""
        return Pick(*steps.window(anchors, 0, self.n))

    def reads(self, field: str) -> list[Read]:
        """See `Sampler`."""
        return [Read(self.rewards, 0), Read(self.masks, 0), Read(self.observations, 1)]

    def picks(self, steps: Steps, anchors: Rows, rng: np.random.Generator) -> list[Pick]:
        """Return the steps, and the last of them."""
        window = self.pick(steps, anchors, rng)
        last = np.take_along_axis(window.rows, window.mask.sum(axis=1, keepdims=True) - 1, axis=1)[:, 0]
        return [window, Pick(last, np.ones(last.shape, bool))]

    def value(self, field: str, stored: list[Any], picks: list[Pick]) -> tuple[dict[str, Any], dict[str, Any]]:
        """See `Sampler`."""
        rewards, masks, observations = stored
        sums = n_step_returns(rewards, masks, picks[0].mask, self.gamma)
        made = {
            "returns": sums.returns.astype(np.float32),
            "discounts": sums.discounts.astype(np.float32),
            "lengths": sums.lengths,
            "next_observations": observations,
        }
        return {field: made}, {field: picks[ANCHOR].mask}


def _check_gamma(gamma: float) -> None:
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma must be from 0 to 1, got {gamma}")
