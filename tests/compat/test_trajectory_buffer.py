"""A trajectory buffer as edgeml's and agentlace's own tests use it: the same calls in the same order, and what they read."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from edgeml_ipc.compat.data.jaxrl_data_store import TrajectoryBufferDataStore
from edgeml_ipc.compat.data.replay_buffer import EfficientReplayBuffer, ReplayBuffer
from edgeml_ipc.compat.data.sampler import FutureSampler, LatestSampler, SequenceSampler
from edgeml_ipc.compat.data.trajectory_buffer import DataShape, Trajectory, TrajectoryBuffer
from edgeml_ipc.data import trajectory_buffer as plain
from edgeml_ipc.errors import BufferEmpty, SegmentError

SHAPES = [DataShape(name="data"), DataShape(name="index", dtype="int32"), DataShape(name="trajectory_id", dtype="int32")]
PADDED: tuple[dict[str, Any], tuple[int, int]] = ({"index": LatestSampler(), "trajectory_id": LatestSampler()}, (-1, 2))


@pytest.fixture
def store() -> TrajectoryBufferDataStore:
    store = TrajectoryBufferDataStore(capacity=100, data_shapes=SHAPES)
    store.register_sample_config("default", {name: LatestSampler() for name in ("data", "index", "trajectory_id")})
    return store


def insert_trajectory(store: TrajectoryBuffer, length: int, number: int, *, end: bool = True) -> None:
    for index in range(length):
        store.insert({"data": random.random(), "index": index, "trajectory_id": number}, False)
    if end:
        store.end_trajectory()


def all_steps(store: TrajectoryBuffer) -> Any:
    return jnp.arange(store._sample_begin_idx, store._sample_end_idx)


def check_metadata(store: TrajectoryBuffer) -> None:
    size, metadata = store.capacity, store.metadata
    assert store._sample_end_idx > store._sample_begin_idx
    for i in range(store._sample_begin_idx, store._sample_end_idx):
        begin = max(metadata["ep_begin"][i % size], store._sample_begin_idx)
        end = metadata["ep_end"][i % size]
        end = store._sample_end_idx if end == -1 else end
        assert begin <= i < end
        assert metadata["seq_id"][i % size] == i
        assert metadata["trajectory_begin_flag"][i % size] == (i == metadata["ep_begin"][i % size])
        ids = metadata["trajectory_id"]
        assert (ids[i % size] == ids[(i + 1) % size]) == (i + 1 != end)
        assert store.dataset["index"][i % size] == i - metadata["ep_begin"][i % size]


def test_insert_and_sample_by_number(store: TrajectoryBufferDataStore) -> None:
    for number, length in enumerate((10, 15, 20)):
        insert_trajectory(store, length, number)
    check_metadata(store)
    assert store.metadata["trajectory_id"][[0, 9, 10, 24, 25, 44, 45]].tolist() == [0, 0, 1, 1, 2, 2, -1]
    assert store.metadata["ep_end"][[0, 9, 10, 24, 25, 44, 45]].tolist() == [10, 10, 25, 25, 45, 45, -1]
    samples, valid = store.sample("default", 64, force_indices=jnp.arange(45))
    assert samples["data"].shape[0] == 45
    np.testing.assert_array_equal(samples["data"], store.dataset["data"][:45])
    assert valid["data"].all()


def test_insert_past_the_end_of_the_ring(store: TrajectoryBufferDataStore) -> None:
    for number, length in enumerate((10, 15, 20, 75)):
        insert_trajectory(store, length, number)
    check_metadata(store)
    assert (store._sample_begin_idx, store._sample_end_idx, store._insert_idx, len(store)) == (20, 120, 120, 100)
    assert store._trajectory == Trajectory(begin_idx=120, id=4, min_length=2)


def test_sequences(store: TrajectoryBufferDataStore) -> None:
    store.register_sample_config(
        "sequence",
        {
            "index_prev": SequenceSampler(begin=-3, end=1, source="index"),
            "index_future": SequenceSampler(begin=0, end=4, source="index"),
            "index": LatestSampler(),
            "trajectory_id": LatestSampler(),
        },
    )
    for number, length in enumerate((10, 15, 20, 75)):
        insert_trajectory(store, length, number)
    data, valid = store.sample("sequence", 100, force_indices=all_steps(store))
    assert (data["trajectory_id"] != 0).all()
    for number, oldest, length in ((1, 10, 15), (2, 0, 20), (3, 0, 75)):
        mine = data["trajectory_id"] == number
        before = data["index"][mine, None] + np.arange(-3, 1)
        after = data["index"][mine, None] + np.arange(4)
        np.testing.assert_array_equal(valid["index_prev"][mine], before >= oldest)
        np.testing.assert_array_equal(valid["index_future"][mine], after < length)
        assert (data["index_prev"][mine][before < oldest] == 0).all()


def test_short_trajectories_that_are_long_enough(store: TrajectoryBufferDataStore) -> None:
    store._trajectory.min_length = 3
    store.register_sample_config("need_padding", {"index": LatestSampler()}, (-1, 2))
    for number in range(3):
        insert_trajectory(store, 40, number)
    data, valid = store.sample("need_padding", 100, force_indices=all_steps(store))
    assert valid["index"].all()
    assert set(data["index"].tolist()) == set(range(40))


def test_a_trajectory_that_is_too_short_is_taken_back(store: TrajectoryBufferDataStore) -> None:
    store._trajectory.min_length = 3
    store.register_sample_config("need_padding", *PADDED)
    insert_trajectory(store, 10, 0)
    insert_trajectory(store, 2, 1)
    assert (store._insert_idx, len(store), store._trajectory.id) == (10, 10, 1)
    assert (store.sample("need_padding", 100)[0]["trajectory_id"] == 0).all()
    insert_trajectory(store, 10, 2)
    data, valid = store.sample("need_padding", 100, force_indices=all_steps(store))
    assert data["trajectory_id"].shape[0] == 20
    assert valid["index"].all()
    assert set(data["trajectory_id"].tolist()) == {0, 2}
    assert store.metadata["trajectory_id"][:20].tolist() == [0] * 10 + [1] * 10
    check_metadata(store)


@pytest.mark.parametrize("late", [False, True], ids=["set first", "set last"])
def test_overwriting_makes_a_trajectory_too_short(store: TrajectoryBufferDataStore, late: bool) -> None:
    store._trajectory.min_length = 2 if late else 3
    store.register_sample_config("one", PADDED[0])
    for number in range(10):
        insert_trajectory(store, 10, number)
    insert_trajectory(store, 8, 10)
    store._trajectory.min_length = 3
    assert (store._sample_begin_idx, store._sample_end_idx) == (10, 108)
    data, _ = store.sample("one", 100, force_indices=all_steps(store))
    assert (data["trajectory_id"] != 0).all()
    assert set(store.sample("one", 5000)[0]["trajectory_id"].tolist()) == set(range(1, 11))


def test_a_trajectory_in_progress(store: TrajectoryBufferDataStore) -> None:
    store._trajectory.min_length = 3
    store.register_sample_config("need_padding", *PADDED)
    insert_trajectory(store, 10, 0)
    insert_trajectory(store, 10, 1, end=False)
    assert (store.sample("need_padding", 100)[0]["trajectory_id"] == 1).any()
    assert store.metadata["ep_end"][[9, 10, 19]].tolist() == [10, -1, -1]
    check_metadata(store)


def test_a_trajectory_in_progress_that_is_too_short(store: TrajectoryBufferDataStore) -> None:
    store._trajectory.min_length = 3
    store.register_sample_config("need_padding", *PADDED)
    insert_trajectory(store, 10, 0)
    insert_trajectory(store, 1, 1, end=False)
    assert (store._insert_idx, store._sample_end_idx, len(store)) == (11, 10, 11)
    data, _ = store.sample("need_padding", 100, force_indices=all_steps(store))
    assert (data["trajectory_id"] == 0).all()
    insert_trajectory(store, 2, 1, end=False)
    assert (store._insert_idx, store._sample_end_idx) == (13, 13)
    assert store.dataset["index"][10:13].tolist() == [0, 0, 1]


def test_save_and_load(store: TrajectoryBufferDataStore, tmp_path: Path) -> None:
    for number in range(10):
        insert_trajectory(store, 5, number)
    for number in range(8):
        insert_trajectory(store, 8, number)
    assert (store._sample_begin_idx, store._sample_end_idx) == (15, 5 * 10 + 8 * 8)
    store.save(tmp_path / "test.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["test.npz"]
    found = TrajectoryBufferDataStore.load(tmp_path / "test.npz")
    assert found._insert_idx == store._insert_idx
    assert (found._sample_begin_idx, found._sample_end_idx) == (15, 114)
    assert found.capacity == store.capacity
    assert found._trajectory == store._trajectory
    for name in ("data", "index", "trajectory_id"):
        np.testing.assert_array_equal(found.dataset[name], store.dataset[name])
    for name, values in store.metadata.items():
        np.testing.assert_array_equal(found.metadata[name], values)
    check_metadata(found)
    found.register_sample_config("one", PADDED[0])
    assert len(set(found.sample("one", 3000)[0]["index"].tolist())) == 8  # not one row for ever
    insert_trajectory(found, 30, 99)  # it goes on
    assert (found._insert_idx, found._trajectory.id) == (144, 19)
    check_metadata(found)


def test_a_file_lies_as_agentlaces_does(store: TrajectoryBufferDataStore, tmp_path: Path) -> None:
    insert_trajectory(store, 4, 7)
    insert_trajectory(store, 3, 8, end=False)
    store.save(tmp_path / "test")  # the name's end is appended
    with np.load(tmp_path / "test.npz") as file:
        assert sorted(file) == sorted(
            [
                *[f"data/{shape.name}" for shape in SHAPES],
                *[f"metadata/{name}" for name in ("ep_begin", "ep_end", "seq_id", "trajectory_begin_flag", "trajectory_id")],
                *["traj/begin_idx", "traj/id", "traj/min_length", "size", "capacity", "_insert_idx"],
            ]
        )
        assert (file["traj/begin_idx"], file["traj/id"], file["size"], file["_insert_idx"]) == (4, 1, 7, 7)
        assert file["metadata/ep_begin"].tolist() == [0] * 4 + [4] * 3


def test_serialized_and_deserialize(store: TrajectoryBufferDataStore) -> None:
    for number in range(10):
        insert_trajectory(store, 5, number)
    twin = TrajectoryBufferDataStore.deserialize(store.serialized())
    assert type(twin) is TrajectoryBufferDataStore
    assert len(twin) == len(store) == 50
    np.testing.assert_array_equal(twin.dataset["data"], store.dataset["data"])


@pytest.mark.parametrize("name", ["missing.npz", "other.npz", "empty.npz"])
def test_files_that_are_none(name: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", rewards=np.zeros(3))
    (tmp_path / "empty.npz").write_bytes(b"")
    with pytest.raises(SegmentError, match=name):
        TrajectoryBuffer.load(tmp_path / name)


def test_a_plain_buffer_loads_a_file_without_masks(store: TrajectoryBufferDataStore, tmp_path: Path) -> None:
    for number in range(3):
        insert_trajectory(store, 4, number)
    store.save(tmp_path / "test.npz")
    buffer = plain.TrajectoryBuffer(100, SHAPES, seed=0)
    buffer.load(tmp_path / "test.npz")
    buffer.register_sample_config("pairs", {"index": SequenceSampler(begin=0, end=2)}, (0, 2))
    data, _ = buffer.sample("pairs", 1000)
    assert set(map(tuple, data["index"].tolist())) == {(0, 1), (1, 2), (2, 3)}


# --- what else programs use -------------------------------------------------------------------------------------------------


def test_a_step_that_does_not_fit_is_refused_at_once(store: TrajectoryBufferDataStore) -> None:
    with pytest.raises(ValueError, match="index"):
        store.insert({"data": 1.0, "trajectory_id": 0})
    assert (store._insert_idx, len(store)) == (0, 0)


def test_a_step_is_copied_when_it_is_inserted() -> None:
    store = TrajectoryBuffer(10, [DataShape("x", (2,))])
    reused = np.zeros(2, np.float32)
    for value in range(3):
        reused[:] = value
        store.insert({"x": reused})
    assert store.dataset["x"][:3, 0].tolist() == [0, 1, 2]


def test_ends_are_told_in_every_way() -> None:
    store = TrajectoryBuffer(100, [DataShape("x"), DataShape("masks")])
    for flags in ({}, {}, {"end_of_trajectory": True}, {}, {"dones": True}, {}, {"masks": 0.0}, {}, {}):
        store.insert({"x": 1.0, "masks": 1.0, **flags})
    assert store.metadata["ep_end"][:9].tolist() == [3, 3, 3, 5, 5, 7, 7, -1, -1]
    store.batch_insert({"x": np.zeros(3), "masks": np.array([1, 0, 1])})
    assert store.metadata["ep_end"][:11].tolist() == [3, 3, 3, 5, 5, 7, 7, 11, 11, 11, 11]
    assert store._insert_idx == 12


def test_an_empty_buffer_is_an_error(store: TrajectoryBufferDataStore) -> None:
    with pytest.raises(BufferEmpty):
        store.sample("default", 4)
    assert (store.dataset["data"] == 0).all()
    assert (store.metadata["trajectory_id"] == -1).all()
    with pytest.raises(ValueError, match="nothing"):
        store.sample("nothing", 4)


def test_numbers_that_are_not_held_are_refused(store: TrajectoryBufferDataStore) -> None:
    insert_trajectory(store, 10, 0)
    with pytest.raises(ValueError, match="the step 10; held are 0 to 9"):
        store.sample("default", 2, force_indices=jnp.array([3, 10]))


def test_a_future_comes_with_its_offset(store: TrajectoryBufferDataStore) -> None:
    store.register_sample_config("goals", {"goal": FutureSampler(source="index"), "index": LatestSampler()})
    insert_trajectory(store, 10, 0)
    data, valid = store.sample("goals", 200)
    np.testing.assert_array_equal(data["goal"]["data"], data["index"] + data["goal"]["offset"])
    assert set(data) == {"goal", "index"}
    assert valid["goal"]["data"].all()
    assert valid["goal"]["offset"].all()


def test_samples_as_jax_arrays() -> None:
    store = TrajectoryBuffer(10, [DataShape("x")], use_jax=True)
    store.register_sample_config(
        "one", {"x": LatestSampler()}, transform=lambda data, mask: ({**data, "y": data["x"] + 1}, mask)
    )
    store.batch_insert({"x": np.arange(4.0)})
    data, mask = store.sample("one", 8)
    assert isinstance(data["x"], jnp.ndarray)
    assert isinstance(mask["x"], jnp.ndarray)
    np.testing.assert_array_equal(data["y"], data["x"] + 1)


def test_observations_that_are_stored_once_are_shown_row_by_row() -> None:
    shapes = [DataShape("observations", (2,)), DataShape("next_observations", (2,)), DataShape("rewards")]
    store = TrajectoryBuffer(20, shapes)
    for value in range(50):
        seen, then = np.full(2, value), np.full(2, value + 1)
        store.insert({"observations": seen, "next_observations": then, "rewards": value}, value % 5 == 4)
    for number in store.metadata["seq_id"][store.metadata["seq_id"] >= 0]:
        assert store.dataset["observations"][number % 20].tolist() == [number, number]
        assert store.dataset["next_observations"][number % 20].tolist() == [number + 1, number + 1]


def test_the_same_seed_draws_the_same_and_is_0() -> None:
    drawn = []
    for _ in range(2):
        store = TrajectoryBuffer(100, [DataShape("x")])
        store.register_sample_config("one", {"x": LatestSampler()})
        store.batch_insert({"x": np.arange(50.0)})
        drawn.append(store.sample("one", 20)[0]["x"].tolist())
    assert drawn[0] == drawn[1]


def test_its_early_names() -> None:
    assert ReplayBuffer is EfficientReplayBuffer is TrajectoryBuffer
    assert Trajectory.from_dict(Trajectory(3, 1, 2).to_dict()) == Trajectory(3, 1, 2)
    assert not Trajectory(3, 1, 2).valid(4)
    assert Trajectory(3, 1, 2).valid(5)


def test_another_process_can_attach(tmp_path: Path) -> None:
    name = f"test-compat-{tmp_path.name}-{random.randrange(10**9)}"
    with TrajectoryBufferDataStore(100, SHAPES, name=name) as store:
        try:
            insert_trajectory(store, 10, 0)
            with TrajectoryBufferDataStore.attach(name) as other:
                assert other._insert_idx == 10
                insert_trajectory(other, 10, 1)
                insert_trajectory(other, 1, 2)
            assert store._insert_idx == 20
        finally:
            store.unlink()
