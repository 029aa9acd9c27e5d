"""Tests of saving buffers that store each observation, and each frame of a stack, once."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeml_ipc.data import LatestSampler, ReplayBuffer, SequenceSampler, TrajectoryBuffer, storage
from edgeml_ipc.errors import SegmentError
from tests.data.test_frames import Player, insert, make
from tests.data.test_saving import assert_same


def configured(buffer: ReplayBuffer) -> ReplayBuffer:
    samplers = {
        "observations": SequenceSampler(begin=-1, end=2),
        "next_observations": LatestSampler(),
        "number": LatestSampler(),
    }
    buffer.register_sample_config("window", samplers)
    return buffer


def samples(buffer: ReplayBuffer, count: int = 4) -> list[Any]:
    """Draw batches, and leave the generators where they were."""
    states = buffer._batches.generator_state(), buffer._windows.generator_states()
    drawn: list[Any] = []
    for _ in range(count):
        drawn.append(buffer.sample(11))
        drawn += buffer.sample("window", 7)
    buffer._batches.set_generator_state(states[0])
    buffer._windows.set_generator_states(states[1])
    return drawn


@settings(max_examples=40, deadline=None)
@given(
    stack=st.sampled_from([1, 2, 4]),
    axis=st.sampled_from([0, 1, -1]),
    sizes=st.tuples(st.integers(1, 60), st.integers(1, 20), st.integers(1, 20)),
    writers=st.integers(1, 2),
    jumps=st.sampled_from([0.0, 0.1, 0.7]),
    ends=st.sampled_from([0.0, 0.05, 0.6]),
    steps=st.lists(st.integers(1, 60), min_size=1, max_size=8),
    built=st.booleans(),
)
def test_frames_come_back(
    stack: int,
    axis: int,
    sizes: tuple[int, int, int],
    writers: int,
    jumps: float,
    ends: float,
    steps: list[int],
    built: bool,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    capacity, chunk_rows, other_rows = sizes[0] * 2, min(sizes[1], sizes[0]), min(sizes[2], sizes[0])
    saved = configured(make(stack, axis, capacity, chunk_rows=chunk_rows))
    each = [(saved.writer(), Player(stack, axis, seed, jumps=jumps, ends=ends)) for seed in range(writers)]
    for turn, count in enumerate(steps):
        writer, player = each[turn % writers]
        insert(writer, [player.step() for _ in range(count)], "list")  # type: ignore[arg-type]
    path = str(tmp_path_factory.getbasetemp() / "frames")
    saved.save(path)
    expected = saved.get_latest_data(-1)
    with pytest.MonkeyPatch.context() as patch:
        if not built:
            patch.setattr(storage, "native", lambda: None)
        same = configured(make(stack, axis, capacity, chunk_rows=chunk_rows))
        wider = configured(make(stack, axis, 5 * capacity, chunk_rows=chunk_rows))
        other = configured(make(stack, axis, capacity, chunk_rows=other_rows))
        for loaded in (same, wider, other):
            loaded.load(path)
            found = loaded.get_latest_data(-1)
            assert len(found) == len(expected) or loaded is other
            for one, two in zip(expected[len(expected) - len(found) :], found, strict=True):
                if writers == 1 or len(found) == len(expected):
                    assert_same(one, two)
        for loaded in (same, wider) if writers == 2 or len(other) < len(saved) else (same, wider, other):
            for one, two in zip(samples(saved), samples(loaded), strict=True):
                assert_same(one, two)
    path_again = path + ".again"
    same.save(path_again)
    again = configured(ReplayBuffer.from_file(path_again))
    for one, two in zip(samples(saved), samples(again), strict=True):
        assert_same(one, two)
    # It goes on as any other: its frames are where those who write next expect them.
    for loaded in (same, wider, again):
        writer, player = loaded.writer(), Player(stack, axis, 99, jumps=jumps, ends=ends)
        player.number = itertools.count(10_000)
        items = {item["number"]: item for item in (player.step() for _ in range(3 * capacity))}
        old = {int(item["number"]): item for item in expected}
        for begin in range(0, 3 * capacity, 7):
            insert(writer, list(items.values())[begin : begin + 7], "list")  # type: ignore[arg-type]
            for item in loaded.get_latest_data(-1):
                wanted = items.get(int(item["number"]), old.get(int(item["number"])))
                if writers == 1 or item["number"] >= 10_000:  # two players count alike
                    assert wanted is not None
                    for key in ("observations", "next_observations"):
                        assert_same(item[key], wanted[key])


def test_frames_of_a_stack_are_saved_once(tmp_path: Path) -> None:
    saved = make(4, -1, 500)
    player = Player(4, -1, 0, jumps=0.0, ends=0.01)
    insert(saved, [player.step() for _ in range(500)], "list")
    saved.save(tmp_path / "stacks")
    frames = 500 * 20
    columns = os.path.getsize(tmp_path / "stacks") - frames
    assert columns < 14 * 4096 + 20 * 4 * frames // 100
    make(4, -1, 500).load(tmp_path / "stacks")


def test_a_buffer_of_another_kind_is_not_made_of_a_file(tmp_path: Path) -> None:
    class OwnBuffer(ReplayBuffer):
        pass

    make(1, -1, 10).save(tmp_path / "file")
    with pytest.raises(SegmentError, match="it is a ReplayBuffer, not a TrajectoryBuffer"):
        TrajectoryBuffer.from_file(tmp_path / "file")
    with OwnBuffer.from_file(tmp_path / "file") as buffer:
        assert type(buffer) is OwnBuffer
