"""Tests of edgeml_ipc.data.trajectory_buffer."""

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from edgeml_ipc.data import (
    BufferEmpty,
    DataShape,
    LatestSampler,
    QueuedDataStore,
    ReplayBuffer,
    SequenceSampler,
    TrajectoryBuffer,
    make_default_trajectory_buffer,
)
from edgeml_ipc.errors import SegmentError, TimeoutError
from edgeml_ipc.trainer import TrainerClient, TrainerConfig, TrainerServer

SHAPES = [DataShape("number"), DataShape("arm.joints", (3,)), DataShape("arm.closed", dtype="bool")]
BOX = spaces.Box(-1, 1, (3,), np.float32)
_numbers = itertools.count()


def step(value: float, **more: Any) -> dict[str, Any]:
    return {"number": value, "arm": {"joints": np.full(3, value, np.float32), "closed": value > 5}, **more}


def make(capacity: int = 50, min_trajectory_length: int = 2, **options: Any) -> TrajectoryBuffer:
    buffer = TrajectoryBuffer(capacity, SHAPES, min_trajectory_length, **{"seed": 0, **options})
    register(buffer)
    return buffer


def register(buffer: TrajectoryBuffer) -> None:
    buffer.register_sample_config("step", {"number": LatestSampler()})
    buffer.register_sample_config("pair", {"number": SequenceSampler(begin=0, end=2)}, sample_range=(0, 2))


def fill(buffer: TrajectoryBuffer, *lengths: int) -> None:
    """Insert trajectory 100, 101, ... and 200, 201, ... of these lengths."""
    for number, length in enumerate(lengths, 1):
        for position in range(length):
            buffer.insert(step(100 * number + position), end_of_trajectory=position == length - 1)


def drawn(buffer: TrajectoryBuffer, config: str = "step") -> set[int]:
    """Return the first values of many elements."""
    return set(buffer.sample(config, 3000)[0]["number"].reshape(3000, -1)[:, 0].astype(int).tolist())


@pytest.fixture
def name() -> Iterator[str]:
    made = f"test-trajectories-{os.getpid()}-{next(_numbers)}"
    yield made
    TrajectoryBuffer.remove(made)


def test_fields_are_what_the_shapes_say() -> None:
    buffer = make()
    fill(buffer, 4)
    buffer.register_sample_config("all", {"number": LatestSampler(), "arm": SequenceSampler(begin=0, end=3)})
    data, mask = buffer.sample("all", 10)
    assert (data["arm"]["joints"].shape, data["arm"]["joints"].dtype) == ((10, 3, 3), np.float32)
    assert (data["arm"]["closed"].shape, data["arm"]["closed"].dtype) == ((10, 3), np.bool_)
    assert mask["arm"].shape == (10, 3)
    assert [shape.name for shape in buffer.data_shapes] == ["number", "arm.joints", "arm.closed"]


@pytest.mark.parametrize(
    "ending",
    [
        lambda buffer, value: buffer.insert(step(value), end_of_trajectory=True),
        lambda buffer, value: buffer.insert(step(value, end_of_trajectory=True)),
        lambda buffer, value: buffer.insert(step(value, dones=np.bool_(True))),
        lambda buffer, value: buffer.batch_insert([step(value, end_of_trajectory=True)]),
        lambda buffer, value: (buffer.insert(step(value)), buffer.end_trajectory()),
    ],
    ids=["argument", "in the data", "dones", "batch", "end_trajectory"],
)
def test_a_trajectory_ends(ending: Any) -> None:
    """The values go on as if it did not."""
    buffer = make()
    for value in range(100, 112):
        if value in (103, 107):
            ending(buffer, value)
        else:
            buffer.insert(step(value, end_of_trajectory=False))
    assert drawn(buffer, "pair") == {100, 101, 102, 104, 105, 106, 108, 109, 110}


def test_end_of_trajectory_can_be_a_field() -> None:
    buffer = TrajectoryBuffer(50, [DataShape("number"), DataShape("end_of_trajectory", dtype="bool")], seed=0)
    buffer.insert({"number": 0})
    buffer.insert({"number": 1, "end_of_trajectory": True})
    buffer.insert({"number": 2}, end_of_trajectory=False)
    buffer.insert({"number": 3}, end_of_trajectory=True)
    assert buffer.columns["end_of_trajectory"][buffer.rows()].tolist() == [False, True, False, True]


