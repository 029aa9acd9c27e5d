"""What edgeml and agentlace get wrong in their data path, each as what their users would see. Here it is right.

The eleventh, that their RLDS import pairs an observation with the next step's action and reward, is in tests/datasets.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium.spaces import Box

from edgeml_ipc import BufferEmpty
from edgeml_ipc.compat import DataStoreBase, QueuedDataStore, TrainerClient, TrainerConfig, TrainerServer
from edgeml_ipc.compat.data.jaxrl_data_store import TrajectoryBufferDataStore, make_default_trajectory_buffer
from edgeml_ipc.compat.data.sampler import LatestSampler, SequenceSampler
from edgeml_ipc.compat.data.trajectory_buffer import DataShape

BOX = Box(-np.inf, np.inf, (2,))
SHAPES = [DataShape("who"), DataShape("step")]
WINDOW = {"who": SequenceSampler(begin=0, end=5), "step": SequenceSampler(begin=0, end=5)}


def transition(value: float, **more: Any) -> dict[str, Any]:
    seen, then = np.full(2, value, np.float32), np.full(2, value + 1, np.float32)
    return {"observations": seen, "next_observations": then, "actions": seen, "rewards": value, "masks": 1.0, **more}


def fill(store: TrajectoryBufferDataStore, who: int, length: int) -> None:
    for step in range(length):
        store.insert({"who": who, "step": step}, step == length - 1)


@pytest.fixture
def server() -> Iterator[TrainerServer]:
    with TrainerServer(TrainerConfig(port_number=0)) as server:
        server.start(threaded=True)
        yield server


def client(server: TrainerServer, name: str, queue: DataStoreBase) -> TrainerClient:
    config = TrainerConfig(port_number=server.port)
    return TrainerClient(name, "localhost", config, data_stores={"steps": queue}, timeout_ms=20_000)


def test_1_the_terminal_step_is_sampled_by_the_default_training_config() -> None:
    buffer = make_default_trajectory_buffer(BOX, BOX, 100)
    for value in range(10):
        buffer.insert(transition(value, masks=float(value != 9), end_of_trajectory=value == 9))
    data, _ = buffer.sample("training", 10_000)
    terminal = data["masks"] == 0
    assert 850 < terminal.sum() < 1150
    assert set(data["rewards"][terminal].tolist()) == {9.0}
    np.testing.assert_array_equal(data["next_observations"], data["observations"] + 1)


def test_2_the_last_window_of_a_trajectory_is_as_likely_as_any_other() -> None:
    store = TrajectoryBufferDataStore(100, SHAPES, min_trajectory_length=5)
    store.register_sample_config("windows", WINDOW, (0, 5))
    fill(store, 0, 10)
    first = store.sample("windows", 12_000)[0]["step"][:, 0]
    counts = Counter(first.astype(int).tolist())
    assert sorted(counts) == [0, 1, 2, 3, 4, 5]
    assert 1750 < counts[5] < 2250


def test_3_two_actors_in_one_buffer_are_never_in_one_window(server: TrainerServer) -> None:
    store = TrajectoryBufferDataStore(2000, SHAPES, min_trajectory_length=5)
    store.register_sample_config("windows", WINDOW, (0, 5))
    server.register_data_store("steps", store)
    queues = [QueuedDataStore(100) for _ in range(2)]
    clients = [client(server, f"actor{who}", queue) for who, queue in enumerate(queues)]
    for step in range(60):  # their uploads alternate
        for who, queue in enumerate(queues):
            queue.insert({"who": who, "step": step})
            assert clients[who].update()
    for one in clients:
        one.stop()
    data, mask = store.sample("windows", 10_000)
    assert mask["step"].all()
    assert (data["who"] == data["who"][:, :1]).all()
    assert (np.diff(data["step"], axis=1) == 1).all()
    assert set(data["who"][:, 0].tolist()) == {0, 1}


def test_4_after_loading_all_rows_are_sampled(tmp_path: Path) -> None:
    store = TrajectoryBufferDataStore(100, SHAPES)
    for who in range(10):
        fill(store, who, 10)
    store.save(tmp_path / "saved.npz")
    found = TrajectoryBufferDataStore.load(tmp_path / "saved.npz")
    found.register_sample_config("one", {"who": LatestSampler(), "step": LatestSampler()})
    data, _ = found.sample("one", 5000)
    assert len(set(zip(data["who"].tolist(), data["step"].tolist(), strict=True))) == 100


def test_5_an_empty_buffer_is_an_error_and_gives_no_zeros() -> None:
    buffer = make_default_trajectory_buffer(BOX, BOX, 100)
    with pytest.raises(BufferEmpty):
        buffer.sample("training", 4)


def test_6_padding_is_zeros_and_masked_and_no_other_trajectorys_row() -> None:
    store = TrajectoryBufferDataStore(100, SHAPES)
    store.register_sample_config("ahead", WINDOW)
    for who in (7, 8, 9):
        fill(store, who, 6)
    data, mask = store.sample("ahead", 5000)
    assert 0 < mask["who"].mean() < 1
    assert (data["who"][~mask["who"]] == 0).all()
    inside = np.where(mask["who"], data["who"], data["who"][:, :1])
    assert (inside == data["who"][:, :1]).all()


def test_7_end_of_trajectory_in_the_data_ends_the_trajectory() -> None:
    buffer = make_default_trajectory_buffer(BOX, BOX, 100)
    for value in range(10):
        item = transition(value, end_of_trajectory=value == 4)
        buffer.insert(item)
        assert item["end_of_trajectory"] is (value == 4)  # and the caller's dict is as it was
    buffer.register_sample_config("pairs", {"rewards": SequenceSampler(begin=0, end=2)}, (0, 2))
    pairs = buffer.sample("pairs", 2000)[0]["rewards"]
    assert set(pairs[:, 0].tolist()) == {0, 1, 2, 3, 5, 6, 7, 8}
    assert buffer.metadata["ep_end"][:10].tolist() == [5] * 5 + [-1] * 5


def test_8_every_buffer_tells_its_latest_id() -> None:
    store = TrajectoryBufferDataStore(100, SHAPES)
    assert store.latest_data_id() == -1
    fill(store, 0, 3)
    assert store.latest_data_id() == 2
    assert [item["step"] for item in store.get_latest_data(0)] == [1, 2]


def test_9_what_a_restarted_actor_has_is_taken(server: TrainerServer) -> None:
    learner = QueuedDataStore(1000)
    server.register_data_store("steps", learner)
    for _ in range(2):
        queue = QueuedDataStore(1000)  # of a new process: its ids count from 0 again
        queue.batch_insert(range(400))
        with client(server, "actor", queue) as actor:
            assert actor.update()
    assert learner.get_latest_data(-1) == [*range(400), *range(400)]


def test_9_what_a_full_queue_dropped_is_counted(server: TrainerServer, caplog: pytest.LogCaptureFixture) -> None:
    server.register_data_store("steps", QueuedDataStore(1000))
    queue = QueuedDataStore(10)
    with client(server, "actor", queue) as actor:
        queue.batch_insert(range(25))
        assert actor.update()
        assert actor.stats()["stores"]["steps"]["evicted"] == 15
        assert "15 items were dropped by a full store" in caplog.text


class Impatient(QueuedDataStore):
    """Another thread inserts one item each time that it is asked for its newest id."""

    def latest_data_id(self) -> int:
        latest = super().latest_data_id()
        if latest < 30:
            self.insert(latest + 1)
        return latest


def test_9_what_is_inserted_within_an_update_is_sent_once(server: TrainerServer) -> None:
    learner = QueuedDataStore(1000)
    server.register_data_store("steps", learner)
    queue = Impatient(1000)
    with client(server, "actor", queue) as actor:
        for _ in range(40):
            assert actor.update()
    assert learner.get_latest_data(-1) == list(range(31))


def test_10_each_actor_has_a_cursor_of_its_own(server: TrainerServer) -> None:
    learner = QueuedDataStore(1000)
    server.register_data_store("steps", learner)
    queues = [QueuedDataStore(100) for _ in range(2)]
    actors = [client(server, f"actor{who}", queue) for who, queue in enumerate(queues)]
    for who, count in ((0, 50), (1, 3), (0, 1)):  # the second is far behind the first
        queues[who].batch_insert([(who, number) for number in range(count)])
        assert actors[who].update()
    assert [actor.get_server_last_update_id("steps") for actor in actors] == [50, 2]
    for actor in actors:
        actor.stop()
    assert Counter(who for who, _ in learner.get_latest_data(-1)) == {0: 51, 1: 3}
