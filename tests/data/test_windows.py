"""Tests of edgeml_ipc.data.windows and edgeml_ipc.data.steps: named sample configs of a buffer that several streams fill."""

from __future__ import annotations

import os
import threading
from typing import Any

import multiprocess
import numpy as np
import pytest
from gymnasium import spaces
from scipy import stats

from edgeml_ipc.data import (
    BufferEmpty,
    FutureSampler,
    LatestSampler,
    PrioritySampler,
    ReplayBuffer,
    SequenceSampler,
    TrajectorySampler,
    storage,
)
from edgeml_ipc.data.draws import ArraySteps
from edgeml_ipc.data.sampler import Pick
from edgeml_ipc.errors import ConnectionClosed
from tests.data.window_streams import ACTIONS, BOX, TOKEN, Stream, fill, write_until

BEGIN, END = -2, 4


def make(capacity: int, **options: Any) -> ReplayBuffer:
    buffer = ReplayBuffer(BOX, ACTIONS, capacity, extra_columns=[TOKEN], **options)
    window = SequenceSampler(begin=BEGIN, end=END)
    buffer.register_sample_config("plain", {"token": LatestSampler()})
    samplers = {
        "token": LatestSampler(),
        "window": SequenceSampler(begin=BEGIN, end=END, source="token"),
        "observations": window,
        "future": FutureSampler(source="token"),
    }
    buffer.register_sample_config("loose", samplers)
    buffer.register_sample_config("whole", samplers, sample_range=(BEGIN, END))
    return buffer


def faults(data: dict[str, Any], mask: dict[str, Any]) -> int:
    """Count the cells of a batch that are torn, foreign, or masked and not zero."""
    token, window, there = data["token"], data["window"], mask["window"]
    wanted = token[:, None, :] + np.arange(BEGIN, END)[None, :, None] * np.array([0, 0, 1, 0])
    wrong = int((window != np.where(there[:, :, None], wanted, 0)).any(axis=2).sum())
    value = (wanted[..., 1] % 1000 * 100 + wanted[..., 2]).astype(np.float32)
    wrong += int((data["observations"] != np.where(there, value, 0)[:, :, None]).any(axis=2).sum())
    wrong += int((mask["observations"] != there).sum())
    # A step that the episode cannot have is never there, and the future is the anchor's own.
    wrong += int((there & ((wanted[..., 2] < 1) | (wanted[..., 2] > wanted[..., 3]))).sum())
    future = data["future"]
    wrong += int((future[:, [0, 1, 3]] != token[:, [0, 1, 3]]).any(axis=1).sum())
    return wrong + int(((future[:, 2] < token[:, 2]) | (future[:, 2] > token[:, 3])).sum())


