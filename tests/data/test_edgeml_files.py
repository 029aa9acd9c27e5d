"""Tests of loading the `.npz` files of edgeml, agentlace and jaxrl. The files are made here, laid out as theirs are."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeml_ipc.data import DataShape, LatestSampler, ReplayBuffer, SequenceSampler
from edgeml_ipc.errors import SegmentError
from tests.data.test_replay_buffer import ACTIONS, BOX, transition

FIRST, LAST, TERMINAL, TRUNCATED = 1, 2, 4, 8


class EdgemlRing:
    """A trajectory buffer that keeps its books as edgeml's does, and saves itself as that one does.

    Inserts are numbered; insert k lies in row k % capacity. Trajectories that are shorter than `min_length` are taken back: the
    next insert has the number at which they began, and their rows stay where they are until they are written over.
    """

    def __init__(self, capacity: int, min_length: int = 2, *, dtypes: dict[str, Any] | None = None) -> None:
        self.capacity, self.min_length = capacity, min_length
        vector = {"observations": 3, "next_observations": 3, "actions": 2}
        self.fields = {
            name: np.zeros((capacity, *([vector[name]] if name in vector else [])), (dtypes or {}).get(name, kind))
            for name, kind in {
                **dict.fromkeys(vector, np.float32),
                **{"rewards": np.float64, "masks": np.float64, "end_of_trajectory": np.bool_},
            }.items()
        }
        self.books = {name: np.full(capacity, -1, np.int32) for name in ("ep_begin", "ep_end", "trajectory_id", "seq_id")}
        self.books["trajectory_begin_flag"] = np.zeros(capacity, np.bool_)
        self.size = self.inserted = self.began = self.trajectory = 0

    def insert(self, value: float, *, end: bool = False, told: bool | None = None, mask: float = 1.0) -> None:
        row = self.inserted % self.capacity
        item = transition(value, masks=mask, end_of_trajectory=end if told is None else told)
        for name, field in self.fields.items():
            field[row] = item[name]
        now = {"ep_begin": self.began, "ep_end": -1, "trajectory_id": self.trajectory, "seq_id": self.inserted}
        now["trajectory_begin_flag"] = self.inserted == self.began
        for name, number in now.items():
            self.books[name][row] = number
        self.inserted += 1
        self.size = min(self.size + 1, self.capacity)
        if end:
            self.end_trajectory()

    def end_trajectory(self) -> None:
        if self.inserted - self.began < self.min_length:
            self.inserted = self.began
            return
        self.books["ep_end"][np.arange(self.began, self.inserted) % self.capacity] = self.inserted
        self.began = self.inserted
        self.trajectory += 1

    def arrays(self) -> dict[str, Any]:
        return {
            **{f"data/{name}": field[: self.size] for name, field in self.fields.items()},
            **{f"metadata/{name}": book[: self.size] for name, book in self.books.items()},
            **{"traj/begin_idx": self.began, "traj/id": self.trajectory, "traj/min_length": self.min_length},
            **{"size": self.size, "capacity": self.capacity, "_insert_idx": self.inserted},
        }

    def save(self, path: Path) -> Path:
        np.savez(path, **self.arrays())
        return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "old.npz"


def loaded(path: Path, capacity: int = 100, **options: Any) -> ReplayBuffer:
    buffer = ReplayBuffer(BOX, ACTIONS, capacity, **options)
    buffer.load(path)
    return buffer


def rows_of(buffer: ReplayBuffer) -> list[tuple[float, int, int]]:
    """List reward, position and flags of the rows that are held, oldest first."""
    about, count = buffer.about, len(buffer)
    rows = np.argsort(about["sequence"][:count], kind="stable")
    return [(float(buffer.columns["rewards"][row]), int(about["position"][row]), int(about["flags"][row])) for row in rows]


def test_trajectories_come_with_their_ends(path: Path) -> None:
    ring = EdgemlRing(20)
    for value in range(4):
        ring.insert(value, end=value == 3, mask=float(value != 3))
    for value in range(4, 7):
        ring.insert(value, end=value == 6)
    for value in range(7, 9):
        ring.insert(value)
    buffer = loaded(ring.save(path))
    assert rows_of(buffer) == [
        *[(0, 0, FIRST), (1, 1, 0), (2, 2, 0), (3, 3, LAST | TERMINAL)],
        *[(4, 0, FIRST), (5, 1, 0), (6, 2, LAST | TRUNCATED)],
        *[(7, 0, FIRST), (8, 1, LAST | TRUNCATED)],  # nobody goes on with it
    ]
    first = buffer.get_latest_data(-1)[3]
    assert (first["rewards"], first["masks"], bool(first["dones"])) == (3, 0, True)
    np.testing.assert_array_equal(first["next_observations"], [4, 4, 4])
    assert buffer.latest_data_id() == 8
    buffer.insert(transition(9))
    assert (buffer.latest_data_id(), rows_of(buffer)[-1]) == (9, (9, 0, FIRST))
    assert buffer.stats()["inserted"] == 10


@pytest.mark.parametrize("count", [20, 21, 33, 40, 59])
def test_a_ring_that_was_wrapped_comes_oldest_first(count: int, path: Path) -> None:
    ring = EdgemlRing(20)
    for value in range(count):
        ring.insert(value, end=value % 7 == 6)
    rows = rows_of(loaded(ring.save(path)))
    assert [(reward, position) for reward, position, _ in rows] == [(value, value % 7) for value in range(count - 20, count)]
    assert [bool(flags & LAST) for *_, flags in rows[:-1]] == [value % 7 == 6 for value in range(count - 20, count - 1)]


@pytest.mark.parametrize("before", [6, 30])
def test_rows_of_a_trajectory_that_was_taken_back_are_left_out(before: int, path: Path) -> None:
    ring = EdgemlRing(20, min_length=4)
    for value in range(before):
        ring.insert(value, end=value % 6 == 5)
    for value in (100, 101):
        ring.insert(value)
    ring.end_trajectory()
    expected = list(range(before)) if before < 20 else list(range(before - 18, before))
    assert [reward for reward, *_ in rows_of(loaded(ring.save(path)))] == expected
    ring.insert(200)
    path.unlink()
    assert [reward for reward, *_ in rows_of(loaded(ring.save(path)))] == [*expected, 200]


def test_ends_that_the_data_tells_and_the_metadata_does_not(path: Path) -> None:
    """Its insert looked at the argument, and `end_of_trajectory` in the data was only stored."""
    ring = EdgemlRing(20)
    for value in range(9):
        ring.insert(value, told=value == 2, mask=float(value != 5))
    flags = [flags for *_, flags in rows_of(loaded(ring.save(path)))]
    assert flags == [FIRST, 0, LAST | TRUNCATED, FIRST, 0, LAST | TERMINAL, FIRST, 0, LAST | TRUNCATED]
    assert [position for _, position, _ in rows_of(loaded(path))] == [0, 1, 2] * 3


def test_files_of_the_first_layout(path: Path) -> None:
    """It had no trajectory_begin_flag, and seq_id counted from 1."""
    ring = EdgemlRing(20)
    for value in range(33):
        ring.insert(value, end=value % 7 == 6)
    arrays = ring.arrays()
    del arrays["metadata/trajectory_begin_flag"]
    arrays["metadata/seq_id"] = arrays["metadata/seq_id"] + 1
    np.savez(path, **arrays)
    assert [row[:2] for row in rows_of(loaded(path))] == [(value, value % 7) for value in range(13, 33)]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_windows_stay_within_trajectories(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    ring = EdgemlRing(data.draw(st.integers(5, 40)), min_length=data.draw(st.integers(1, 4)))
    truth: dict[int, float] = {}
    number = 0
    for length in data.draw(st.lists(st.integers(1, 12), min_size=1, max_size=12)):
        for _ in range(length):
            truth[ring.inserted] = 1000 * number + ring.inserted - ring.began
            ring.insert(truth[ring.inserted])
        if data.draw(st.booleans()):
            ring.end_trajectory()
            number += 1
    path = ring.save(tmp_path_factory.getbasetemp() / "windows.npz")
    held = {insert: value for insert, value in truth.items() if insert < ring.inserted}
    buffer = loaded(path, capacity=200)
    rewards = [reward for reward, *_ in rows_of(buffer)]
    assert rewards == [held[insert] for insert in sorted(held)][len(held) - len(rewards) :]
    assert len(rewards) >= min(ring.inserted, ring.capacity) - ring.min_length
    if rewards:
        buffer.register_sample_config("two", {"rewards": SequenceSampler(end=2), "masks": LatestSampler()})
        batch, mask = buffer.sample("two", 100)
        both = mask["rewards"].all(axis=1)
        assert (np.diff(batch["rewards"][both], axis=1) == 1).all()


def test_the_newest_rows_are_kept_where_there_is_less_room(path: Path) -> None:
    ring = EdgemlRing(50)
    for value in range(70):
        ring.insert(value, end=value % 7 == 6)
    assert [reward for reward, *_ in rows_of(loaded(ring.save(path), capacity=12))] == list(range(58, 70))


def test_an_empty_ring_gives_an_empty_buffer(path: Path) -> None:
    buffer = loaded(EdgemlRing(5).save(path))
    assert (len(buffer), buffer.latest_data_id()) == (0, -1)


def test_bfloat16_which_numpy_saves_without_its_name(path: Path) -> None:
    ring = EdgemlRing(5)
    ring.insert(1)
    arrays = {**ring.arrays(), "data/extra": np.full((1, 2), 1.5, ml_dtypes.bfloat16)}
    np.savez(path, **arrays)
    buffer = loaded(path, extra_columns=[DataShape("extra", (2,), "bfloat16")])
    assert buffer.get_latest_data(-1)[0]["extra"].tolist() == [1.5, 1.5]


def test_jaxrl_files_are_rows_in_the_order_of_the_ring(path: Path) -> None:
    steps = [transition(value) for value in (5, 6, 2, 3, 4)]  # two were written over
    names = ("observations", "next_observations", "actions", "rewards")
    fields = {name: np.stack([step[name] for step in steps]) for name in names}
    np.savez(path, **fields, masks=np.array([True, True, True, False, True]))
    flags = [flags for *_, flags in rows_of(loaded(path))]
    assert flags == [FIRST, LAST | TRUNCATED, FIRST, LAST | TERMINAL, FIRST | LAST | TRUNCATED]


# ---- what is refused


def changed(ring: EdgemlRing, path: Path, **changes: Any) -> Path:
    arrays = {**ring.arrays(), **{key.replace("__", "/"): value for key, value in changes.items()}}
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
    return path


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"data__next_observations": None}, r"it has no \['next_observations'\]"),
        ({"data__reward": np.zeros(8)}, r"this buffer has no \['reward'\]; declare them"),
        ({"data__rewards": np.zeros(7)}, "different numbers of rows"),
        ({"data__rewards": np.float64(3)}, "different numbers of rows"),
        ({"data__actions": np.zeros((8, 3))}, r"'actions' has shape \(8, 3\); \(8, 2\) is required"),
        ({"data__rewards": np.zeros(8, np.complex64)}, "'rewards' has dtype complex64"),
        ({"data__rewards": np.array([None] * 8)}, "pickled Python objects, and nothing is unpickled"),
        ({"data__rewards": np.array([{"a": 1}] * 8)}, "pickled Python objects"),
        ({"data__actions": np.zeros((8, 2), order="F")}, "Fortran order"),
        ({"size": 7}, "its fields have 8 rows, and its size is 7"),
        ({"size": None}, "it has no integer 'size'"),
        ({"_insert_idx": 1.5}, "it has no integer '_insert_idx'"),
        ({"_insert_idx": -1}, "cannot be"),
        ({"_insert_idx": 30}, "cannot be"),
        ({"capacity": 4}, "cannot be"),
        ({"capacity": 0}, "cannot be"),
        ({"capacity": 1 << 50}, "cannot be"),
        ({"traj__begin_idx": None}, "it has no integer 'traj/begin_idx'"),
        ({"metadata__ep_begin": None}, "it has no 'metadata/ep_begin'"),
        ({"metadata__ep_begin": np.zeros(3)}, "it has no 'metadata/ep_begin' of 8 rows"),
        ({"metadata__ep_begin": np.full(8, -5)}, "'metadata/ep_begin' is below 0"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], match: str, path: Path) -> None:
    ring = EdgemlRing(20)
    for value in range(8):
        ring.insert(value, end=value == 4)
    buffer = ReplayBuffer(BOX, ACTIONS, 100)
    with pytest.raises(SegmentError, match=match):
        buffer.load(changed(ring, path, **changes))
    assert (len(buffer), buffer.stats()["inserted"]) == (0, 0)
    path.unlink()
    buffer.load(ring.save(path))
    assert len(buffer) == 8


def test_archives_that_np_savez_does_not_write_are_refused(path: Path) -> None:
    ring = EdgemlRing(20)
    ring.insert(1)
    np.savez_compressed(path, **ring.arrays())
    with pytest.raises(SegmentError, match="compressed or encrypted"):
        loaded(path)
    text = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,), }"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data/rewards.npy", b"\x93NUMPY\x01\x00\x76\x00" + text.ljust(117) + b"\n")
    with pytest.raises(SegmentError, match=r"'data/rewards' has \d+ bytes, another number than its shape"):
        loaded(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data/rewards.npy", b"no array")
    with pytest.raises(SegmentError, match="cannot be loaded: "):
        loaded(path)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damage_is_an_error_or_changes_nothing(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The archive's own checksums cover the values; of its directory some bytes, such as dates, mean nothing."""
    ring = EdgemlRing(20)
    for value in range(30):
        ring.insert(value, end=value % 7 == 6)
    path = ring.save(tmp_path_factory.getbasetemp() / "damaged.npz")
    whole, expected = path.read_bytes(), rows_of(loaded(path))
    at = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        path.write_bytes(whole[:at])
    else:
        path.write_bytes(whole[:at] + bytes([whole[at] ^ data.draw(st.integers(1, 255))]) + whole[at + 1 :])
    buffer = ReplayBuffer(BOX, ACTIONS, 100)
    try:
        buffer.load(path)
    except SegmentError:
        assert (len(buffer), buffer.stats()["inserted"]) == (0, 0)
    else:
        assert rows_of(buffer) == expected
