"""Tests of edgeml_ipc.data.draws and edgeml_ipc.data.sampler: windows, their statistics, masks, futures, n-step returns."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from edgeml_ipc.data.draws import ArraySteps, ByPriority, draw_anchors, draw_proposed
from edgeml_ipc.data.n_step import NStepSampler, n_step_returns
from edgeml_ipc.data.priority import Priorities
from edgeml_ipc.data.sampler import FutureSampler, LatestSampler, PrioritySampler, SequenceSampler, TrajectorySampler
from edgeml_ipc.errors import BufferEmpty

SIGNIFICANT = 1e-4  # fixed seeds: a test that passes once always does
UNIFORM, EXPONENTIAL = FutureSampler.Distribution.UNIFORM, FutureSampler.Distribution.EXPONENTIAL


class Table:
    """Rows as a store would hold them: episodes of given lengths, of two writers, interleaved and in no order of place."""

    def __init__(self, lengths: list[int], *, lost: int = 0, holes: int = 0, seed: int = 0) -> None:
        """Make the episodes; of the first one the first `lost` steps are overwritten, and `holes` rows hold nothing."""
        rng = np.random.default_rng(seed)
        episode = np.repeat(np.arange(len(lengths)), lengths)
        position = np.concatenate([np.arange(length) for length in lengths]) if lengths else np.zeros(0, int)
        keep = ~((episode == 0) & (position < lost))
        episode, position = episode[keep], position[keep]
        places = rng.permutation(len(episode) + holes)[: len(episode)]
        self.episode, self.position = np.full(len(episode) + holes, 5), np.full(len(episode) + holes, 3)
        self.valid = np.zeros(len(episode) + holes, bool)
        self.episode[places], self.position[places], self.valid[places] = episode * 7, position, True
        self.steps = ArraySteps(self.position, self.episode, self.valid)

    def windows(self, begin: int, end: int, min_length: int = 1) -> np.ndarray:
        """List, the slow way, every row whose window lies in its episode."""
        held = {(e, p) for e, p, v in zip(self.episode, self.position, self.valid, strict=True) if v}
        sizes = Counter(e for e, _ in held)
        fits = [
            row
            for row in np.flatnonzero(self.valid)
            if all((self.episode[row], self.position[row] + k) in held for k in [*range(begin, end), 0])
            and sizes[self.episode[row]] >= min_length
        ]
        return np.array(fits, np.int64)


def check_uniform(drawn: np.ndarray, over: np.ndarray) -> None:
    values, counts = np.unique(drawn, return_counts=True)
    assert np.isin(values, over).all()
    full = np.zeros(len(over))
    full[np.searchsorted(np.sort(over), values)] = counts
    assert len(over) == 1 or stats.chisquare(full).pvalue > SIGNIFICANT


LENGTHS = [9, 1, 4, 30, 2, 5, 5, 12]


@pytest.mark.parametrize("sample_range", [(0, 1), (0, 2), (0, 5), (-3, 1), (-2, 3), (-4, -1), (2, 4), (0, 12), (0, 25)])
@pytest.mark.parametrize("min_length", [1, 5])
def test_every_window_is_equally_likely(sample_range: tuple[int, int], min_length: int) -> None:
    """The windows that end with an episode's last step, and that begin with its first held one, are no rarer than others."""
    table = Table(LENGTHS, lost=3, holes=20)
    rng = np.random.default_rng(1)
    drawn = np.concatenate([draw_anchors(table.steps, rng, 256, sample_range, min_length=min_length) for _ in range(150)])
    check_uniform(drawn, table.windows(*sample_range, min_length))


def test_the_terminal_step_is_drawn_with_a_default_training_config() -> None:
    table = Table([10] * 10)
    rng = np.random.default_rng(2)
    anchors = np.concatenate([draw_anchors(table.steps, rng, 500) for _ in range(40)])
    share = (table.position[anchors] == 9).mean()
    assert stats.binomtest(round(share * len(anchors)), len(anchors), 0.1).pvalue > SIGNIFICANT


