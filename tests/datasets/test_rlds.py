"""RLDS: what is written is read by tensorflow-datasets, and comes back into a buffer row by row."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from edgeml_ipc import QueuedDataStore, ReplayBuffer, RLDSLogger, export_rlds, make_datastore, populate_datastore
from edgeml_ipc.data.data_store import DataStoreBase
from edgeml_ipc.datasets import episodes
from edgeml_ipc.errors import DatasetError
from tests.datasets.worlds import (
    ACTIONS,
    EXTRA,
    OBSERVATIONS,
    PLAIN_OBSERVATIONS,
    assert_same,
    flags_of,
    replay_buffer,
    rows_of,
    trajectory_buffer,
    transitions,
    with_extras,
)

Steps = dict[str, Any]


def read(directory: Path) -> list[Steps]:
    """Return the episodes of a data set in their order, each as stacked steps."""
    order = tfds.ReadConfig(interleave_cycle_length=1)
    dataset = tfds.builder_from_directory(str(directory)).as_dataset(split="train", read_config=order)
    return [next(iter(tfds.as_numpy(episode["steps"].batch(1000)))) for episode in dataset]


def logger(directory: Path, **options: Any) -> RLDSLogger:
    return RLDSLogger(PLAIN_OBSERVATIONS, ACTIONS, "walks", directory, **options)


# ---- the files


def test_the_features_are_as_tensorflow_datasets_writes_them(tmp_path: Path) -> None:
    with RLDSLogger(OBSERVATIONS, ACTIONS, "walks", tmp_path, extra_columns=EXTRA) as log:
        log.batch_record(with_extras(np.random.default_rng(0), transitions(np.random.default_rng(1), 3)))
    theirs = tfds.builder_from_directory(str(tmp_path)).info.features
    assert theirs is not None
    assert theirs.to_json() == json.loads((tmp_path / "features.json").read_text())


@pytest.mark.parametrize("ending", ["terminated", "truncated"])
def test_an_episode_of_t_transitions_has_t_plus_1_steps_aligned(tmp_path: Path, ending: str) -> None:
    items = transitions(np.random.default_rng(0), 4, PLAIN_OBSERVATIONS, **{ending: True})
    with logger(tmp_path) as log:
        for item in items:
            log.record(item)
    (steps,) = read(tmp_path)
    seen = [item["observations"] for item in items] + [items[-1]["next_observations"]]
    assert_same(steps["observation"], np.array(seen))
    assert_same(steps["action"], np.array([*(item["actions"] for item in items), np.zeros(2, np.float32)]))
    assert steps["reward"].tolist() == [*(item["rewards"] for item in items), 0.0]
    assert steps["discount"].tolist() == [*(item["masks"] for item in items), 0.0]
    assert steps["is_first"].tolist() == [True, False, False, False, False]
    assert steps["is_last"].tolist() == [False, False, False, False, True]
    assert steps["is_terminal"].tolist() == [False, False, False, False, ending == "terminated"]


def test_episodes_are_there_when_they_end_and_files_are_joined(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    written: list[Any] = []
    log = logger(tmp_path, max_episodes_per_file=3)
    for number in range(8):
        items = transitions(rng, 2, PLAIN_OBSERVATIONS, truncated=True)
        log.batch_record(items)
        written.append(np.array([items[0]["observations"], items[1]["observations"], items[1]["next_observations"]]))
        assert_same([steps["observation"] for steps in read(tmp_path)], written)
        assert log.stats() == {"episodes": number + 1, "transitions": 2 * number + 2, "dropped": 0, "cut": 0, "missed": 0}
    log.close()
    assert sorted(os.listdir(tmp_path)) == [
        "dataset_info.json",
        "features.json",
        *(f"walks-train.tfrecord-0000{number}-of-00003" for number in range(3)),
    ]
    assert_same([steps["observation"] for steps in read(tmp_path)], written)
    info = tfds.builder_from_directory(str(tmp_path)).info
    assert info.splits["train"].shard_lengths == [3, 3, 2]
    assert info.splits["train"].num_bytes == sum(path.stat().st_size for path in tmp_path.glob("*tfrecord*"))


@pytest.mark.parametrize(("most", "lengths"), [(1, [1] * 5), (2, [2, 2, 1]), (3, [3, 2]), (9, [5])])
def test_who_opens_a_data_set_again_adds_to_it(tmp_path: Path, most: int, lengths: list[int]) -> None:
    rng = np.random.default_rng(0)
    items = [transitions(rng, 3, PLAIN_OBSERVATIONS, truncated=True) for _ in range(5)]
    for number, episode in enumerate(items):
        with logger(tmp_path, max_episodes_per_file=most) as log:
            assert log.stats()["episodes"] == number
            log.batch_record(episode)
    found = read(tmp_path)
    assert_same([steps["observation"][:-1] for steps in found], [np.array([i["observations"] for i in e]) for e in items])
    assert tfds.builder_from_directory(str(tmp_path)).info.splits["train"].shard_lengths == lengths


def test_a_data_set_that_is_open_or_another_one_is_refused(tmp_path: Path) -> None:
    with logger(tmp_path), pytest.raises(DatasetError, match="another logger"):
        logger(tmp_path)
    with pytest.raises(DatasetError, match="other features"):
        RLDSLogger(OBSERVATIONS, ACTIONS, "walks", tmp_path)
    with pytest.raises(DatasetError, match="'walks'"):
        RLDSLogger(PLAIN_OBSERVATIONS, ACTIONS, "runs", tmp_path)
    with pytest.raises(ValueError, match="dataset_name"):
        RLDSLogger(PLAIN_OBSERVATIONS, ACTIONS, "../runs", tmp_path)
    (tmp_path / "dataset_info.json").write_text("{")
    with pytest.raises(DatasetError, match="damaged"):
        logger(tmp_path)


def test_a_file_that_is_gone_is_told(tmp_path: Path) -> None:
    with logger(tmp_path) as log:
        log.batch_record(transitions(np.random.default_rng(0), 3, PLAIN_OBSERVATIONS, truncated=True))
    next(tmp_path.glob("*tfrecord*")).unlink()
    with pytest.raises(DatasetError, match="No such file"):
        logger(tmp_path)


# ---- recording


def test_a_next_observation_may_be_left_out_where_the_episode_goes_on(tmp_path: Path) -> None:
    items = transitions(np.random.default_rng(0), 4, PLAIN_OBSERVATIONS, truncated=True)
    for item in items[:-1]:
        del item["next_observations"]
    with logger(tmp_path) as log:
        for item in items:
            log.record(item)
        with pytest.raises(ValueError, match="next_observations"):
            log.record(items[0], end_of_trajectory=True)
    (steps,) = read(tmp_path)
    assert_same(steps["observation"][:-1], np.array([item["observations"] for item in items]))


def test_a_transition_that_was_never_followed_is_dropped_and_counted(tmp_path: Path) -> None:
    items = transitions(np.random.default_rng(0), 3, PLAIN_OBSERVATIONS)
    del items[-1]["next_observations"]
    log = logger(tmp_path)
    log.batch_record(items)
    log.close()
    assert (log.stats()["dropped"], log.stats()["transitions"]) == (1, 2)
    (steps,) = read(tmp_path)
    assert_same(steps["observation"], np.array([item["observations"] for item in items]))
    assert steps["is_last"].tolist() == [False, False, True]
    assert not steps["is_terminal"].any()


def test_an_episode_is_cut_where_observations_do_not_follow_on(tmp_path: Path) -> None:
    items = transitions(np.random.default_rng(0), 5, PLAIN_OBSERVATIONS, terminated=True)
    items[1]["next_observations"] = np.full(3, 7, np.float32)
    with logger(tmp_path) as log:
        log.batch_record(items)
        assert log.stats()["cut"] == 1
    one, two = read(tmp_path)
    assert one["observation"][-1].tolist() == [7, 7, 7]
    assert [steps["is_terminal"][-1] for steps in (one, two)] == [False, True]
    assert_same(
        np.concatenate([one["observation"][:-1], two["observation"][:-1]]), np.array([i["observations"] for i in items])
    )


def test_what_does_not_fit_is_refused_and_not_recorded(tmp_path: Path) -> None:
    item = transitions(np.random.default_rng(0), 1, PLAIN_OBSERVATIONS, truncated=True)[0]
    with logger(tmp_path) as log:
        with pytest.raises(ValueError, match="'infos'"):
            log.record({**item, "infos": 1})
        with pytest.raises(ValueError, match="'actions' has shape"):
            log.record({**item, "actions": np.zeros(3)})
        log.record(item)
        assert log.stats()["transitions"] == 1
    assert len(read(tmp_path)) == 1


def test_environments_that_have_writers_of_their_own_do_not_mix(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    streams = [transitions(rng, 4, PLAIN_OBSERVATIONS, truncated=True) for _ in range(3)]
    with logger(tmp_path) as log:
        writers = [log.writer() for _ in streams]
        for step in range(4):
            for writer, items in zip(writers, streams, strict=True):
                writer.record(items[step])
    found = [steps["observation"][:-1] for steps in read(tmp_path)]
    assert_same(found, [np.array([item["observations"] for item in items]) for items in streams])


# ---- buffers, there and back


def there_and_back(buffer: Any, directory: Path, into: DataStoreBase, type: str) -> Any:
    export_rlds(buffer, directory, "walks", max_episodes_per_file=2)
    order = tfds.ReadConfig(interleave_cycle_length=1)
    dataset = tfds.builder_from_directory(str(directory)).as_dataset(split="all", read_config=order)
    return populate_datastore(into, dataset, type)


def test_a_replay_buffer_comes_back_row_by_row(tmp_path: Path) -> None:
    with replay_buffer(0) as buffer, ReplayBuffer(OBSERVATIONS, ACTIONS, 200, extra_columns=EXTRA) as back:
        there_and_back(buffer, tmp_path, back, "replay_buffer")
        assert len(buffer) == 26
        # Of the open episode what is there ends as truncated, as it does with any writer that leaves.
        expected = flags_of(buffer)
        buffer.end_trajectory()
        assert flags_of(buffer) == [*expected[:-1], expected[-1] | 2 | 8]
        assert flags_of(back) == flags_of(buffer)
        ours = rows_of(buffer)
        for row in ours:
            row["dones"] = np.bool_(row["dones"])
        assert_same([{**row, "dones": 0} for row in rows_of(back)], [{**row, "dones": 0} for row in ours])
        ends = [bool(flag & 2) for flag in flags_of(back)]
        assert [bool(row["dones"]) for row in rows_of(back)] == ends


def test_a_trajectory_buffer_comes_back_row_by_row(tmp_path: Path) -> None:
    with trajectory_buffer(1) as buffer:
        export_rlds(buffer, tmp_path, "walks")
        with make_datastore(tmp_path, 200, "trajectory_buffer") as back:  # type: ignore[attr-defined]
            buffer.end_trajectory()
            assert flags_of(back) == flags_of(buffer)
            fields = ("observations", "next_observations", "actions", "rewards", "masks")
            for one, other in zip(rows_of(back), rows_of(buffer), strict=True):
                assert_same({name: one[name] for name in fields}, {name: other[name] for name in fields})


def test_the_import_pairs_an_observation_with_its_own_action_and_reward(tmp_path: Path) -> None:
    """Edgeml's paired it with those of the step after, and lost an episode's first action."""
    items = transitions(np.random.default_rng(3), 5, PLAIN_OBSERVATIONS, terminated=True)
    with logger(tmp_path) as log:
        log.batch_record(items)
    store = make_datastore(tmp_path, 10)
    assert isinstance(store, ReplayBuffer)
    for row, item in zip(rows_of(store), items, strict=True):
        for name in ("observations", "actions", "next_observations"):
            assert_same(row[name], item[name])
        assert (row["rewards"], row["masks"], bool(row["dones"])) == (np.float32(item["rewards"]), item["masks"], item["dones"])


def test_what_is_left_of_an_episode_that_was_half_overwritten_is_written(tmp_path: Path) -> None:
    with ReplayBuffer(PLAIN_OBSERVATIONS, ACTIONS, 10) as buffer:
        buffer.batch_insert(transitions(np.random.default_rng(0), 14, PLAIN_OBSERVATIONS, truncated=True))
        assert export_rlds(buffer, tmp_path, "walks") == 1
        with make_datastore(tmp_path, 20) as back:  # type: ignore[attr-defined]
            assert len(back) == len(buffer) == 10
            assert_same(rows_of(back), rows_of(buffer))


def test_two_writers_episodes_do_not_mix(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    with ReplayBuffer(PLAIN_OBSERVATIONS, ACTIONS, 100, chunk_rows=3) as buffer:
        one, two = (transitions(rng, 10, PLAIN_OBSERVATIONS, terminated=True) for _ in range(2))
        writers = buffer.writer(), buffer.writer()
        for items in zip(one, two, strict=True):
            for writer, item in zip(writers, items, strict=True):
                writer.insert(item)
        found = list(episodes(buffer))
        assert [len(episode) for episode in found] == [10, 10]
        assert_same([e.values["actions"] for e in found], [np.array([i["actions"] for i in items]) for items in (one, two)])
        assert all(episode.terminated and not episode.truncated for episode in found)


def test_frames_that_are_stored_once_come_back(tmp_path: Path) -> None:
    from gymnasium import spaces

    rng = np.random.default_rng(0)
    space = spaces.Box(0, 255, (6, 5, 4), np.uint8)
    with ReplayBuffer(space, ACTIONS, 50, n_stack=4) as buffer:
        frames = rng.integers(0, 256, (20, 6, 5), np.uint8)
        for step in range(10):
            seen, then = (np.moveaxis(frames[at : at + 4], 0, -1) for at in (step, step + 1))
            item = {"observations": seen, "next_observations": then, "actions": np.zeros(2), "rewards": 0.0, "masks": 1.0}
            buffer.insert(item, end_of_trajectory=step == 9)
        export_rlds(buffer, tmp_path, "walks")
        with make_datastore(tmp_path, 50) as back:  # type: ignore[attr-defined]
            assert_same(rows_of(back), rows_of(buffer))


# ---- the import


def test_a_queue_gets_every_transition_and_where_episodes_end(tmp_path: Path) -> None:
    items = [
        *transitions(np.random.default_rng(0), 3, truncated=True),
        *transitions(np.random.default_rng(1), 2, terminated=True),
    ]
    with RLDSLogger(OBSERVATIONS, ACTIONS, "walks", tmp_path) as log:
        log.batch_record(items)
    store = make_datastore(tmp_path, 100, "queued_datastore")
    found = store.get_latest_data(-1)
    assert [item["dones"] for item in found] == [False, False, True, False, True]
    assert [float(item["masks"]) for item in found] == [1, 1, 1, 1, 0]
    assert_same([item["observations"] for item in found], [item["observations"] for item in items])


class Kept(DataStoreBase):
    """A store of the user's own that takes the five fields of edgeml only."""

    def __init__(self) -> None:
        super().__init__(100)
        self.items: list[dict[str, Any]] = []

    def insert(self, data: dict[str, Any]) -> None:
        self.items.append(data)

    def latest_data_id(self) -> int:
        return len(self.items) - 1

    def get_latest_data(self, from_id: int) -> list[Any]:
        return self.items[from_id + 1 :]

    def __len__(self) -> int:
        return len(self.items)