def test_a_mask_of_zero_ends_a_trajectory_unless_it_is_said_that_it_goes_on() -> None:
    buffer = TrajectoryBuffer(50, [DataShape("number"), DataShape("masks")], seed=0)
    register(buffer)
    for value in range(100, 104):
        buffer.insert({"number": value, "masks": float(value != 101)})
    assert drawn(buffer, "pair") == {100, 102}
    for value in range(104, 108):
        buffer.insert({"number": value, "masks": float(value != 105), "end_of_trajectory": False})
    assert drawn(buffer, "pair") == {100, *range(102, 107)}


def test_a_trajectory_that_is_too_short_is_never_sampled() -> None:
    buffer = make(min_trajectory_length=3)
    fill(buffer, 2, 4, 1, 3)
    assert drawn(buffer) == {200, 201, 202, 203, 400, 401, 402}


def test_an_open_trajectory_is_sampled_once_it_is_long_enough() -> None:
    buffer = make()
    buffer.insert(step(100))
    with pytest.raises(BufferEmpty):
        buffer.sample("step", 1)
    buffer.insert(step(101))
    assert drawn(buffer) == {100, 101}


def test_overwriting_makes_a_trajectory_too_short() -> None:
    buffer = make(capacity=6, min_trajectory_length=3, chunk_rows=1)
    fill(buffer, 4, 3)
    assert drawn(buffer) == {101, 102, 103, 200, 201, 202}
    buffer.insert(step(300))
    assert drawn(buffer) == {200, 201, 202}  # of the first, two steps are held


def test_the_last_step_is_drawn_as_often_as_any_other() -> None:
    buffer = make()
    fill(buffer, 10)
    numbers = buffer.sample("step", 10_000)[0]["number"]
    assert 850 < (numbers == 109).sum() < 1150


def test_a_rate_limiter_counts_anchors() -> None:
    with make(samples_per_insert=2.0, min_rows=6, slack_samples=8, flow_timeout=0.05) as buffer:
        fill(buffer, 4)
        with pytest.raises(TimeoutError, match=r"cannot sample 2 rows: .* 2 more inserted rows, to begin with: 4 rows were"):
            buffer.sample("step", 2)
        fill(buffer, 2, 4)
        with pytest.raises(TimeoutError, match=r"cannot insert 1 rows: .* for the learner to sample 2 more rows: 10 rows were"):
            buffer.insert(step(0))
        buffer.sample("step", 2)
        buffer.insert(step(0))


def test_rows_without_a_config_are_not_sampled() -> None:
    buffer = make()
    fill(buffer, 3)
    with pytest.raises(TypeError, match="batch_size"):
        buffer.sample(4)  # type: ignore[arg-type,call-arg]


def test_attach_keeps_the_shortest_length_of_a_new_buffer(name: str) -> None:
    with make(name=name) as buffer:
        fill(buffer, 1, 3)
        with TrajectoryBuffer.attach(name, seed=0) as other:
            register(other)
            assert drawn(other) == {200, 201, 202}
        with TrajectoryBuffer.attach(name, min_trajectory_length=1) as other:
            register(other)
            assert drawn(other) == {100, 200, 201, 202}


def test_a_buffer_of_the_other_kind_is_refused(name: str) -> None:
    with make(name=name), pytest.raises(SegmentError, match="is a TrajectoryBuffer, not a ReplayBuffer"):
        ReplayBuffer.attach(name)


def test_reattach_finds_a_buffer_of_the_same_fields(name: str) -> None:
    with make(name=name) as buffer:
        fill(buffer, 3)
    with make(name=name, reattach=True) as found:
        assert drawn(found) == {100, 101, 102}
    with pytest.raises(SegmentError, match="wanted are"):
        TrajectoryBuffer(50, SHAPES[:1], name=name, reattach=True)


