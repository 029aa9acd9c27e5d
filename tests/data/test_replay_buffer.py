"""Tests of edgeml_ipc.data.replay_buffer."""

import sys
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from scipy import stats

from edgeml_ipc.data import BufferEmpty, DataShape, DataStoreBase, ReplayBuffer
from edgeml_ipc.testing.stores import StoreConformance

BOX = spaces.Box(-1, 1, (3,), np.float32)
ACTIONS = spaces.Box(-1, 1, (2,), np.float32)
DICT = spaces.Dict({"image": spaces.Box(0, 255, (4, 4, 1), np.uint8), "arm": spaces.Dict({"joints": BOX})})


def transition(value: float, **changes: Any) -> dict[str, Any]:
    step = {
        "observations": np.full(3, value, np.float32),
        "actions": np.full(2, value, np.float32),
        "rewards": value,
        "masks": 1.0,
        "dones": False,
        "next_observations": np.full(3, value + 1, np.float32),
    }
    return {key: item for key, item in {**step, **changes}.items() if item is not None}


def image_transition(value: int) -> dict[str, Any]:
    observation = {"image": np.full((4, 4, 1), value, np.uint8), "arm": {"joints": np.full(3, value, np.float32)}}
    return transition(value, observations=observation, next_observations=observation)


def make(capacity: int = 8, count: int = 0, **options: Any) -> ReplayBuffer:
    buffer = ReplayBuffer(BOX, ACTIONS, capacity, **options)
    buffer.batch_insert([transition(value) for value in range(count)])
    return buffer


class TestReplayBuffer(StoreConformance):
    def make_store(self, capacity: int) -> DataStoreBase:
        return ReplayBuffer(BOX, ACTIONS, capacity)

    def make_item(self, value: int) -> Any:
        return transition(value)

    def value_of(self, item: Any) -> int:
        assert item["observations"].shape == (3,)
        assert (item["observations"] == item["rewards"]).all()
        assert (item["next_observations"] == item["rewards"] + 1).all()
        return int(item["rewards"])


class TestDictReplayBuffer(StoreConformance):
    def make_store(self, capacity: int) -> DataStoreBase:
        return ReplayBuffer(DICT, spaces.Discrete(5), capacity)

    def make_item(self, value: int) -> Any:
        return {**image_transition(value % 256), "actions": value % 5, "rewards": value}

    def value_of(self, item: Any) -> int:
        value = int(item["rewards"])
        assert (item["observations"]["image"] == value % 256).all()
        assert (item["next_observations"]["arm"]["joints"] == value % 256).all()
        assert item["actions"] == value % 5
        return value


def test_sample_has_the_shapes_and_dtypes_of_the_spaces() -> None:
    buffer = ReplayBuffer(DICT, spaces.Discrete(5), 10)
    buffer.insert({**image_transition(7), "actions": 4})
    batch = buffer.sample(6)
    assert batch["observations"]["image"].shape == (6, 4, 4, 1)
    assert batch["observations"]["image"].dtype == np.uint8
    assert batch["next_observations"]["arm"]["joints"].dtype == np.float32
    assert (batch["actions"].shape, batch["actions"].dtype) == ((6,), np.int64)
    assert (batch["rewards"].dtype, batch["masks"].dtype, batch["dones"].dtype) == (np.float32, np.float32, np.bool_)


def test_sample_is_a_copy() -> None:
    buffer = make(count=3)
    batch = buffer.sample(5)
    batch["rewards"][:] = 99
    assert buffer.columns["rewards"].max() == 2
    assert buffer.get_latest_data(1)[0]["observations"].flags.writeable


def test_insert_copies() -> None:
    buffer = make()
    step = transition(1)
    buffer.insert(step)
    step["observations"][:] = 99
    assert (buffer.sample(1)["observations"] == 1).all()
    assert set(step) == set(transition(1))


