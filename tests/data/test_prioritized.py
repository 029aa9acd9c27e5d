"""Tests of edgeml_ipc.data.runs, .prioritized and .anchors: priorities of a buffer that is written all the time, and more."""

from __future__ import annotations

import os
import re
import threading
from pathlib import Path
from typing import Any

import jax
import multiprocess
import numpy as np
import pytest

from edgeml_ipc.data import (
    DataShape,
    FutureSampler,
    LatestSampler,
    NStepSampler,
    PrioritySampler,
    ReplayBuffer,
    TrajectorySampler,
    storage,
)
from edgeml_ipc.data.prioritized import PriorityTracker
from edgeml_ipc.data.priority import Priorities, SumTree
from edgeml_ipc.data.reading import Reader
from edgeml_ipc.data.runs import View
from tests.data.window_streams import (
    ACTIONS,
    BOX,
    TOKEN,
    Stream,
    fill,
    learn,
    learn_by_name,
    register_prioritized,
    write_until,
)


def make(capacity: int, **options: Any) -> ReplayBuffer:
    buffer = ReplayBuffer(BOX, ACTIONS, capacity, extra_columns=[TOKEN], **options)
    register_prioritized(buffer)
    return buffer


def indices_of_all(buffer: ReplayBuffer) -> np.ndarray:
    data, _ = buffer.sample("prioritized", len(buffer), force_indices=buffer._windows._map.steps().rows())
    return np.asarray(data["p"]["indices"])


