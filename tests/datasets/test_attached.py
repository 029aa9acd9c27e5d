"""A logger that is attached to a store records what is inserted into it: here, by other writers, and by other processes."""

from __future__ import annotations

import os
import resource
import threading
from pathlib import Path
from typing import Any

import multiprocess
import numpy as np
import pytest

from edgeml_ipc import DataStoreBase, QueuedDataStore, ReplayBuffer, RLDSLogger, make_default_trajectory_buffer
from edgeml_ipc.datasets import open_episode, recorder
from edgeml_ipc.errors import ConnectionClosed, DatasetError
from tests.datasets import other_writer
from tests.datasets.other_writer import episodes_of
from tests.datasets.test_rlds import Kept, Steps, logger, read
from tests.datasets.worlds import ACTIONS, PLAIN_OBSERVATIONS, assert_same, transitions


def actions_of(steps: Steps) -> Any:
    return steps["action"][:-1]


def actions_in(items: list[dict[str, Any]]) -> Any:
    return np.array([item["actions"] for item in items])


# ---- through the object


@pytest.mark.parametrize("store", [QueuedDataStore(5), Kept(), ReplayBuffer(PLAIN_OBSERVATIONS, ACTIONS, 20)])
def test_all_that_is_inserted_is_recorded_once_though_the_store_forgets(tmp_path: Path, store: DataStoreBase) -> None:
    written = episodes_of(np.random.default_rng(0), 10)
    store.insert({**written[0][0], "dones": True})  # before
    with logger(tmp_path, max_episodes_per_file=5) as log:
        log.attach(store)
        for number, items in enumerate(written):
            if number % 2:
                store.batch_insert(iter(items))
            else:
                for item in items:
                    store.insert(item)
    store.insert({**written[0][0], "dones": True})  # after
    assert_same([actions_of(steps) for steps in read(tmp_path)], [actions_in(items) for items in written])
    assert log.stats() == {"episodes": 10, "transitions": 150, "dropped": 0, "cut": 0, "missed": 0}
    assert len(list(tmp_path.iterdir())) == 4


def test_an_end_that_is_said_afterwards_or_by_keyword_is_recorded(tmp_path: Path) -> None:
    items = transitions(np.random.default_rng(0), 6, PLAIN_OBSERVATIONS)
    with make_default_trajectory_buffer(PLAIN_OBSERVATIONS, ACTIONS, 50) as buffer, logger(tmp_path) as log:
        log.attach(buffer)
        for number, item in enumerate(items):
            buffer.insert({name: value for name, value in item.items() if name != "dones"}, end_of_trajectory=number == 1)
            if number == 3:
                buffer.end_trajectory()
    assert_same([actions_of(steps) for steps in read(tmp_path)], [actions_in(items[at : at + 2]) for at in (0, 2, 4)])


def test_loggers_stand_back_in_any_order(tmp_path: Path) -> None:
    written = episodes_of(np.random.default_rng(0), 4, 3)
    store = QueuedDataStore(100)
    first, second = logger(tmp_path / "first"), logger(tmp_path / "second")
    for log in (first, second):
        store.batch_insert(written[0])
        log.attach(store)
    store.batch_insert(written[1])
    first.close()
    store.batch_insert(written[2])
    second.close()
    store.batch_insert(written[3])
    for directory, count in (("first", (0, 1)), ("second", (1, 2))):
        assert_same([actions_of(steps) for steps in read(tmp_path / directory)], [actions_in(written[at]) for at in count])
    with pytest.raises(ConnectionClosed):
        first.attach(store)
    with pytest.raises(ConnectionClosed):
        first.record(written[0][0])


def test_threads_that_insert_at_once_lose_nothing(tmp_path: Path) -> None:
    written = [episodes_of(np.random.default_rng(seed), 10, 5) for seed in range(4)]
    with logger(tmp_path, max_episodes_per_file=7) as log:

        def run(batches: list[list[dict[str, Any]]]) -> None:
            writer = log.writer()
            for items in batches:
                for item in items:
                    writer.record(item)

        threads = [threading.Thread(target=run, args=(batches,)) for batches in written]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    found = sorted(actions_of(steps).tolist() for steps in read(tmp_path))
    assert found == sorted(actions_in(items).tolist() for batches in written for items in batches)


def test_an_episode_that_takes_too_much_memory_is_recorded_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "MOST_BYTES", 400)
    items = transitions(np.random.default_rng(0), 40, PLAIN_OBSERVATIONS, terminated=True)
    with logger(tmp_path) as log:
        log.batch_record(items)
        assert log.stats()["cut"] > 1
    found = read(tmp_path)
    assert_same(np.concatenate([actions_of(steps) for steps in found]), actions_in(items))
    assert [bool(steps["is_terminal"][-1]) for steps in found] == [False] * (len(found) - 1) + [True]
    assert open_episode.MOST_BYTES < 1 << 31