def test_sampling_is_uniform_after_wrapping() -> None:
    buffer = make(capacity=50, count=73, seed=1)
    rewards = buffer.sample(50_000)["rewards"].astype(int)
    assert rewards.min() == 23
    counts = np.bincount(rewards, minlength=73)[23:]
    assert stats.chisquare(counts).pvalue > 0.01


def test_sampling_depends_on_the_seed_and_not_on_the_layout() -> None:
    once, again, other = make(8, 20, seed=5), make(8, 0, seed=5), make(8, 20, seed=6)
    again.batch_insert([transition(value) for value in range(12, 20)])
    batch = once.sample(100)["rewards"]
    np.testing.assert_array_equal(batch, again.sample(100)["rewards"])
    assert not np.array_equal(batch, other.sample(100)["rewards"])
    assert not np.array_equal(batch, once.sample(100)["rewards"])


def test_sampling_an_empty_buffer_is_an_error() -> None:
    with pytest.raises(BufferEmpty, match="cannot sample 4 rows: nothing was inserted yet"):
        make().sample(4)


def test_sampling_no_rows_is_an_error() -> None:
    with pytest.raises(ValueError, match="batch_size must be at least 1 row, got 0"):
        make(count=1).sample(0)


def test_stats_count() -> None:
    buffer = make(capacity=8, count=20)
    buffer.sample(30)
    assert buffer.stats() == {
        "inserted": 20,
        "evicted": 12,
        "sampled": 30,
        "redrawn": 0,
        "occupancy": 8,
        "capacity": 8,
        "writers": 1,
    }


def test_columns_are_read_only_views() -> None:
    buffer = make(capacity=4, count=2)
    rewards = buffer.columns["rewards"]
    buffer.batch_insert([transition(value) for value in range(2, 5)])
    assert rewards.tolist() == [4, 1, 2, 3]
    with pytest.raises(ValueError, match="read-only"):
        rewards[0] = 1


def test_batch_insert_takes_stacked_arrays() -> None:
    buffer, steps = make(capacity=4), [transition(value) for value in range(6)]
    stacked = {key: np.stack([step[key] for step in steps]) for key in steps[0]}
    buffer.batch_insert(stacked)
    assert [step["rewards"] for step in buffer.get_latest_data(-1)] == [2, 3, 4, 5]
    assert (buffer.columns["observations"][:, 0] == buffer.columns["rewards"]).all()


@pytest.mark.parametrize(
    ("masks", "given", "argument", "expected"),
    [
        (1.0, {}, False, False),
        (0.0, {}, False, True),
        (1.0, {"dones": True}, False, True),
        (0.0, {"dones": False}, False, False),
        (1.0, {"end_of_trajectory": True}, False, True),
        (1.0, {"dones": False}, True, True),
        (1.0, {}, True, True),
    ],
)
def test_dones_are_given_or_follow_the_mask(masks: float, given: dict[str, bool], argument: bool, expected: bool) -> None:
    buffer = make()
    buffer.insert({**transition(0, masks=masks, dones=None), **given}, end_of_trajectory=argument)
    assert bool(buffer.columns["dones"][0]) is expected


