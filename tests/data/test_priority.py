"""Tests of edgeml_ipc.data.priority: the sum tree, compiled and numpy's, and proportional prioritization."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from edgeml_ipc.data.priority import COMPILED, Priorities, SumTree, importance_weights
from edgeml_ipc.errors import BufferEmpty

SIGNIFICANT = 1e-4  # fixed seeds: a test that passes once always does


@pytest.fixture(params=[True, False], ids=["compiled", "numpy"])
def compiled(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def check_frequencies(rows: np.ndarray, probabilities: np.ndarray) -> None:
    counts = np.bincount(rows, minlength=len(probabilities))
    assert counts[probabilities == 0].sum() == 0
    drawn = probabilities > 0
    assert drawn.sum() == 1 or stats.chisquare(counts[drawn], probabilities[drawn] * len(rows)).pvalue > SIGNIFICANT


def test_the_extension_was_built() -> None:
    assert COMPILED


@pytest.mark.parametrize("capacity", [1, 2, 7, 8, 9, 64, 65, 513, 5000])
@pytest.mark.parametrize("stratified", [True, False])
def test_rows_are_drawn_in_proportion(capacity: int, stratified: bool, compiled: bool) -> None:
    rng = np.random.default_rng(capacity)
    weights = rng.random(capacity) ** 3 * (rng.random(capacity) < 0.7)
    weights[-1] = 1.0
    tree = SumTree(capacity, compiled=compiled)
    tree.set(np.arange(capacity), weights)
    batches = [tree.sample(rng, 500, stratified=stratified) for _ in range(200)]
    assert all((got == weights[rows]).all() for rows, got in batches)
    rows = np.concatenate([rows for rows, _ in batches])
    merged = np.minimum(np.arange(capacity) * 64 // capacity, 63) if capacity > 64 else np.arange(capacity)
    check_frequencies(merged[rows], np.bincount(merged, weights / weights.sum()))
    assert np.isin(rows, np.flatnonzero(weights)).all()


def test_stratified_draws_take_one_of_each_part(compiled: bool) -> None:
    tree = SumTree(100, compiled=compiled)
    tree.fill(0, 100, 2.0)
    rows, _ = tree.sample(np.random.default_rng(0), 100)
    assert rows.tolist() == list(range(100))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_compiled_and_numpy_agree(data: st.DataObject) -> None:
    capacity = data.draw(st.integers(1, 600))
    trees = [SumTree(capacity), SumTree(capacity, compiled=False)]
    row, weight = st.integers(0, capacity - 1), st.integers(0, 1000).map(float)  # sums of such are exact, in any order
    for _ in range(data.draw(st.integers(1, 5))):
        if data.draw(st.booleans()):
            pairs = data.draw(st.lists(st.tuples(row, weight), max_size=100))
            for tree in trees:
                tree.set([r for r, _ in pairs], [w for _, w in pairs])
        else:
            (begin, end), value = sorted(data.draw(st.tuples(row, row))), data.draw(weight)
            for tree in trees:
                tree.fill(begin, end + 1, value)
    every = np.arange(capacity)
    assert trees[0].get(every).tolist() == trees[1].get(every).tolist()
    assert (trees[0].total, trees[0].least) == (trees[1].total, trees[1].least)
    if trees[0].total > 0:
        seed = data.draw(st.integers(0, 1000))
        drawn = [tree.sample(np.random.default_rng(seed), 50)[0].tolist() for tree in trees]
        assert drawn[0] == drawn[1]


def test_sums_do_not_drift() -> None:
    """After many changes of very different sizes the tree is what building it from its weights gives, to the last bit."""
    rng = np.random.default_rng(0)
    tree = SumTree(1000)
    for _ in range(2000):
        tree.set(rng.integers(0, 1000, 50), 10.0 ** rng.uniform(-12, 12, 50))
    fresh = SumTree(1000)
    fresh.set(np.arange(1000), tree.get(np.arange(1000)))
    assert tree.total == fresh.total
    tree.fill(0, 1000, 0.0)
    assert (tree.total, tree.least) == (0.0, np.inf)
    tree.set([3], [1e-12])
    assert tree.total == 1e-12


def test_a_row_of_weight_zero_is_never_drawn(compiled: bool) -> None:
    """Also where targets lie on the very borders, and where rounding takes one past the last sum."""
    weights = np.zeros(777)
    weights[[5, 6, 300, 640]] = [1e-300, 1e12, 1e-3, 0.1]
    tree = SumTree(777, compiled=compiled)
    tree.set(np.arange(777), weights)

    class Borders(np.random.Generator):
        def random(self, size: int) -> np.ndarray:  # type: ignore[override]
            return np.resize([0.0, np.nextafter(1.0, 0.0)], size)

    for stratified in (True, False):
        for count in (1, 2, 1000):
            rows, _ = tree.sample(Borders(np.random.PCG64(0)), count, stratified=stratified)
            assert np.isin(rows, [5, 6, 300, 640]).all()


def test_of_a_row_named_twice_the_last_weight_counts(compiled: bool) -> None:
    tree = SumTree(20, compiled=compiled)
    tree.set([4, 19, 4], [1.0, 2.0, 5.0])
    assert (tree.total, tree.least) == (7.0, 2.0)


@pytest.mark.parametrize("bad", [-1e-9, np.nan, np.inf, 1e300])
def test_bad_weights_change_nothing(bad: float, compiled: bool) -> None:
    tree = SumTree(10, compiled=compiled)
    tree.set([1], [3.0])
    with pytest.raises(ValueError, match="from 0 to 1e"):
        tree.set([0, 1, 2], [1.0, 1.0, bad])
    with pytest.raises(ValueError, match="from 0 to 1e"):
        tree.fill(0, 5, bad)
    assert tree.get(np.arange(10)).tolist() == [0, 3, *[0] * 8]


@pytest.mark.parametrize("bad", [-1, 10, 2**40])
def test_rows_out_of_range_change_nothing(bad: int, compiled: bool) -> None:
    tree = SumTree(10, compiled=compiled)
    with pytest.raises(IndexError):
        tree.set([0, bad], [1.0, 1.0])
    with pytest.raises(IndexError):
        tree.get([bad])
    for begin, end in ((-1, 3), (0, 11), (4, 3)):
        with pytest.raises(IndexError):
            tree.fill(begin, end, 1.0)
    assert tree.total == 0


def test_arguments(compiled: bool) -> None:
    with pytest.raises(ValueError, match="capacity"):
        SumTree(0, compiled=compiled)
    tree = SumTree(3, compiled=compiled)
    with pytest.raises(ValueError, match="2 rows and 3 weights"):
        tree.set([0, 1], [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="count"):
        tree.sample(np.random.default_rng(0), 0)
    with pytest.raises(BufferEmpty, match="all 3 weights are 0"):
        tree.sample(np.random.default_rng(0), 1)


def test_threads_may_draw_while_others_change_weights() -> None:
    tree = SumTree(5000)
    tree.fill(1000, 5000, 1.0)  # rows below 1000 are never to be drawn
    stop = threading.Event()

    def change(seed: int) -> None:
        rng = np.random.default_rng(seed)
        while not stop.is_set():
            tree.set(rng.integers(1000, 5000, 500), rng.random(500) + 0.1)

    threads = [threading.Thread(target=change, args=(seed,)) for seed in range(2)]
    for thread in threads:
        thread.start()
    rng = np.random.default_rng(9)
    drawn = [tree.sample(rng, 256) for _ in range(300)]
    stop.set()
    for thread in threads:
        thread.join(20)
    assert all(rows.min() >= 1000 and weights.min() > 0 for rows, weights in drawn)
    fresh = SumTree(5000)
    fresh.set(np.arange(5000), tree.get(np.arange(5000)))
    assert tree.total == fresh.total


# Priorities


def test_priorities_follow_the_errors(compiled: bool) -> None:
    rng = np.random.default_rng(3)
    priorities = Priorities(50, alpha=0.7, epsilon=0.01, compiled=compiled)
    priorities.added(10, 50)
    errors = rng.normal(size=40) * 3
    priorities.update(np.arange(10, 50), errors)
    rows = np.concatenate([priorities.sample(rng, 256, stratified=False).rows for _ in range(200)])
    p = np.concatenate([np.zeros(10), (np.abs(errors) + 0.01) ** 0.7])
    check_frequencies(rows, p / p.sum())


def test_importance_weights_undo_the_bias(compiled: bool) -> None:
    """With beta 1, a weighted mean over prioritized rows is the plain mean over all rows; with 0 nothing is corrected."""
    rng = np.random.default_rng(4)
    values = rng.normal(5, 2, 300)
    priorities = Priorities(300, compiled=compiled)
    priorities.added(0, 300)
    priorities.update(np.arange(300), values)  # the larger a value, the more often it is drawn
    drawn = [priorities.sample(rng, 1000, beta=1.0) for _ in range(50)]
    rows, weights = np.concatenate([d.rows for d in drawn]), np.concatenate([d.importance for d in drawn]).astype(float)
    assert abs(values[rows].mean() - values.mean()) > 0.3
    assert abs(np.average(values[rows], weights=weights) - values.mean()) < 0.05
    assert (priorities.sample(rng, 100, beta=0.0).importance == 1).all()
    assert drawn[0].importance.dtype == np.float32
    assert 0 < weights.min() < weights.max() <= 1


def test_importance_weights_are_those_of_the_paper() -> None:
    p = np.array([1.0, 4.0, 2.0, 8.0])
    n, beta = len(p), 0.4
    paper = (n * p / p.sum()) ** -beta
    assert np.allclose(importance_weights(p, p.min(), beta), paper / paper.max())


def test_new_rows_get_the_greatest_priority_seen(compiled: bool) -> None:
    priorities = Priorities(10, alpha=1.0, compiled=compiled)
    priorities.added(0, 2)
    assert priorities.tree.get([0, 1, 2]).tolist() == [1, 1, 0]
    priorities.update([0], [-7.0])
    priorities.update([0], [2.0])
    priorities.added(2, 3)
    assert np.allclose(priorities.tree.get([0, 1, 2]), [2, 1, 7])
    assert len(priorities) == 3


def test_rows_removed_meanwhile_stay_removed(compiled: bool) -> None:
    priorities = Priorities(10, compiled=compiled)
    priorities.added(0, 5)
    drawn = priorities.sample(np.random.default_rng(0), 5)
    priorities.removed(1, 4)
    priorities.update(drawn.rows, np.full(5, 2.0))
    assert np.flatnonzero(priorities.tree.get(np.arange(10))).tolist() == [0, 4]
    assert len(priorities) == 2
    priorities.removed(0, 10)
    assert len(priorities) == 0
    with pytest.raises(BufferEmpty):
        priorities.sample(np.random.default_rng(0), 1)


def test_priorities_check_their_arguments() -> None:
    for wrong in ({"alpha": -0.1}, {"beta": np.nan}, {"epsilon": 0.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Priorities(10, **wrong)
    priorities = Priorities(10)
    priorities.added(0, 10)
    with pytest.raises(ValueError, match=r"errors\[1\] is nan"):
        priorities.update([0, 1], [1.0, np.nan])
    with pytest.raises(ValueError, match="2 rows and 1 errors"):
        priorities.update([0, 1], [1.0])
    with pytest.raises(IndexError):
        priorities.update([10], [1.0])
    assert priorities.tree.total == 10