def test_rare_windows_are_found_and_uniform() -> None:
    """One step in thousands fits: what rejecting does not find, the list of all rows does."""
    table = Table([1] * 6000 + [40], holes=3)
    over = table.windows(0, 38)
    assert len(over) == 3
    rng = np.random.default_rng(3)
    drawn = np.concatenate([draw_anchors(table.steps, rng, 64, (0, 38)) for _ in range(40)])
    check_uniform(drawn, over)


def prioritized(table: Table, priorities: Priorities, rng: np.random.Generator, count: int, *window: Any) -> np.ndarray:
    return draw_proposed(lambda: table.steps, ByPriority(priorities, lambda: table.steps), rng, count, *window)


def test_rows_that_are_not_accepted_are_left_out_and_the_rest_stays_uniform() -> None:
    table = Table(LENGTHS)
    rng = np.random.default_rng(4)
    priorities = Priorities(len(table.valid))
    priorities.added(0, len(table.valid))

    def newer(rows: np.ndarray) -> Any:
        return rows % 3 == 0  # stands for any column: age, policy version

    proposals = [ByPriority(priorities, lambda: table.steps, newer) for _ in range(100)]
    drawn = np.concatenate([draw_proposed(lambda: table.steps, each, rng, 256, (0, 3)) for each in proposals])
    over = table.windows(0, 3)
    check_uniform(drawn, over[over % 3 == 0])


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=12),
    st.integers(0, 5),
    st.integers(-6, 5),
    st.integers(1, 6),
    st.integers(1, 8),
    st.integers(0, 10_000),
)
def test_no_window_crosses_an_episode(lengths: list[int], lost: int, begin: int, size: int, min_length: int, seed: int) -> None:
    table = Table(lengths, lost=min(lost, lengths[0]), holes=seed % 4, seed=seed)
    rng = np.random.default_rng(seed)
    over = table.windows(begin, begin + size, min_length)
    if not len(over):
        with pytest.raises(BufferEmpty):
            draw_anchors(table.steps, rng, 10, (begin, begin + size), min_length=min_length)
        return
    anchors = draw_anchors(table.steps, rng, 50, (begin, begin + size), min_length=min_length)
    assert anchors.shape == (50,)
    assert np.isin(anchors, over).all()
    whole = SequenceSampler(begin=begin, end=begin + size).pick(table.steps, anchors, rng)
    assert whole.mask.all()
    for far in (SequenceSampler(begin=begin - 4, end=begin + size + 4), FutureSampler(), FutureSampler(EXPONENTIAL, 3, 2.0)):
        rows, mask, _ = far.pick(table.steps, anchors, rng)
        assert ((rows >= 0) == mask).all()
        owners = np.broadcast_to(anchors.reshape(-1, *[1] * (rows.ndim - 1)), rows.shape)
        assert (table.episode[rows[mask]] == table.episode[owners[mask]]).all()
        assert table.valid[rows[mask]].all()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 8), min_size=1, max_size=8), st.integers(-5, 5), st.integers(1, 6), st.integers(0, 9999))
def test_a_sequence_holds_exactly_the_steps_that_there_are(lengths: list[int], begin: int, size: int, seed: int) -> None:
    table = Table(lengths, seed=seed)
    where = {(e, p): row for row, (e, p) in enumerate(zip(table.episode, table.position, strict=True))}
    anchors = draw_anchors(table.steps, np.random.default_rng(seed), 20)
    rows, mask, offset = SequenceSampler(begin=begin, end=begin + size).pick(table.steps, anchors, np.random.default_rng())
    expected = [[where.get((table.episode[a], table.position[a] + k), -1) for k in range(begin, begin + size)] for a in anchors]
    assert rows.tolist() == expected
    assert (mask == (rows >= 0)).all()
    assert offset is None