def test_extra_columns_are_stored_and_sampled() -> None:
    buffer = ReplayBuffer(BOX, ACTIONS, 4, extra_columns=[DataShape("origin", (2,), "int64"), DataShape("log.loss")])
    buffer.insert({**transition(0), "origin": [3, 2**40], "log": {"loss": 0.5}})
    batch = buffer.sample(1)
    assert batch["origin"].tolist() == [[3, 2**40]]
    assert batch["log"]["loss"].tolist() == [0.5]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"rewards": None}, ValueError, r"'rewards' is missing; got the keys \['actions'"),
        ({"next_observations": None}, ValueError, "'next_observations' is missing"),
        ({"bonus": 1}, ValueError, "unknown field 'bonus'.*extra_columns"),
        ({"observations": np.zeros(4, np.float32)}, ValueError, r"'observations' has shape \(4,\); \(3,\) is required"),
        ({"rewards": [1.0]}, ValueError, r"'rewards' has shape \(1,\); \(\) is required"),
        ({"dones": [True]}, ValueError, r"'dones' has shape \(1,\); \(\) is required"),
        ({"actions": [[1], [1, 2]]}, ValueError, r"'actions' is ragged; an array of shape \(2,\)"),
        ({"actions": {"x": 1}}, ValueError, "unknown field 'actions.x'"),
        ({"actions": np.zeros(2, complex)}, TypeError, "'actions' has dtype complex128.*float32"),
        ({"actions": ["a", "b"]}, TypeError, "'actions' has dtype <U1.*float32"),
        ({"masks": object()}, TypeError, "'masks' has dtype object"),
    ],
)
def test_bad_transitions_are_refused_whole(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    buffer = make(count=2)
    with pytest.raises(error, match=message):
        buffer.insert(transition(5, **changes))
    with pytest.raises(error, match=message):
        buffer.batch_insert([transition(4), transition(5, **changes)])
    assert buffer.latest_data_id() == 1
    assert buffer.columns["rewards"].tolist() == [0, 1] + 6 * [0]


def test_nested_observations_are_checked_by_path() -> None:
    buffer = ReplayBuffer(DICT, ACTIONS, 4)
    step = image_transition(3)
    with pytest.raises(ValueError, match=r"'observations.image' has values from 300 to 300, which do not fit uint8"):
        buffer.insert({**step, "observations": {**step["observations"], "image": np.full((4, 4, 1), 300, np.uint16)}})
    with pytest.raises(ValueError, match=r"'observations.arm' must be a dict with the key 'joints', got list"):
        buffer.insert({**step, "observations": {**step["observations"], "arm": [1, 2, 3]}})
    with pytest.raises(ValueError, match=r"'observations.image' is missing"):
        buffer.insert({**step, "observations": {"arm": step["observations"]["arm"]}})


def test_a_stacked_batch_of_unequal_lengths_is_refused() -> None:
    buffer = make()
    stacked = {key: np.stack([transition(0)[key]] * 3) for key in transition(0)}
    with pytest.raises(ValueError, match=r"'actions' has shape \(2, 2\); \(3, 2\) is required"):
        buffer.batch_insert({**stacked, "actions": stacked["actions"][:2]})
    assert len(buffer) == 0


def test_a_transition_must_be_a_dict() -> None:
    with pytest.raises(TypeError, match="a transition must be a dict, got list"):
        make().insert([1, 2])  # type: ignore[arg-type]


def test_a_space_without_shape_is_refused() -> None:
    with pytest.raises(TypeError, match="the space of 'actions' must be a Dict, or have a shape and a dtype, got Text"):
        ReplayBuffer(BOX, spaces.Text(3), 4)


def test_two_fields_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="field names must differ"):
        make(extra_columns=[DataShape("rewards")])


@pytest.fixture
def eager_switching() -> Iterator[None]:
    """Let Python change threads at nearly every chance."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("eager_switching")
def test_rows_are_never_torn_while_threads_insert_and_sample() -> None:
    """Each row's parts hold one number; a batch that shows two in one row was torn. Small, so that it wraps all the time."""
    buffer = make(capacity=32, count=32)
    stop = threading.Event()
    inserted = [0] * 3

    def insert(worker: int) -> None:
        while not stop.is_set():
            value = worker * 1000 + inserted[worker] % 1000
            if inserted[worker] % 2:
                buffer.insert(transition(value))
                inserted[worker] += 1
            else:
                buffer.batch_insert([transition(value)] * 5)
                inserted[worker] += 5

    threads = [threading.Thread(target=insert, args=(worker,)) for worker in range(3)]
    for thread in threads:
        thread.start()
    torn = 0
    for _ in range(1500):
        batch = buffer.sample(64)
        rewards = batch["rewards"][:, None]
        same = [batch["observations"] == rewards, batch["actions"] == rewards, batch["next_observations"] == rewards + 1]
        torn += sum(int((~part).sum()) for part in same)
    stop.set()
    for thread in threads:
        thread.join()
    assert torn == 0
    assert buffer.stats()["inserted"] == 32 + sum(inserted)