@pytest.mark.parametrize(
    ("type", "further"),
    [(None, set()), ("replay_buffer", set()), ("with_dones", {"dones"}), ("trajectory_buffer", {"end_of_trajectory"})],
)
def test_a_store_of_the_users_gets_what_its_type_says(tmp_path: Path, type: str | None, further: set[str]) -> None:
    with logger(tmp_path) as log:
        log.batch_record(transitions(np.random.default_rng(0), 3, PLAIN_OBSERVATIONS, truncated=True))
    store = Kept()
    dataset = tfds.builder_from_directory(str(tmp_path)).as_dataset(split="all")
    assert populate_datastore(store, dataset, type) is store
    five = {"observations", "next_observations", "actions", "rewards", "masks"}
    assert [set(item) for item in store.items] == [five | further] * 3
    assert [item[name] for item in store.items for name in further] == [False, False, True] * len(further)


def test_a_transform_sees_the_step_changes_it_and_leaves_out(tmp_path: Path) -> None:
    items = transitions(np.random.default_rng(0), 5, PLAIN_OBSERVATIONS, truncated=True)
    with logger(tmp_path) as log:
        log.batch_record(items)
    seen: list[dict[str, Any]] = []

    def transform(data: dict[str, Any], metadata: dict[str, Any]) -> dict[str, Any] | None:
        seen.append(metadata)
        return None if metadata["step"] == 2 else {**data, "rewards": 9.0}

    with make_datastore(tmp_path, 10, data_transform=transform) as store:  # type: ignore[attr-defined]
        assert [row["rewards"] for row in rows_of(store)] == [9.0] * 4
        assert flags_of(store) == [1, 10, 1, 10]
    assert [(m["step"], m["step_size"], bool(m["is_first"])) for m in seen] == [(k, 6, k == 0) for k in range(5)]
    assert set(seen[0]) == {"step", "step_size", "is_first", "discount"}