def test_same_seed_same_batch() -> None:
    table = Table(LENGTHS)
    first, second = (draw_anchors(table.steps, np.random.default_rng(7), 100, (-2, 3)) for _ in range(2))
    assert first.tolist() == second.tolist()


def test_latest_and_squeezed() -> None:
    steps = Table([5]).steps
    anchors, rng = np.array([0, 3]), np.random.default_rng()
    assert LatestSampler().pick(steps, anchors, rng).rows.tolist() == [0, 3]
    assert SequenceSampler(squeeze=True, begin=1, end=2, source="x").pick(steps, anchors, rng).rows.shape == (2,)
    assert SequenceSampler(begin=1, end=2).pick(steps, anchors, rng).rows.shape == (2, 1)


# Futures


@pytest.mark.parametrize("max_future", [None, 1, 3, 50])
def test_uniform_futures(max_future: int | None) -> None:
    table = Table([10, 3])
    rng = np.random.default_rng(5)
    for position in (0, 4, 9):
        anchor = int(np.flatnonzero((table.position == position) & (table.episode == 0))[0])
        rows, mask, offsets = FutureSampler(UNIFORM, max_future).pick(table.steps, np.full(20_000, anchor), rng)
        assert mask.all()
        assert offsets is not None
        assert (table.position[rows] == position + offsets).all()
        check_uniform(offsets, np.arange(min(10 - position, max_future or 99)))


@pytest.mark.parametrize("max_future", [None, 4])
@pytest.mark.parametrize("lambda_", [0.3, 2.0, 1000.0])
def test_exponential_futures_do_not_pile_up_at_the_end(lambda_: float, max_future: int | None) -> None:
    table = Table([10, 3])
    rng = np.random.default_rng(6)
    for position in (0, 4, 9):
        anchor = int(np.flatnonzero((table.position == position) & (table.episode == 0))[0])
        sampler = FutureSampler("exponential", max_future, lambda_)
        offsets = sampler.pick(table.steps, np.full(20_000, anchor), rng).offset
        limit = min(10 - position, max_future or 99)
        p = np.exp(-np.arange(limit) / lambda_)
        expected = 20_000 * p / p.sum()
        counts = np.bincount(offsets, minlength=limit)
        assert len(counts) == limit
        usual = np.flatnonzero(expected > 5)
        kept = np.minimum(np.arange(limit), usual[-1])  # what is rarer counts with the rarest of the usual ones
        folded, wanted = np.bincount(kept, counts), np.bincount(kept, expected)
        assert len(usual) == 1 or stats.chisquare(folded, wanted).pvalue > SIGNIFICANT


# Prioritized windows


@pytest.mark.parametrize("sample_range", [(0, 1), (-2, 3), (0, 12)])
def test_prioritized_windows_follow_the_priorities_of_those_that_fit(sample_range: tuple[int, int]) -> None:
    table = Table(LENGTHS, lost=3, holes=11)
    rng = np.random.default_rng(8)
    count = len(table.valid)
    priorities = Priorities(count, alpha=1.0)
    weights = np.where(table.valid, rng.random(count) + 0.05, 0)
    priorities.tree.set(np.arange(count), weights)
    rows = np.concatenate([prioritized(table, priorities, rng, 64, sample_range) for _ in range(400)])
    over = table.windows(*sample_range)
    counts = np.bincount(rows, minlength=count)
    assert np.isin(rows, over).all()
    assert stats.chisquare(counts[over], len(rows) * weights[over] / weights[over].sum()).pvalue > SIGNIFICANT


def test_prioritized_windows_that_are_rare_or_missing() -> None:
    table = Table([1] * 3000 + [20])
    priorities = Priorities(len(table.valid))
    rng = np.random.default_rng(9)
    with pytest.raises(BufferEmpty):
        prioritized(table, priorities, rng, 4)
    priorities.added(0, len(table.valid))
    drawn = np.concatenate([prioritized(table, priorities, rng, 32, (0, 18)) for _ in range(40)])
    check_uniform(drawn, table.windows(0, 18))
    with pytest.raises(BufferEmpty, match="the longest episode has 20 steps"):
        prioritized(table, priorities, rng, 4, (0, 21))