@pytest.mark.parametrize("chunk_rows", [1, 3, 8, 60])
@pytest.mark.parametrize("rounds", [1, 8, 40, 200])
@pytest.mark.parametrize("built", [True, False])
def test_windows_are_those_of_the_episodes(chunk_rows: int, rounds: int, built: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The steps found through the chunks are those that sorting all rows finds."""
    if not built:
        monkeypatch.setattr(storage, "native", lambda: None)  # as where the C half was not built
    buffer = make(130, chunk_rows=chunk_rows, seed=1)
    fill(buffer, rounds, seed=chunk_rows)
    steps = buffer._windows._map.steps()
    token, rows = buffer.columns["token"], steps.rows()
    assert len(rows) == len(buffer) == len(np.unique(rows))
    held = np.zeros(buffer.capacity, bool)
    held[rows] = True
    sorted_ones = ArraySteps(token[:, 2], token[:, 0] * 10**6 + token[:, 1], held)
    np.testing.assert_array_equal(steps.before(rows), sorted_ones.before(rows))
    np.testing.assert_array_equal(steps.after(rows), sorted_ones.after(rows))
    for offsets in (-steps.before(rows), steps.after(rows)):
        np.testing.assert_array_equal(steps.shift(rows, offsets), sorted_ones.shift(rows, offsets))
    np.testing.assert_array_equal(steps.holds(np.arange(buffer.capacity)), held)
    assert faults(*buffer.sample("loose", 200)) == 0


def test_every_window_is_equally_likely_and_the_terminal_step_is_drawn() -> None:
    buffer = make(300, chunk_rows=8, seed=5)
    fill(buffer, 150)
    token = buffer.columns["token"]
    for name, margin_before, margin_after in (("plain", 0, 0), ("whole", -BEGIN, END - 1)):
        steps = buffer._windows._map.steps()
        rows = steps.rows()
        fits = rows[(steps.before(rows) >= margin_before) & (steps.after(rows) >= margin_after)]
        keys = token @ np.array([10**6, 100, 1, 0])
        data, mask = buffer.sample(name, 20_000)
        assert all(part.all() for part in mask.values()) or name == "loose"
        drawn, counts = np.unique(data["token"] @ np.array([10**6, 100, 1, 0]), return_counts=True)
        assert np.isin(drawn, keys[fits]).all()
        full = np.append(counts, np.zeros(len(fits) - len(drawn)))
        assert stats.chisquare(full).pvalue > 1e-4
    assert (buffer.sample("plain", 500)[0]["token"][:, 2:] @ np.array([1, -1]) == 0).any()


def test_short_episodes_are_left_out() -> None:
    buffer = make(300, chunk_rows=8, seed=5, min_trajectory_length=6)
    fill(buffer, 150)
    assert set(buffer.sample("plain", 2000)[0]["token"][:, 3]) == {7, 12}


def test_force_indices_are_the_anchors() -> None:
    buffer = make(40, chunk_rows=4, seed=0)
    fill(buffer, 3)
    rows = buffer._windows._map.steps().rows()[::-1].copy()
    data, _ = buffer.sample("loose", len(rows), force_indices=rows)
    np.testing.assert_array_equal(data["token"], buffer.columns["token"][rows])
    with pytest.raises(ValueError, match="force_indices names the row 39, which holds nothing"):
        buffer.sample("loose", 1, force_indices=[39])
    with pytest.raises(ValueError, match="force_indices must be from 0 to 39, got 0 to 40"):
        buffer.sample("loose", 2, force_indices=[0, 40])
    with pytest.raises(ValueError, match=r"force_indices must be \(2,\) integers, got int64 of shape \(1,\)"):
        buffer.sample("loose", 2, force_indices=[0])


class Past(SequenceSampler):
    """Of the window, the steps before the anchor only."""

    def pick(self, steps: Any, anchors: Any, rng: np.random.Generator) -> Pick:
        rows, mask, _ = super().pick(steps, anchors, rng)
        mask = mask & (np.arange(self.begin, self.end) < 0)
        return Pick(np.where(mask, rows, -1), mask)


def test_fields_of_like_samplers_have_masks_of_their_own() -> None:
    """Such samplers pick once for all; a class that picks otherwise picks for itself."""
    buffer = make(200, chunk_rows=8, seed=4)
    fill(buffer, 60)
    window = {"begin": -2, "end": 2, "source": "token"}
    samplers = {"one": SequenceSampler(**window), "two": SequenceSampler(**window), "before": Past(**window)}
    buffer.register_sample_config("alike", samplers)
    data, mask = buffer.sample("alike", 64)
    np.testing.assert_array_equal(data["one"], data["two"])
    np.testing.assert_array_equal(mask["one"], mask["two"])
    assert not mask["before"][:, 2:].any()
    np.testing.assert_array_equal(data["before"][:, :2], data["one"][:, :2])
    mask["one"][...] = False
    data["one"][...] = 0
    assert mask["two"][:, 2].all()
    assert data["two"][:, 2].all()


def test_a_transform_has_the_last_word() -> None:
    buffer = make(40, seed=0)
    fill(buffer, 3)

    def distances(data: dict[str, Any], mask: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        return {"distance": data["goal"][:, 2] - data["token"][:, 2]}, {"distance": mask["goal"]}

    samplers = {"token": LatestSampler(), "goal": FutureSampler(source="token")}
    buffer.register_sample_config("goals", samplers, transform=distances)
    data, mask = buffer.sample(name="goals", batch_size=300)
    assert set(data) == set(mask) == {"distance"}
    assert data["distance"].min() == 0
    assert data["distance"].max() > 0


def test_nested_fields_come_as_they_are_stored() -> None:
    space = spaces.Dict({"image": spaces.Box(0, 255, (2, 2), np.uint8), "arm": spaces.Dict({"joints": BOX})})
    buffer = ReplayBuffer(space, ACTIONS, 10)
    seen = {"image": np.full((2, 2), 7, np.uint8), "arm": {"joints": np.ones(3)}}
    step = {"observations": seen, "next_observations": seen, "actions": np.zeros(2), "rewards": 0.0, "masks": 1.0}
    buffer.insert(step)
    samplers = {"observations": SequenceSampler(begin=0, end=2), "joints": LatestSampler("next_observations.arm.joints")}
    buffer.register_sample_config("nested", samplers)
    data, mask = buffer.sample("nested", 5)
    assert data["observations"]["image"].shape == (5, 2, 2, 2)
    assert (data["observations"]["arm"]["joints"] == np.array([1, 0])[None, :, None]).all()
    assert (data["joints"] == np.ones((5, 3))).all()
    assert mask["observations"].tolist() == [[True, False]] * 5


def test_what_cannot_be_sampled_is_an_error() -> None:
    buffer = make(40)
    with pytest.raises(BufferEmpty, match="cannot sample 4 rows: nothing was inserted yet"):
        buffer.sample("plain", 4)
    Stream(buffer, 1).insert(2, batched=True)
    with pytest.raises(BufferEmpty, match=r"none of 2 rows fits: sample_range \(-2, 4\)"):
        buffer.sample("whole", 4)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        buffer.sample("plain", 0)
    with pytest.raises(ValueError, match=r"no sample config is called 'x'; registered are \['loose', 'plain', 'whole'\]"):
        buffer.sample("x", 4)
    with pytest.raises(ValueError, match="there is no stored field 'x'"):
        buffer.register_sample_config("bad", {"x": LatestSampler()})
    with pytest.raises(ValueError, match="sample_range must make a window"):
        buffer.register_sample_config("bad", {"token": LatestSampler()}, (1, 1))
    with pytest.raises(ValueError, match="read no stored field; at least one must"):
        buffer.register_sample_config("bad", {"priority": PrioritySampler()})
    with pytest.raises(ValueError, match=r"the samplers of \['p', 'token'\] each say how anchors are drawn"):
        buffer.register_sample_config("bad", {"p": PrioritySampler(), "token": TrajectorySampler(4)})
    with pytest.raises(ValueError, match="half_life_rows cannot say so, too"):
        buffer.register_sample_config("bad", {"token": TrajectorySampler(4)}, half_life_rows=10)
    with pytest.raises(ValueError, match="the field 'token' comes with token_offset"):
        buffer.register_sample_config("bad", {"token": FutureSampler(), "token_offset": LatestSampler("token")})
    for limit, value in (("max_age_rows", 0), ("max_staleness", -1), ("half_life_rows", 0.0), ("half_life_rows", np.inf)):
        with pytest.raises(ValueError, match=f"{limit} must be .*, got {value}"):
            buffer.register_sample_config("bad", {"token": LatestSampler()}, **{limit: value})
    with pytest.raises(ValueError, match="min_trajectory_length must be at least 1 step, got 0"):
        make(40, min_trajectory_length=0)
    buffer.close()
    with pytest.raises(ConnectionClosed, match="closed on this side"):
        buffer.sample("plain", 4)


@pytest.mark.parametrize("name", ["loose", "whole"])
def test_windows_stay_in_one_episode_while_all_is_overwritten(name: str) -> None:
    """Two streams on two threads go round a small ring in small chunks, while windows are drawn from it."""
    buffer = make(160, chunk_rows=5, seed=2)
    streams = fill(buffer, 60)
    stop = threading.Event()

    def write(stream: Stream) -> None:
        rng = np.random.default_rng(stream.number)
        while not stop.is_set():
            stream.insert(int(rng.integers(1, 12)), batched=bool(rng.integers(2)))

    threads = [threading.Thread(target=write, args=(stream,)) for stream in streams]
    for thread in threads:
        thread.start()
    found = sum(faults(*buffer.sample(name, 64)) for _ in range(400))
    stop.set()
    for thread in threads:
        thread.join()
    counters = buffer.stats()
    assert found == 0
    assert counters["evicted"] > 10 * buffer.capacity
    assert counters["redrawn"] > 0


@pytest.mark.parametrize("chunk_rows", [1, 6, 50])
def test_windows_stay_in_one_episode_while_processes_overwrite_all(chunk_rows: int) -> None:
    """Two processes go round a small ring, each with an open episode nearly always, while windows are drawn from it."""
    spawn = multiprocess.get_context("spawn")
    name = f"test-windows-{os.getpid()}-{chunk_rows}"
    with make(240, chunk_rows=chunk_rows, seed=3, name=name) as buffer:
        stop, ready = spawn.Event(), spawn.Barrier(3)
        writers = [spawn.Process(target=write_until, args=(name, number, ready, stop), daemon=True) for number in (1, 2)]
        try:
            for writer in writers:
                writer.start()
            ready.wait(60)
            found, streams = 0, set()
            while buffer.stats()["evicted"] < 20 * buffer.capacity or len(streams) < 2:
                for config in ("plain", "loose", "whole"):
                    data, mask = buffer.sample(config, 64)
                    found += 0 if config == "plain" else faults(data, mask)
                    streams |= set(data["token"][:, 0].tolist())
            stop.set()
            for writer in writers:
                writer.join(60)
        finally:
            for writer in writers:
                writer.kill()
            buffer.unlink()
        assert found == 0
        assert [writer.exitcode for writer in writers] == [0, 0]
