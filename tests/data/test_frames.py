"""Observations stored once: whatever is given comes back, in whichever way it was given."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeml_ipc.data import DataShape, ReplayBuffer, storage
from edgeml_ipc.data.chunks import LAST, TRUNCATED
from edgeml_ipc.errors import BufferEmpty

Box = gymnasium.spaces.Box
Item = dict[str, Any]
IMAGE = (4, 5)


def space_of(stack: int, axis: int) -> gymnasium.spaces.Dict:
    shape = list(IMAGE)
    shape.insert(axis % 3, stack)
    return gymnasium.spaces.Dict({"image": Box(0, 255, tuple(shape), np.uint8), "state": Box(-1, 1, (3,), np.float32)})


class Player:
    """An environment whose observations are stacks of frames, which now and then does what it should not."""

    def __init__(self, stack: int, axis: int, seed: int, *, jumps: float, ends: float) -> None:
        self.stack, self.axis, self.jumps, self.ends = stack, axis, jumps, ends
        self.rng = np.random.default_rng(seed)
        self.number = itertools.count()
        self.frames = self.reset()

    def reset(self) -> list[np.ndarray]:
        return [self.frame()] * self.stack

    def frame(self) -> np.ndarray:
        return self.rng.integers(0, 255, IMAGE, np.uint8)

    def observation(self, frames: list[np.ndarray]) -> Item:
        return {"image": np.stack(frames, axis=self.axis), "state": np.full(3, frames[-1][0, 0], np.float32)}

    def step(self) -> Item:
        number, seen = next(self.number), self.frames
        self.frames = [*seen[1:], self.frame()]
        if self.rng.random() < self.jumps:
            self.frames = [self.frame() for _ in range(self.stack)]
        following = self.observation(self.frames)
        done, terminated = self.rng.random() < self.ends, self.rng.random() < 0.5
        item = {
            "observations": self.observation(seen),
            "actions": np.float32(number),
            "rewards": np.float32(number),
            "masks": np.float32(not (done and terminated)),
            "dones": bool(done),
            "next_observations": following,
            "number": number,
        }
        if done or self.rng.random() < self.jumps:  # the next one does not begin where this one ended
            self.frames = self.reset()
        return item


def stacked(items: list[Item]) -> Item:
    """Return the items as one dict of arrays, of the very dtypes that are stored."""

    def join(values: list[Any]) -> Any:
        if isinstance(values[0], dict):
            return {key: join([value[key] for value in values]) for key in values[0]}
        return np.stack(values)

    return {key: join([item[key] for item in items]) for key in items[0]}


def make(stack: int = 1, axis: int = -1, capacity: int = 100, **options: Any) -> ReplayBuffer:
    return ReplayBuffer(
        space_of(stack, axis),
        Box(-np.inf, np.inf, (), np.float32),
        capacity,
        n_stack=stack,
        stack_axis=axis,
        seed=0,
        extra_columns=[DataShape("number", dtype="int64")],
        **options,
    )


def assert_same(got: Item, wanted: Item) -> None:
    for key, value in wanted.items():
        if isinstance(value, dict):
            assert_same(got[key], value)
        else:
            np.testing.assert_array_equal(got[key], value, err_msg=key)


def held(buffer: ReplayBuffer) -> Iterator[Item]:
    yield from buffer.get_latest_data(-1)


def insert(buffer: ReplayBuffer, items: list[Item], how: str) -> None:
    if how == "stacked":
        buffer.batch_insert(stacked(items))
    elif how == "list":
        buffer.batch_insert(items)
    elif how == "converted":
        buffer.batch_insert([{**item, "rewards": float(item["rewards"]), "masks": [item["masks"]][0]} for item in items])
    else:
        for item in items:
            buffer.insert(item)


@settings(max_examples=150, deadline=None)
@given(
    stack=st.sampled_from([1, 2, 4]),
    axis=st.sampled_from([0, 1, -1]),
    capacity=st.integers(1, 60),
    chunk_rows=st.integers(1, 20),
    lavish=st.booleans(),
    seed=st.integers(0, 1000),
    jumps=st.sampled_from([0.0, 0.1, 0.7]),
    ends=st.sampled_from([0.0, 0.05, 0.6]),
    steps=st.lists(st.tuples(st.integers(1, 90), st.sampled_from(["one", "list", "stacked", "converted"])), max_size=8),
)
def test_what_is_given_comes_back(
    stack: int,
    axis: int,
    capacity: int,
    chunk_rows: int,
    lavish: bool,
    seed: int,
    jumps: float,
    ends: float,
    steps: list[tuple[int, str]],
) -> None:
    player = Player(stack, axis, seed, jumps=jumps, ends=ends)
    given_items: list[Item] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "_LAVISH_BYTES", storage._LAVISH_BYTES if lavish else 0)
        buffer = make(stack, axis, capacity, chunk_rows=min(chunk_rows, capacity))
    with buffer:
        for count, how in steps:
            items = [player.step() for _ in range(count)]
            given_items += items
            insert(buffer, items, how)
        got = list(held(buffer))
        assert [item["number"] for item in got] == list(range(len(given_items) - len(got), len(given_items)))
        for item in got:
            assert_same(item, given_items[int(item["number"])])
        if given_items:
            batch = buffer.sample(50)
            for i in range(50):
                wanted = given_items[int(batch["number"][i])]
                assert_same(
                    {key: batch[key][i] for key in ("rewards", "dones")}, {key: wanted[key] for key in ("rewards", "dones")}
                )
                for field in ("observations", "next_observations"):
                    assert_same({leaf: batch[field][leaf][i] for leaf in batch[field]}, wanted[field])


@pytest.mark.parametrize("chunk_rows", [1, 2, 5, 16])
@pytest.mark.parametrize("stack", [1, 3])
def test_one_writer_sees_an_exact_ring(stack: int, chunk_rows: int) -> None:
    player = Player(stack, -1, 0, jumps=0, ends=0)
    buffer = make(stack, capacity=48, chunk_rows=chunk_rows)
    for count in range(1, 200):
        buffer.insert(player.step())
        assert len(buffer) == min(count, 48)


@pytest.mark.parametrize("batched", [False, True])
def test_the_observation_that_follows_may_be_left_out(batched: bool) -> None:
    player = Player(3, -1, 5, jumps=0, ends=0)
    buffer = make(3, capacity=40, chunk_rows=7)
    items = [player.step() for _ in range(100)]
    bare = [{key: value for key, value in item.items() if key != "next_observations"} for item in items]
    if batched:
        for begin in range(0, 100, 9):
            buffer.batch_insert(bare[begin : begin + 9])
    else:
        for item in bare:
            buffer.insert(item)
    assert buffer.latest_data_id() == 98  # the last one waits for what follows it
    assert len(buffer) == 39
    for item in held(buffer):
        assert_same(item, items[int(item["number"])])
    buffer.insert({**items[99], "dones": True})  # the next step, with all that it needs
    assert buffer.latest_data_id() == 100


def test_some_of_a_list_may_leave_it_out() -> None:
    player = Player(1, -1, 5, jumps=0, ends=0.2)
    items = [player.step() for _ in range(60)]
    bare = [item if item["dones"] else {k: v for k, v in item.items() if k != "next_observations"} for item in items]
    buffer = make(capacity=100, chunk_rows=20)
    for begin in range(0, 60, 7):
        buffer.batch_insert(bare[begin : begin + 7])
    for item in held(buffer):
        assert_same(item, items[int(item["number"])])
    assert len(buffer) == 59 + items[-1]["dones"]


def test_where_an_episode_ends_it_is_needed() -> None:
    player = Player(1, -1, 5, jumps=0, ends=0)
    buffer = make()
    items = [{k: v for k, v in player.step().items() if k != "next_observations"} for _ in range(3)]
    message = "'next_observations' is missing; it is needed where an episode ends"
    for ended in ({"dones": True}, {"masks": np.float32(0), "dones": True}, {"end_of_trajectory": True, "dones": False}):
        with pytest.raises(ValueError, match=message):
            buffer.insert({**items[0], **ended})
    with pytest.raises(ValueError, match=message):
        buffer.insert(items[0], end_of_trajectory=True)
    with pytest.raises(ValueError, match=message):
        buffer.batch_insert([items[0], {**items[1], "dones": True}, items[2]])
    assert buffer.latest_data_id() == -1
    with pytest.raises(BufferEmpty):
        buffer.sample(1)
    buffer.insert(items[0])
    with pytest.raises(ValueError, match=message):
        buffer.end_trajectory()


def test_a_writer_that_leaves_says_what_it_drops(caplog: pytest.LogCaptureFixture) -> None:
    player = Player(1, -1, 5, jumps=0, ends=0)
    buffer = make()
    with buffer.writer() as writer:
        writer.insert(player.step())
        writer.insert({k: v for k, v in player.step().items() if k != "next_observations"})
    assert "came without next_observations" in caplog.text
    assert len(buffer) == 1
    assert buffer.about["flags"][buffer.rows()[0]] & (LAST | TRUNCATED) == LAST | TRUNCATED


def test_what_begins_anew_is_kept_beside_and_takes_room() -> None:
    """With frames for few rows more than there are, rows whose observations have nothing in common fill half the buffer."""
    space = Box(-1, 1, (2000,), np.float32)
    buffer = ReplayBuffer(space, Box(-1, 1, (1,), np.float32), 4000, seed=0)
    row = {"actions": np.zeros(1, np.float32), "rewards": 0.0, "masks": 1.0}
    for number in range(9000):
        seen, then = np.full(2000, number, np.float32), np.full(2000, -number, np.float32)
        buffer.insert({**row, "observations": seen, "next_observations": then})
    assert 1900 < len(buffer) < 2300
    batch = buffer.sample(100)
    assert (batch["observations"] == -batch["next_observations"]).all()
    assert batch["observations"].min() >= 9000 - len(buffer)
    apart = ReplayBuffer(space, Box(-1, 1, (1,), np.float32), 100, store_next_observations=True)
    assert apart.columns["next_observations"].shape == (100, 2000)


def test_memory_of_frames() -> None:
    """Frames once, and little more: 5,000 stacks of four take what 5,000 frames and 4 % take."""
    space = Box(0, 255, (32, 32, 4), np.uint8)
    with ReplayBuffer(space, gymnasium.spaces.Discrete(4), 50_000, n_stack=4) as buffer:
        assert buffer.columns["observations"].nbytes <= 1.06 * 50_000 * 32 * 32
    with ReplayBuffer(Box(-1, 1, (64,)), Box(-1, 1, (8,)), 100_000) as buffer:
        assert buffer.columns["observations"].nbytes <= 1.03 * 100_000 * 64 * 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_stack": 0}, "n_stack must be from 1 to 64 frames, got 0"),
        ({"n_stack": 3}, "n_stack is 3, but no observation has so many frames along axis -1"),
        ({"n_stack": 4, "stack_axis": 0}, "no observation has so many frames along axis 0"),
        ({"n_stack": 4, "store_next_observations": True}, "frames are stored once only where next_observations are derived"),
        ({"chunk_rows": 40_000}, "chunk_rows must be at most 32768"),
    ],
)
def test_what_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ReplayBuffer(Box(0, 255, (8, 8, 4), np.uint8), gymnasium.spaces.Discrete(4), 50_000, **options)