def test_a_full_disk_is_told_and_leaves_what_was_there(tmp_path: Path) -> None:
    first, too_large, last = episodes_of(np.random.default_rng(0), 3, 50)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    store = QueuedDataStore(1000)
    with logger(tmp_path) as log:
        log.attach(store)
        store.batch_insert(first)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1500, before[1]))
        try:
            with pytest.raises(DatasetError, match="cannot be written"):
                store.batch_insert(too_large)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert log.stats() == {"episodes": 1, "transitions": 100, "dropped": 50, "cut": 0, "missed": 0}
        store.batch_insert(last)
    assert len(store) == 150
    assert_same([actions_of(steps) for steps in read(tmp_path)], [actions_in(first), actions_in(last)])


# ---- by other writers


def test_rows_of_other_processes_are_recorded_too(tmp_path: Path) -> None:
    name = f"test-attached-{os.getpid()}"
    processes = multiprocess.get_context("spawn")
    with ReplayBuffer(PLAIN_OBSERVATIONS, ACTIONS, 5000, name=name) as buffer:
        try:
            with logger(tmp_path) as log:
                log.attach(buffer)
                writers = [
                    processes.Process(target=other_writer.write, args=(name, seed, 20, seed == 2)) for seed in range(1, 4)
                ]
                for process in writers:
                    process.start()
                own = episodes_of(np.random.default_rng(0), 20, 5)
                for items in own:
                    buffer.batch_insert(items)
                for process in writers:
                    process.join(60)
                    assert process.exitcode == (-9 if process is writers[1] else 0)
        finally:
            buffer.unlink()
        rngs = [np.random.default_rng(seed) for seed in range(1, 4)]
        theirs = [[*episodes_of(rng, 20, 5), transitions(rng, 3, PLAIN_OBSERVATIONS)] for rng in rngs]
        assert len(buffer) == 100 + 3 * 103
    found = read(tmp_path)
    assert log.stats() == {"episodes": 83, "transitions": 409, "dropped": 0, "cut": 0, "missed": 0}
    expected = sorted(actions_in(items).tolist() for batches in (own, *theirs) for items in batches)
    assert sorted(actions_of(steps).tolist() for steps in found) == expected
    assert sum(bool(steps["is_terminal"][-1]) for steps in found) == 80


def test_episodes_of_other_writers_here_end_when_their_writers_end_them(tmp_path: Path) -> None:
    items = transitions(np.random.default_rng(0), 9, PLAIN_OBSERVATIONS)
    seen = threading.Event()
    with ReplayBuffer(PLAIN_OBSERVATIONS, ACTIONS, 50) as buffer, logger(tmp_path) as log:
        log.attach(buffer)
        writer = buffer.writer()
        for at in (0, 3, 6):
            for item in items[at : at + 3]:
                writer.insert(item)
            deadline = threading.Event()
            while log.stats()["transitions"] < at + 3:
                assert not deadline.wait(0.01)
            writer.end_trajectory()
        while log.stats()["episodes"] < 3:
            assert not seen.wait(0.01)
    assert_same([actions_of(steps) for steps in read(tmp_path)], [actions_in(items[at : at + 3]) for at in (0, 3, 6)])


def test_rows_that_were_overwritten_before_they_were_read_are_counted(tmp_path: Path) -> None:
    with ReplayBuffer(PLAIN_OBSERVATIONS, ACTIONS, 100) as buffer:
        log = logger(tmp_path)
        log.attach(buffer)
        writer = buffer.writer()
        written = episodes_of(np.random.default_rng(0), 400, 5)
        for items in written:
            writer.batch_insert(items)
        log.close()
        stats = log.stats()
    assert stats["transitions"] + stats["missed"] == 2000
    assert stats["missed"] > 0
    theirs = {row.tobytes() for items in written for row in actions_in(items)}
    assert {row.tobytes() for steps in read(tmp_path) for row in actions_of(steps)} <= theirs


def test_a_buffer_that_lacks_a_field_is_refused(tmp_path: Path) -> None:
    with (
        ReplayBuffer(ACTIONS, ACTIONS, 5) as buffer,
        RLDSLogger(PLAIN_OBSERVATIONS, ACTIONS, "walks", tmp_path) as log,
        pytest.raises(ValueError, match="'observations' is of shape"),
    ):
        log.attach(buffer)