@pytest.mark.parametrize("chunk_rows", [1, 5, 8, 50])
@pytest.mark.parametrize("built", [True, False])
def test_priorities_follow_what_is_held(chunk_rows: int, built: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """However much happened between two looks, the rows with a priority are those held, and each row came and went once."""
    if not built:
        monkeypatch.setattr(storage, "native", lambda: None)  # as where the C half was not built
    buffer = make(101, chunk_rows=chunk_rows)
    streams = [Stream(buffer, number) for number in (1, 2, 3)] if chunk_rows < 50 else [Stream(buffer, 1)]
    rng = np.random.default_rng(chunk_rows)
    came = 0

    class Counted(Priorities):
        def added(self, begin: int, end: int) -> None:
            nonlocal came
            came += end - begin
            super().added(begin, end)

    tracker = PriorityTracker(buffer._storage, Counted(buffer.capacity))
    every = np.arange(buffer.capacity)
    for _ in range(150):
        for _ in range(rng.integers(0, 4)):
            streams[rng.integers(len(streams))].insert(int(rng.choice([1, 2, 7, 60])), batched=True)
        view = View(buffer._windows._map)
        tracker.follow(view)
        held = view.steps.holds(every) if view.total else np.zeros(buffer.capacity, bool)
        assert ((tracker.priorities.tree.get(every) > 0) == held).all()
        assert len(tracker.priorities) == held.sum() == len(buffer)
        assert (tracker.stamps(every[held]) == view.steps.stamps(every[held])).all()
        assert (tracker.stamps(every[~held]) < 0).all()
    assert 100 < came <= buffer.stats()["inserted"]


def test_priorities_of_rows_that_were_overwritten_go_to_nobody() -> None:
    buffer = make(40, chunk_rows=4, seed=0)
    stream = Stream(buffer, 1)
    stream.insert(40, batched=True)
    old = indices_of_all(buffer)
    assert buffer.update_priorities("prioritized", old, np.full(40, 0.5)) == 40
    stream.insert(10, batched=True)
    assert buffer.update_priorities("prioritized", old, np.full(40, 9.0)) == 30
    assert buffer.update_priorities("prioritized", old[:10], np.full(10, 9.0)) == 0
    assert (buffer.stats()["priorities_updated"], buffer.stats()["priorities_stale"]) == (70, 20)
    new = indices_of_all(buffer)
    weights = buffer._windows._configs["prioritized"].source.tracker.priorities.tree.get(new % 40)
    first_seen = 1.0  # of the ten new rows: the greatest priority when they were seen first
    assert np.allclose(np.sort(weights), np.sort([9.000001**0.6] * 30 + [first_seen] * 10))
    assert len(np.unique(np.concatenate([old, new]))) == 50
    assert buffer.update_priorities("prioritized", new, np.zeros(40)) == 40


def test_of_an_index_that_is_named_twice_the_last_error_counts() -> None:
    buffer = make(10, seed=0)
    Stream(buffer, 1).insert(10, batched=True)
    index = indices_of_all(buffer)[3]
    buffer.update_priorities("prioritized", [index, index], [5.0, 1.0])
    tree = buffer._windows._configs["prioritized"].source.tracker.priorities.tree
    assert np.isclose(tree.get([index % 10])[0], 1.000001**0.6)


def test_what_cannot_be_updated_is_an_error() -> None:
    buffer = make(10, seed=0)
    Stream(buffer, 1).insert(10, batched=True)
    indices = indices_of_all(buffer)
    buffer.register_sample_config("plain", {"token": LatestSampler()})
    tree = buffer._windows._configs["prioritized"].source.tracker.priorities.tree
    before = tree.get(np.arange(10))
    with pytest.raises(ValueError, match="the sample config 'plain' has no PrioritySampler"):
        buffer.update_priorities("plain", indices, np.ones(10))
    with pytest.raises(ValueError, match="no sample config is called 'x'"):
        buffer.update_priorities("x", indices, np.ones(10))
    with pytest.raises(ValueError, match=r"errors\[2\] is inf; it must be finite"):
        buffer.update_priorities("prioritized", indices[:3], [1.0, 2.0, -np.inf * -1])
    with pytest.raises(ValueError, match=r"errors\[0\] is nan; it must be finite"):
        buffer.update_priorities("prioritized", indices[:1], [np.nan])
    with pytest.raises(ValueError, match=r"indices must be \(n,\) integers .* got int64 of shape \(10,\) and \(9,\)"):
        buffer.update_priorities("prioritized", indices, np.ones(9))
    with pytest.raises(ValueError, match=r"indices must be \(n,\) integers .* got float64"):
        buffer.update_priorities("prioritized", indices.astype(float), np.ones(10))
    with pytest.raises(IndexError, match=r"indices\[1\] is -1"):
        buffer.update_priorities("prioritized", [0, -1], np.ones(2))
    assert (tree.get(np.arange(10)) == before).all()
    assert buffer.update_priorities("prioritized", [2**62], [1.0]) == 0


@pytest.mark.parametrize("compiled", [True, False])
def test_the_trees_agree_about_handles(compiled: bool) -> None:
    priorities = Priorities(6, alpha=0.5, compiled=compiled)
    priorities.added(0, 5)
    stamps = np.array([8, 9, 10, 3, 4, -1])  # generations 1, 1, 1, 0, 0 of chunks of up to 7 rows; the last holds nothing
    handles = np.array([6, 1, 8, 3, 9, 5])
    assert priorities.update_held(handles, np.array([4.0, 4.0, -9.0, 16.0, 4.0, 4.0]), stamps, 3) == 3
    assert np.allclose(priorities.tree.get(np.arange(6)), [2, 1, 3, 4, 1, 0], atol=1e-6)
    priorities.added(5, 6)
    assert np.isclose(priorities.tree.get([5])[0], 4.0)
    with pytest.raises(ValueError, match=r"errors\[1\]"):
        priorities.update_held(handles[:2], np.array([1.0, np.nan]), stamps, 3)
    with pytest.raises(IndexError, match=r"indices\[0\] is -7"):
        priorities.update_held(np.array([-7]), np.array([1.0]), stamps, 3)


@pytest.mark.parametrize("compiled", [True, False])
def test_the_trees_agree_about_what_is_handed_out(compiled: bool) -> None:
    """Also of a weight so great that its ratio to the least is no number of single precision, and of one that is gone."""
    tree = SumTree(6, compiled=compiled)
    tree.set([1, 2, 4], [0.5, 2.0, 1e280])
    rows, stamps = np.array([1, 2, 4, 2]), np.array([9, 18, 4, 2])  # generations 1, 2, 0, 0 of chunks of up to 7 rows
    handles, importance = tree.hand_out(rows, stamps, np.array([0.5, 2.0, 1e280, 0.25]), 3, 0.1)
    assert handles.tolist() == [7, 14, 4, 2]
    assert importance.dtype == np.float32
    assert np.allclose(importance, [1, 0.25**0.1, 5e-281**0.1, 1], rtol=1e-6, atol=0)
    with pytest.raises(ValueError, match="must be a contiguous" if compiled else "could not"):
        tree.hand_out(rows, stamps, np.ones(3), 3, 0.1)


def test_rows_that_are_redrawn_keep_the_right_importance(monkeypatch: pytest.MonkeyPatch) -> None:
    """All rows but a few are overwritten between the copy and the look after it."""
    buffer = ReplayBuffer(BOX, ACTIONS, 40, extra_columns=[TOKEN], chunk_rows=4, seed=3)
    samplers = {"token": LatestSampler(), "p": PrioritySampler(alpha=1.0, beta=1.0)}
    buffer.register_sample_config("prioritized", samplers)
    stream = Stream(buffer, 1)
    stream.insert(40, batched=True)
    indices = indices_of_all(buffer)
    errors = np.linspace(1, 4, 40)
    buffer.update_priorities("prioritized", indices, errors)
    known = dict(zip(indices.tolist(), errors.tolist(), strict=True))
    take, overtaken = Reader.take, []

    def take_and_be_overtaken(self: Reader, rows: Any, stamps: Any) -> Any:
        drawn = take(self, rows, stamps)
        if overtaken:
            return drawn
        overtaken.append(True)
        stream.insert(30, batched=True)
        whole = np.empty(len(rows), np.bool_)
        buffer._table.intact(rows, stamps, whole)
        return drawn._replace(lost=tuple(np.flatnonzero(~whole).tolist()))

    monkeypatch.setattr(Reader, "take", take_and_be_overtaken)
    data, _ = buffer.sample("prioritized", 500)
    assert buffer.stats()["redrawn"] > 300
    rows = data["p"]["indices"] % 40
    assert (buffer.columns["token"][rows] == data["token"]).all()
    assert buffer.update_priorities("prioritized", data["p"]["indices"], np.ones(500)) == 500
    weights = np.array([known.get(index, 4.0) for index in data["p"]["indices"].tolist()])  # new rows: the greatest seen
    assert len(np.unique(weights)) > 2
    kept = [error for index, error in known.items() if buffer.columns["token"][index % 40, 1:3].tolist() in first_tokens(40)]
    assert np.allclose(data["p"]["importance"], min(kept) / weights, rtol=1e-5)


def first_tokens(count: int) -> list[list[int]]:
    with ReplayBuffer(BOX, ACTIONS, count, extra_columns=[TOKEN]) as buffer:
        Stream(buffer, 1).insert(count, batched=True)
        tokens: list[list[int]] = buffer.columns["token"][:, 1:3].tolist()
        return tokens


def test_beta_may_change_between_samples() -> None:
    buffer = make(10, seed=0)
    sampler = PrioritySampler(beta=0.0)
    buffer.register_sample_config("schedule", {"token": LatestSampler(), "p": sampler})
    Stream(buffer, 1).insert(10, batched=True)
    indices = buffer.sample("schedule", 10, force_indices=np.arange(10))[0]["p"]["indices"]
    buffer.update_priorities("schedule", indices, np.arange(1, 11))
    assert (buffer.sample("schedule", 50)[0]["p"]["importance"] == 1).all()
    sampler.beta = 1.0
    assert buffer.sample("schedule", 50)[0]["p"]["importance"].min() < 0.5


def test_several_threads_learn_while_all_is_overwritten() -> None:
    buffer = make(160, chunk_rows=5, seed=2)
    stream = fill(buffer, 60)[0]
    wrong: list[int] = []
    learners = [threading.Thread(target=lambda seed=seed: wrong.append(learn(buffer, 150, seed))) for seed in range(3)]
    for learner in learners:
        learner.start()
    while any(learner.is_alive() for learner in learners):
        stream.insert(3, batched=True)
    for learner in learners:
        learner.join()
    counters = buffer.stats()
    assert wrong == [0, 0, 0]
    assert counters["evicted"] > buffer.capacity
    assert counters["priorities_updated"] + counters["priorities_stale"] == 3 * 150 * 32


def test_several_processes_learn_from_one_buffer() -> None:
    """Each has priorities of its own; a writer goes round a small ring meanwhile."""
    spawn = multiprocess.get_context("spawn")
    name = f"test-prioritized-{os.getpid()}"
    with make(240, chunk_rows=6, seed=3, name=name) as buffer:
        stop, ready = spawn.Event(), spawn.Barrier(4)
        writer = spawn.Process(target=write_until, args=(name, 1, ready, stop), daemon=True)
        learners = [spawn.Process(target=learn_by_name, args=(name, seed, ready, 200), daemon=True) for seed in (1, 2)]
        try:
            for process in (writer, *learners):
                process.start()
            ready.wait(60)
            assert learn(buffer, 200, 0) == 0
            for learner in learners:
                learner.join(100)
            stop.set()
            writer.join(60)
        finally:
            for process in (writer, *learners):
                process.kill()
            buffer.unlink()
        assert [process.exitcode for process in (writer, *learners)] == [0, 0, 0]


def test_prefetch_of_a_config_gives_data_and_mask() -> None:
    buffer = make(400, chunk_rows=8, seed=1)
    fill(buffer, 30)
    samplers = {"token": LatestSampler(), "p": PrioritySampler(), "target": NStepSampler(3, 0.9)}
    buffer.register_sample_config("learner", samplers)
    with buffer.prefetch(16, name="learner") as batches:
        for _ in range(5):
            data, mask = next(batches)
            assert isinstance(data["token"], jax.Array)
            assert isinstance(data["target"]["returns"], jax.Array)
            assert isinstance(mask["target"], jax.Array)
            assert mask["target"].dtype == bool
            assert type(data["p"]["indices"]) is np.ndarray
            assert data["p"]["indices"].dtype == np.int64
            assert buffer.update_priorities("learner", data["p"]["indices"], np.asarray(data["p"]["importance"])) == 16
    with pytest.raises(ValueError, match="no sample config is called 'x'"):
        buffer.prefetch(16, name="x")


def test_hindsight_goals_are_of_the_same_episodes_future() -> None:
    """Hindsight experience replay, as docs/replay.md shows it: a step's goal is what the episode reached later."""
    goal = DataShape("goal", (3,), "float32")
    buffer = ReplayBuffer(BOX, ACTIONS, 300, extra_columns=[TOKEN, goal], chunk_rows=8, seed=4)
    streams = [Stream(buffer, 1), Stream(buffer, 2)]
    for turn in range(120):
        streams[turn % 2].insert(3, batched=True, goal=np.full(3, -1.0))

    def relabel(data: dict[str, Any], mask: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        reached = (data["next_observations"] == data["achieved"]).all(axis=1)
        data["rewards"] = np.where(reached, 0.0, -1.0).astype(np.float32)
        data["goal"] = data.pop("achieved")
        return data, mask

    samplers = {
        "token": LatestSampler(),
        "next_observations": LatestSampler(),
        "rewards": LatestSampler(),
        "achieved": FutureSampler(source="next_observations"),
        "then": FutureSampler(source="token"),
    }
    buffer.register_sample_config("hindsight", samplers, transform=relabel)
    data, mask = buffer.sample("hindsight", 2000)
    token = data["token"]
    value = token[:, 1] % 1000 * 100 + token[:, 2]  # of the observation after the step
    assert (data["goal"] == (value + data["achieved_offset"])[:, None]).all()
    assert (token[:, 2] + data["achieved_offset"] <= token[:, 3]).all()
    assert (data["rewards"] == np.where(data["achieved_offset"] == 0, 0, -1)).all()
    assert {0.0, -1.0} == set(data["rewards"].tolist())
    assert (data["then"][:, 2] == token[:, 2] + data["then_offset"]).all()
    assert (data["then"][:, :2] == token[:, :2]).all()
    assert all(part.dtype == np.bool_ and part.shape == (2000,) for part in mask.values())


def test_the_example_of_hindsight_runs() -> None:
    page = Path(__file__).parents[2] / "docs" / "replay.md"
    found = re.search(r"^```python\n(# Hindsight.*?)```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert found
    buffer = make(300, chunk_rows=8, seed=4)
    fill(buffer, 60)
    exec(found[1], {"buffer": buffer, "np": np, "FutureSampler": FutureSampler, "LatestSampler": LatestSampler})
    data, _ = buffer.sample("hindsight", 500)
    assert ((data["rewards"] == 0) == (data["goals"] == data["next_observations"]).all(axis=1)).all()
    assert ((data["rewards"] == 0) == (data["achieved_offset"] == 0)).all()


def test_nested_observations_are_those_after_the_last_step_used() -> None:
    from gymnasium import spaces

    space = spaces.Dict({"image": spaces.Box(0, 255, (2, 2), np.uint8), "arm": spaces.Dict({"joints": BOX})})
    buffer = ReplayBuffer(space, ACTIONS, 10, seed=0)
    for step in range(4):
        seen, then = ({"image": np.full((2, 2), n, np.uint8), "arm": {"joints": np.full(3, n)}} for n in (step, step + 1))
        more = {"actions": np.zeros(2), "rewards": 1.0, "masks": float(step < 3)}
        buffer.insert({"observations": seen, "next_observations": then, **more})
    buffer.register_sample_config("targets", {"target": NStepSampler(2, 0.5), "all": TrajectorySampler(5, source="rewards")})
    data, mask = buffer.sample("targets", 3, force_indices=np.array([0, 2, 3]))
    after = data["target"]["next_observations"]
    assert after["image"][:, 0, 0].tolist() == [2, 4, 4]
    assert after["arm"]["joints"][:, 0].tolist() == [2, 4, 4]
    assert data["target"]["lengths"].tolist() == [2, 2, 1]
    assert data["target"]["discounts"].tolist() == [0.25, 0, 0]
    assert mask["target"].tolist() == [True] * 3
