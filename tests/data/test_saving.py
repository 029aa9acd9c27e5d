"""Tests of saving and loading: what a buffer that was loaded holds, and that it samples on as the saved one would have."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import multiprocess
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeml_ipc.data import BufferEmpty, DataShape, ReplayBuffer, storage
from edgeml_ipc.errors import SegmentError
from tests.data.test_replay_buffer import ACTIONS, BOX, DICT, image_transition, transition
from tests.data.test_windows import TOKEN, faults, fill, make
from tests.data.window_streams import Stream, write_until

FIRST, LAST, TERMINAL, TRUNCATED = 1, 2, 4, 8
CONFIGS = ("plain", "loose", "whole")
_names = itertools.count()


@pytest.fixture
def name() -> Iterator[str]:
    made = f"test-saving-{os.getpid()}-{next(_names)}"
    yield made
    ReplayBuffer.remove(made)


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "buffer")


def assert_same(one: Any, other: Any) -> None:
    """Compare two trees of arrays, bit for bit."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    else:
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert one.tobytes() == other.tobytes()


def assert_samples_alike(saved: ReplayBuffer, loaded: ReplayBuffer, batches: int = 50) -> None:
    for _ in range(batches):
        assert_same(saved.sample(17), loaded.sample(17))
        for config in CONFIGS:
            for one, other in zip(saved.sample(config, 9), loaded.sample(config, 9), strict=True):
                assert_same(one, other)


def by_id(buffer: ReplayBuffer) -> dict[str, list[Any]]:
    """Return what is known of each row that is held, in the order of their ids, without the writers."""
    about, rows = buffer.about, buffer._windows._map.steps().rows()
    rows = rows[np.argsort(about["sequence"][rows])]
    return {key: about[key][rows].tolist() for key in ("sequence", "position", "policy_version", "flags")}


# ---- what is in a row