def test_a_data_set_of_others_with_text_and_without_rewards(tmp_path: Path) -> None:
    step = {
        "observation": {"state": tfds.features.Tensor(shape=(2,), dtype=np.float32), "says": tfds.features.Text()},
        "action": tfds.features.Scalar(dtype=np.int32),
        "language_instruction": tfds.features.Text(),
        **{name: tfds.features.Scalar(dtype=np.bool_) for name in ("is_first", "is_last", "is_terminal")},
    }
    identity = tfds.core.dataset_info.DatasetIdentity("theirs", tfds.core.Version("0.1.0"), str(tmp_path), "")
    features = tfds.features.FeaturesDict({"steps": tfds.features.Dataset(step)})
    writer = tfds.core.SequentialWriter(tfds.core.DatasetInfo(builder=identity, features=features), 10)
    writer.initialize_splits(["train"])
    steps = [
        {
            "observation": {"state": np.full(2, t, np.float32), "says": f"step {t}"},
            "action": 10 + t,
            "language_instruction": "walk",
            **{"is_first": t == 0, "is_last": t == 3, "is_terminal": t == 3},
        }
        for t in range(4)
    ]
    writer.add_examples({"train": [{"steps": steps}]})
    writer.close_all()
    said: list[Any] = []

    def listen(data: dict[str, Any], metadata: dict[str, Any]) -> dict[str, Any]:
        said.append(metadata["language_instruction"])
        return data

    with make_datastore(tmp_path, 10, data_transform=listen) as store:  # type: ignore[attr-defined]
        rows = rows_of(store)
    assert [row["observations"]["state"].tolist() for row in rows] == [[0, 0], [1, 1], [2, 2]]
    assert [(int(r["actions"]), r["rewards"], r["masks"], r["dones"]) for r in rows] == [
        (10, 0, 1, 0),
        (11, 0, 1, 0),
        (12, 0, 0, 1),
    ]
    assert said == ["walk"] * 3
    queue = make_datastore(tmp_path, 10, "queued_datastore")
    assert [item["observations"]["says"] for item in queue.get_latest_data(-1)] == ["step 0", "step 1", "step 2"]


def test_what_is_no_data_set_is_told(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="cannot be read"):
        make_datastore(tmp_path / "nothing", 10)
    with pytest.raises(ValueError, match="type must be"):
        make_datastore(tmp_path, 10, "ring")
    with pytest.raises(ValueError, match="RLDS"):
        populate_datastore(QueuedDataStore(5), tf.data.Dataset.range(3))
    with logger(tmp_path) as log:
        log.batch_record(transitions(np.random.default_rng(0), 40, PLAIN_OBSERVATIONS, truncated=True))
    path = next(tmp_path.glob("*tfrecord*"))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DatasetError, match="cannot be read"):
        make_datastore(tmp_path, 10)


def test_a_buffer_that_has_no_transitions_is_refused(tmp_path: Path) -> None:
    from edgeml_ipc import DataShape, TrajectoryBuffer

    with TrajectoryBuffer(10, [DataShape("joints", (3,))]) as buffer, pytest.raises(ValueError, match="needs"):
        export_rlds(buffer, tmp_path, "walks")