# n-step returns


def slow_n_step(rewards: np.ndarray, masks: np.ndarray, valid: np.ndarray, gamma: float) -> tuple[float, float, int]:
    total, factor, used = 0.0, 1.0, 0
    for reward, mask, there in zip(rewards, masks, valid, strict=True):
        if not there:
            break
        total, factor, used = total + factor * reward, factor * gamma, used + 1
        if mask == 0:
            return total, 0.0, used
    return total, factor, used


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 6), st.sampled_from([0.0, 0.5, 0.99, 1.0]), st.integers(0, 9999))
def test_n_step_returns(n: int, gamma: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rewards, masks = rng.normal(size=(30, n)), (rng.random((30, n)) < 0.8).astype(np.float32)
    valid = np.arange(n) < rng.integers(1, n + 1, 30)[:, None]
    rewards[~valid] = np.nan  # padding is never read
    result = n_step_returns(rewards, masks, valid, gamma)
    slow = [slow_n_step(r, m, v, gamma) for r, m, v in zip(rewards, masks, valid, strict=True)]
    assert np.allclose(result.returns, [s[0] for s in slow])
    assert np.allclose(result.discounts, [s[1] for s in slow])
    assert result.lengths.tolist() == [s[2] for s in slow]


# Arguments


def test_an_empty_store_says_so() -> None:
    for table in (Table([]), Table([], holes=5)):
        with pytest.raises(BufferEmpty, match="none of"):
            draw_anchors(table.steps, np.random.default_rng(), 1)


def test_nothing_long_enough_says_what_there_is() -> None:
    with pytest.raises(BufferEmpty, match=r"sample_range \(0, 6\).*the longest episode has 5 steps"):
        draw_anchors(Table([2, 5]).steps, np.random.default_rng(), 4, (0, 6))


def test_arguments() -> None:
    steps, rng = Table([4]).steps, np.random.default_rng()
    with pytest.raises(ValueError, match="batch size"):
        draw_anchors(steps, rng, 0)
    with pytest.raises(ValueError, match="begin=2, end=2"):
        draw_anchors(steps, rng, 1, (2, 2))
    with pytest.raises(ValueError, match="begin=3, end=1"):
        SequenceSampler(begin=3, end=1)
    with pytest.raises(ValueError, match="squeeze"):
        SequenceSampler(squeeze=True, begin=0, end=2)
    for wrong in ({"distribution": "normal"}, {"distribution": 5}, {"max_future": 0}, {"lambda_": 1.0}):
        with pytest.raises(ValueError, match=r"normal|5|max_future|lambda_"):
            FutureSampler(**wrong)  # type: ignore[arg-type]
    for value in (None, 0.0, -1.0, np.nan):
        with pytest.raises(ValueError, match="lambda_ above 0"):
            FutureSampler(EXPONENTIAL, lambda_=value)
    with pytest.raises(ValueError, match="alpha"):
        PrioritySampler(alpha=-1)
    with pytest.raises(ValueError, match="max_length"):
        TrajectorySampler(0)
    with pytest.raises(ValueError, match="n must be at least 1 step, got 0"):
        NStepSampler(0, 0.9)
    with pytest.raises(ValueError, match="gamma must be from 0 to 1, got 2"):
        NStepSampler(3, 2)
    with pytest.raises(ValueError, match="three times"):
        n_step_returns(np.zeros((2, 3)), np.zeros((2, 3)), np.zeros((2, 2)), 0.9)
    with pytest.raises(ValueError, match="gamma"):
        n_step_returns(np.zeros((2, 3)), np.zeros((2, 3)), np.zeros((2, 3)), 1.1)