def test_a_saved_buffer_goes_on_as_it_would_have(tmp_path: Path) -> None:
    buffer = make()
    fill(buffer, 1, 5, 3)
    buffer.save(tmp_path / "trajectories")
    found = TrajectoryBuffer.from_file(tmp_path / "trajectories")
    register(found)
    assert drawn(found) == {*range(200, 205), *range(300, 303)}
    loaded = make()
    loaded.load(tmp_path / "trajectories")
    np.testing.assert_array_equal(buffer.sample("pair", 50)[0]["number"], loaded.sample("pair", 50)[0]["number"])
    with pytest.raises(SegmentError, match="is a TrajectoryBuffer, not a ReplayBuffer"):
        ReplayBuffer.from_file(tmp_path / "trajectories")


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:0", "auto://127.0.0.1:0"])
def test_trajectories_are_uploaded(address: str) -> None:
    buffer, queue = make(), QueuedDataStore(100)
    config = TrainerConfig(port_number=0)
    with TrainerServer(config, host=address) as server:
        server.register_data_store("actor", buffer)
        server.start(threaded=True)
        with TrainerClient("actor", server.address, config, queue, timeout_ms=20_000) as client:
            for value in range(100, 106):
                queue.insert(step(value, end_of_trajectory=value == 102))
            assert client.update().sent == 6
        assert drawn(buffer, "pair") == {100, 101, 103, 104}
        with TrajectoryBuffer.connect(f"{server.address}/actor", attach=False, seed=0) as remote:
            register(remote)
            assert drawn(remote, "pair") == {100, 101, 103, 104}


@pytest.mark.parametrize(
    ("shapes", "options", "message"),
    [
        ([], {}, "at least one field"),
        ([DataShape("a"), DataShape("a")], {}, "each once"),
        ([DataShape("about")], {}, "about"),
        ([DataShape("a")], {"n_stack": 2}, "n_stack is 2"),
        ([DataShape("a")], {"min_trajectory_length": 0}, "min_trajectory_length must be at least 1 step, got 0"),
        ([DataShape("a")], {"capacity": 0}, "capacity must be at least 1 item, got 0"),
    ],
)
def test_arguments_out_of_range(shapes: list[DataShape], options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrajectoryBuffer(**{"capacity": 10, "data_shapes": shapes, **options})  # type: ignore[arg-type]


def test_dtypes_are_what_numpy_takes() -> None:
    buffer = TrajectoryBuffer(10, [DataShape("a", (2,), np.float64), DataShape("b", (), np.dtype("int8"))])  # type: ignore[arg-type]
    assert [shape.dtype for shape in buffer.data_shapes] == ["float64", "int8"]
    with pytest.raises(TypeError, match="Python objects"):
        TrajectoryBuffer(10, [DataShape("a", (), "object")])


# The default buffer


def default_step(value: float, **more: Any) -> dict[str, Any]:
    seen, then = np.full(3, value, np.float32), np.full(3, value + 1, np.float32)
    return {"observations": seen, "next_observations": then, "actions": seen, "rewards": value, "masks": 1.0, **more}


def test_the_default_buffer_draws_every_step_with_what_followed_it() -> None:
    buffer = make_default_trajectory_buffer(BOX, BOX, 100, seed=0)
    for value in range(12):
        buffer.insert(default_step(value), end_of_trajectory=value % 4 == 3)
    data, mask = buffer.sample("training", 3000)
    fields = {"observations", "next_observations", "actions", "rewards", "masks", "end_of_trajectory"}
    assert set(data) == set(mask) == fields
    assert set(data["rewards"].tolist()) == set(range(12))
    np.testing.assert_array_equal(data["next_observations"], data["observations"] + 1)
    np.testing.assert_array_equal(data["end_of_trajectory"], data["rewards"] % 4 == 3)
    assert all(part.all() for part in mask.values())


def test_the_default_buffer_stores_each_observation_once() -> None:
    image = spaces.Box(0, 255, (64, 64), np.uint8)
    buffer = make_default_trajectory_buffer(spaces.Dict({"arm": BOX, "eye": image}), BOX, 1000)
    assert "next_observations" not in buffer.columns
    assert set(buffer.columns["observations"]) == {"arm", "eye"}
    assert len(buffer.columns["observations"]["eye"]) < 1500


def test_a_next_observation_may_be_left_out_where_a_trajectory_goes_on() -> None:
    buffer = make_default_trajectory_buffer(BOX, BOX, 100, seed=0)
    for value in range(3):
        item = default_step(value)
        del item["next_observations"]
        buffer.insert(item)
    buffer.insert(default_step(3), end_of_trajectory=True)
    data, _ = buffer.sample("training", 500)
    np.testing.assert_array_equal(data["next_observations"], data["observations"] + 1)
    assert set(data["rewards"].tolist()) == {0, 1, 2, 3}