def test_every_kind_of_field_comes_back(path: str) -> None:
    space = spaces.Dict({"half": spaces.Box(-1, 1, (3,), np.float16), "in": DICT})
    extra = [DataShape("bf", (2,), "bfloat16"), DataShape("yes", (), "bool"), DataShape("none", (0,))]
    extra.append(DataShape("z", (2,), "complex64"))

    def made() -> ReplayBuffer:
        return ReplayBuffer(space, spaces.Discrete(5), 50, extra_columns=extra)

    saved, loaded = made(), made()
    for value in range(70):
        item = image_transition(value % 200)
        for key in ("observations", "next_observations"):
            item[key] = {"half": np.full(3, value + (key[0] == "n"), np.float16), "in": item[key]}
        item |= {"actions": value % 5, "policy_version": value // 3, "dones": value % 9 == 0, "yes": value % 2 == 1}
        item |= {"bf": np.full(2, value, ml_dtypes.bfloat16), "none": np.empty(0), "z": np.full(2, 1j * value, np.complex64)}
        saved.insert(item)
    saved.save(path)
    loaded.load(path)
    assert loaded.columns["bf"].dtype == ml_dtypes.bfloat16
    before, after = saved.get_latest_data(-1), loaded.get_latest_data(-1)
    assert len(before) == 50
    for one, other in zip(before, after, strict=True):
        assert one.pop("policy_version") == other.pop("policy_version")
        assert_same(one, other)
    assert by_id(saved)["position"] == by_id(loaded)["position"]


def test_next_observations_are_stored_once_and_come_back_bit_for_bit(path: str) -> None:
    box = spaces.Box(-1, 1, (5000,), np.float32)
    saved = ReplayBuffer(box, ACTIONS, 500)
    odd = {7: np.nan, 8: -0.0, 300: 5.0}
    for value in range(500):
        here = np.full(5000, odd.get(value, value if value != 9 else 0.0), np.float32)
        then = np.full(5000, odd.get(value + 1, value + 1), np.float32)
        saved.insert(transition(value, observations=here, next_observations=then, dones=value % 50 == 49))
    saved.save(path)
    assert os.path.getsize(path) < 500 * 20_000 * 1.05
    loaded = ReplayBuffer.from_file(path)
    before, after = saved.get_latest_data(-1), loaded.get_latest_data(-1)
    for one, other in zip(before, after, strict=True):
        assert_same(one, other)
    assert after[8]["next_observations"][0] == 9.0  # given; the observation of the row after it is 0
    assert np.signbit(after[7]["next_observations"][0])


def test_a_buffer_of_images_is_saved_in_pieces(path: str) -> None:
    saved = ReplayBuffer(spaces.Box(0, 255, (128, 128, 3), np.uint8), ACTIONS, 900)
    rng = np.random.default_rng(0)
    frame = rng.integers(0, 255, (128, 128, 3), np.uint8)
    for value in range(1000):
        then = np.roll(frame, value)
        saved.insert(transition(value, observations=frame, next_observations=then if value % 7 else frame))
        frame = then
    seen: list[tuple[int, int]] = []
    saved.save(path, progress=lambda *step: seen.append(step))
    assert len(seen) > 3
    assert seen == sorted(seen)
    assert seen[-1] == (len(saved), len(saved))
    seen.clear()
    loaded = ReplayBuffer.from_file(path, progress=lambda *step: seen.append(step))
    assert len(seen) > 3
    assert seen == sorted(seen)
    assert seen[-1] == (len(saved), len(saved))
    for one, other in zip(saved.get_latest_data(-1), loaded.get_latest_data(-1), strict=True):
        assert_same(one, other)


# ---- sampling goes on


@pytest.mark.parametrize("built", [True, False])
@pytest.mark.parametrize("chunk_rows", [None, 1, 3, 8, 60])
@pytest.mark.parametrize("rounds", [1, 8, 40, 200])
def test_a_loaded_buffer_samples_on(
    chunk_rows: int | None, rounds: int, built: bool, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not built:
        monkeypatch.setattr(storage, "native", lambda: None)
    saved = make(130, chunk_rows=chunk_rows, seed=1)
    fill(saved, rounds)
    saved.sample(10)
    saved.sample("loose", 10)
    saved.save(path)
    loaded = make(130, chunk_rows=chunk_rows, seed=2)
    loaded.load(path)
    kept = ("inserted", "evicted", "sampled", "redrawn", "occupancy")
    assert [saved.stats()[key] for key in kept] == [loaded.stats()[key] for key in kept]
    assert saved.latest_data_id() == loaded.latest_data_id()
    assert_samples_alike(saved, loaded)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_whatever_was_inserted_it_samples_on(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    capacity = data.draw(st.integers(12, 90), "capacity")
    chunk_rows = data.draw(st.integers(1, capacity // 4), "chunk_rows")
    saved = make(capacity, chunk_rows=chunk_rows, seed=1)
    streams: list[Stream] = []
    steps = st.tuples(st.integers(0, 3), st.integers(1, 25), st.sampled_from(["insert", "insert", "insert", "leave"]))
    for number, count, what in data.draw(st.lists(steps, min_size=1, max_size=30), "steps"):
        if number >= len(streams):
            streams.append(Stream(saved, len(streams) + 1))
            number = -1
        if what == "leave":
            streams.pop(number).writer.close()
        else:
            streams[number].insert(count, batched=count % 2 == 0)
    path = str(tmp_path_factory.mktemp("saved") / "buffer")
    saved.save(path)
    same, wider = make(capacity, chunk_rows=chunk_rows), make(3 * capacity + 4 * chunk_rows, chunk_rows=chunk_rows)
    for loaded in (same, wider):
        loaded.load(path)
        assert len(loaded) == len(saved)
        before, after = by_id(saved), by_id(loaded)
        flags, expected = after.pop("flags"), before.pop("flags")
        assert before == after
        assert all(new == old or new == old | LAST | TRUNCATED for new, old in zip(flags, expected, strict=True))
    for loaded in (same, wider):
        states = saved._batches.generator_state(), saved._windows.generator_states()
        try:
            assert_samples_alike(saved, loaded, 5)
        except BufferEmpty:
            with pytest.raises(BufferEmpty):
                loaded.sample("whole", 9)
        saved._batches.set_generator_state(states[0])
        saved._windows.set_generator_states(states[1])


@pytest.mark.parametrize("rounds", [8, 200])
@pytest.mark.parametrize(("capacity", "chunk_rows"), [(130, 1), (140, 33), (1000, 8), (100, 10), (40, 4), (3, 1)])
def test_a_buffer_of_other_sizes_keeps_the_newest_rows_and_their_episodes(
    capacity: int, chunk_rows: int, rounds: int, path: str
) -> None:
    saved = make(130, chunk_rows=8, seed=1)
    fill(saved, rounds)
    saved.save(path)
    loaded = make(capacity, chunk_rows=chunk_rows)
    loaded.load(path)
    assert len(loaded) >= min(capacity, len(saved)) * 3 // 4  # two writers cannot fill their last chunks
    ids = by_id(loaded)["sequence"]
    assert ids[-1] == saved.latest_data_id()
    assert set(ids) <= set(by_id(saved)["sequence"])
    assert len(ids) == len(set(ids)) == len(loaded)
    assert faults(*loaded.sample("loose", 300)) == 0


@pytest.mark.parametrize(("capacity", "chunk_rows"), [(130, 1), (130, 130), (131, 7), (500, 33)])
def test_one_writer_samples_on_in_a_buffer_of_other_sizes(capacity: int, chunk_rows: int, path: str) -> None:
    saved = make(130, chunk_rows=8, seed=1)
    Stream(saved, 1).insert(333, batched=True)
    saved.save(path)
    loaded = make(capacity, chunk_rows=chunk_rows)
    loaded.load(path)
    assert_samples_alike(saved, loaded)


def test_a_smaller_buffer_holds_exactly_the_newest_rows_of_one_writer(path: str) -> None:
    saved = make(130, chunk_rows=8)
    Stream(saved, 1).insert(333, batched=True)
    saved.save(path)
    loaded = ReplayBuffer.from_file(path, capacity=77)
    assert by_id(loaded)["sequence"] == list(range(333 - 77, 333))


@pytest.mark.parametrize("rounds", [1, 8, 200])
@pytest.mark.parametrize(("capacity", "chunk_rows"), [(130, 8), (300, 8), (120, 5)])
def test_writers_go_on_in_a_loaded_buffer(capacity: int, chunk_rows: int, rounds: int, path: str) -> None:
    saved = make(130, chunk_rows=8, seed=1)
    fill(saved, rounds)
    saved.save(path)
    loaded = make(capacity, chunk_rows=chunk_rows)
    loaded.load(path)
    streams = [Stream(loaded, number) for number in (11, 12, 13)]
    assert min(stream.writer.number for stream in streams) > loaded.about["writer"].max()
    last_id, inserted, rng = loaded.latest_data_id(), loaded.stats()["inserted"], np.random.default_rng(0)
    for turn in range(150):
        streams[rng.integers(3)].insert(int(rng.integers(1, 9)), batched=turn % 2 == 0)
        assert faults(*loaded.sample("loose", 50)) == 0
        assert len(set(by_id(loaded)["sequence"])) == len(loaded) <= capacity
    new = loaded.stats()["inserted"] - inserted
    assert loaded.latest_data_id() == last_id + new
    assert len(loaded) > capacity - 4 * chunk_rows
    assert min(by_id(loaded)["sequence"]) > last_id  # what was loaded went first


def test_an_episode_that_was_open_ends_as_truncated(path: str) -> None:
    saved = ReplayBuffer(BOX, ACTIONS, 50)
    first, second = saved.writer(), saved.writer()
    for value in range(4):
        first.insert(transition(value))
        second.insert(transition(value, dones=value == 3, masks=float(value != 3)))
    saved.save(path)
    loaded = ReplayBuffer.from_file(path)
    assert by_id(loaded)["flags"] == [FIRST, FIRST, 0, 0, 0, 0, LAST | TRUNCATED, LAST | TERMINAL]
    loaded.insert(transition(9))
    assert by_id(loaded)["flags"][-1] == FIRST
    assert by_id(saved)["flags"][-2] == 0


def test_an_empty_buffer_is_saved_with_its_generators(path: str) -> None:
    saved, loaded = make(20, seed=4), make(20, seed=5)
    saved.save(path)
    loaded.load(path)
    assert len(loaded) == 0
    for buffer in (saved, loaded):
        buffer.insert({**transition(3), "token": np.arange(4)})
        buffer.batch_insert([{**transition(value), "token": np.arange(4)} for value in range(15)])
    assert_same(saved.sample(50), loaded.sample(50))


def test_a_file_can_be_saved_again(path: str, tmp_path: Path) -> None:
    saved = make(130, chunk_rows=8, seed=1)
    fill(saved, 200)
    saved.save(path)
    once, again = make(130, chunk_rows=8), make(130, chunk_rows=8)
    once.load(path)
    once.save(tmp_path / "again")
    again.load(tmp_path / "again")
    assert_samples_alike(saved, again)


# ---- who else is there


def test_others_see_what_was_loaded_all_at_once(path: str, name: str) -> None:
    saved = make(130, chunk_rows=8, seed=1)
    fill(saved, 200)
    saved.save(path)
    with make(130, chunk_rows=8, name=name) as loaded, ReplayBuffer.attach(name) as other:
        seen: list[int] = []
        loaded.load(path, progress=lambda *_: seen.append(len(other)))
        assert set(seen) == {0}
        assert len(other) == len(saved)
        assert set(other.sample(1000)["token"][:, 0].tolist()) == {1, 2}
    with ReplayBuffer.attach(name) as other:
        assert by_id(other)["sequence"] == by_id(saved)["sequence"]


def test_a_buffer_from_a_file_can_be_named(path: str, name: str) -> None:
    saved = make(130)
    fill(saved, 8)
    saved.save(path)
    with ReplayBuffer.from_file(path, name=name) as loaded, ReplayBuffer.attach(name) as other:
        assert loaded.capacity == 130
        assert len(other) == len(saved)
        with pytest.raises(SegmentError, match="exists already"):
            ReplayBuffer.from_file(path, name=name)


def test_a_buffer_with_rows_or_writers_is_not_loaded_into(path: str) -> None:
    saved = make(130)
    fill(saved, 8)
    saved.save(path)
    with pytest.raises(SegmentError, match="and 2 writers are there; load into a buffer that was just made"):
        saved.load(path)
    watched = make(130)
    watched.writer()
    with pytest.raises(SegmentError, match="0 rows were inserted and 1 writers are there"):
        watched.load(path)
    assert len(watched) == 0


def test_saving_while_processes_write(path: str, name: str) -> None:
    """What is saved are whole rows in whole episodes, and of them all but the oldest."""
    context = multiprocess.get_context("spawn")
    ready, stop = context.Barrier(4), context.Event()
    with make(3000, chunk_rows=50, name=name) as buffer:
        writers = [context.Process(target=write_until, args=(name, number, ready, stop)) for number in (1, 2, 3)]
        for writer in writers:
            writer.start()
        try:
            ready.wait(60)
            for _ in range(20):
                before = buffer.stats()["inserted"]
                buffer.save(path)
                loaded = make(3000, chunk_rows=50)
                loaded.load(path)
                evicted = buffer.stats()["inserted"] - before
                assert len(loaded) >= min(before, 3000) - evicted - 5 * 50
                assert faults(*loaded.sample("loose", 3000)) == 0
                token, held = loaded.columns["token"], loaded._windows._map.steps().rows()
                assert len(np.unique(token[held], axis=0)) == len(held)
        finally:
            stop.set()
            for writer in writers:
                writer.join(60)
        assert [writer.exitcode for writer in writers] == [0, 0, 0]


def test_the_fields_must_be_the_same(path: str) -> None:
    make(10).save(path)
    other = ReplayBuffer(spaces.Box(-1, 1, (4,), np.float32), ACTIONS, 10, extra_columns=[DataShape("token", (4,), "int32")])
    with pytest.raises(SegmentError, match=r"'observations' is \(\(3,\), 'float32'\) there, \(\(4,\), 'float32'\) here"):
        other.load(path)
    with pytest.raises(SegmentError, match=r"'token' is \(\(4,\), 'int64'\) there, missing here"):
        ReplayBuffer(BOX, ACTIONS, 10).load(path)
    assert TOKEN.dtype == "int64"
