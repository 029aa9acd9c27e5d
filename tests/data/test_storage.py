"""Tests of edgeml_ipc.data.storage, and of the chunks beneath, in C and in Python alike."""

from __future__ import annotations

import itertools
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeml_ipc.data import segment as segments
from edgeml_ipc.data.chunks import RowTable, native
from edgeml_ipc.data.columns import DataShape, dtype_of
from edgeml_ipc.data.local_table import LocalTable
from edgeml_ipc.data.schema import Schema, Stored
from edgeml_ipc.data.segment import Segment
from edgeml_ipc.data.storage import ROW_SHAPES, Geometry, Storage
from edgeml_ipc.errors import BufferFull, ConnectionClosed, SegmentError

ROOT = Path(__file__).parents[2]
SHAPES = [DataShape("value", dtype="int64"), DataShape("image", (2, 3), "uint8")]
LAST, TRUNCATED = 2, 8


def plain(shapes: list[DataShape]) -> Schema:
    return Schema("Test", tuple(Stored(shape) for shape in shapes))


_names = itertools.count()


@pytest.fixture
def name() -> Iterator[str]:
    made = f"test-storage-{os.getpid()}-{next(_names)}"
    yield made
    segments.unlink(made)


class Rows:
    """A table with the two columns that it must know, over a segment or in Python."""

    def __init__(self, capacity: int, chunk_rows: int, *, in_c: bool, max_writers: int = 4) -> None:
        if in_c:
            self.storage = Storage.create(plain(SHAPES), capacity, chunk_rows, max_writers, None)
            self.sequence, self.flags = (self.storage.about.arrays[key] for key in ("sequence", "flags"))
            self.table: RowTable = self.storage.table
        else:
            about = {shape.name: np.zeros(capacity, shape.dtype) for shape in ROW_SHAPES}
            self.sequence, self.flags = about["sequence"], about["flags"]
            self.table = LocalTable((capacity, chunk_rows, max_writers), about)

    def put(self, place: int, count: int) -> list[int]:
        """Write `count` rows and return them."""
        written: list[int] = []
        while len(written) < count:
            row, granted, sequence = self.table.reserve(place, count - len(written))
            self.sequence[row : row + granted] = np.arange(sequence, sequence + granted)
            self.flags[row : row + granted] = 0
            self.table.commit(place)
            written += range(row, row + granted)
        return written

    def held(self) -> list[int]:
        """Return the sequence numbers of all rows that a sample would draw from, oldest first."""
        return [int(self.sequence[row]) for row in self.drawn()[0]]

    def drawn(self) -> tuple[Any, Any]:
        spans = np.empty((self.table.max_spans(), 3), np.int64)
        used = self.table.snapshot(spans)
        total = int(spans[used - 1, 0]) if used else 0
        rows, stamps = np.empty(total, np.int64), np.empty(total, np.int64)
        self.table.resolve(spans, used, np.arange(total), rows, stamps)
        return rows, stamps


@pytest.fixture(params=[True, False], ids=["c", "python"])
def make(request: pytest.FixtureRequest) -> Callable[..., Rows]:
    return lambda capacity, chunk_rows, **options: Rows(capacity, chunk_rows, in_c=request.param, **options)


Make = Callable[..., Rows]


@pytest.mark.parametrize(("capacity", "chunk_rows"), [(1, 1), (5, 5), (7, 3), (8, 2), (16, 1), (10, 4)])
def test_one_writer_sees_an_exact_ring(make: Make, capacity: int, chunk_rows: int) -> None:
    rows = make(capacity, chunk_rows)
    place, _ = rows.table.register()
    inserted = 0
    for count in [1, 2, 1, 5, 3, 1, 1, 8, 13, 1] * 3:
        assert rows.put(place, count) == [k % capacity for k in range(inserted, inserted + count)]
        inserted += count
        assert rows.held() == list(range(max(0, inserted - capacity), inserted))
        assert rows.table.counts()[:3] == (inserted, min(inserted, capacity), inserted - 1)


def test_old_rows_stand_until_they_are_reserved(make: Make) -> None:
    rows = make(8, 4)
    place, _ = rows.table.register()
    rows.put(place, 8)
    drawn, stamps = rows.drawn()
    whole = np.empty(8, np.bool_)
    assert rows.table.intact(drawn, stamps, whole) == 0
    rows.table.reserve(place, 3)
    assert rows.table.intact(drawn, stamps, whole) == 3
    assert whole.tolist() == 3 * [False] + 5 * [True]
    assert rows.held() == [3, 4, 5, 6, 7]
    rows.table.commit(place)
    assert len(rows.held()) == 8
    rows.put(place, 13)
    assert rows.table.intact(drawn, stamps, whole) == 8


def test_writers_never_share_a_chunk(make: Make) -> None:
    rows = make(24, 4)
    places = [rows.table.register()[0] for _ in range(3)]
    owner: dict[int, int] = {}
    for turn in range(60):
        place = places[turn % 3]
        for row in rows.put(place, 1 + turn % 2):
            owner[row] = place
        for chunk in range(6):
            assert len({owner[row] for row in range(4 * chunk, 4 * chunk + 4) if row in owner}) <= 2
    drawn, _ = rows.drawn()
    for chunk in range(6):
        inside = [int(row) for row in drawn if row // 4 == chunk]
        changes = sum(owner[a] != owner[b] for a, b in itertools.pairwise(sorted(inside)))
        assert changes <= 1  # at most one border: between this generation and the one before


def test_eviction_takes_the_oldest_chunk_that_nobody_writes(make: Make) -> None:
    rows = make(12, 3)
    slow, quick = rows.table.register()[0], rows.table.register()[0]
    assert rows.put(slow, 1) == [0]
    assert rows.put(quick, 9) == list(range(3, 12))
    assert rows.put(quick, 1) == [3]
    assert sorted(rows.held()) == [0, *range(2, 11)]  # 1 lay where 10 is now; 0 is old, but its chunk is being written
    assert rows.put(slow, 2) == [1, 2]


def test_a_writer_alone_among_held_chunks_goes_round_in_its_own(make: Make) -> None:
    rows = make(4, 2)
    one, other = rows.table.register()[0], rows.table.register()[0]
    assert rows.put(one, 1) == [0]
    assert rows.put(other, 5) == [2, 3, 2, 3, 2]
    assert sorted(rows.held()) == [0, 4, 5]
    third, _ = rows.table.register()
    with pytest.raises(BufferFull, match="smaller chunk_rows"):
        rows.table.reserve(third, 1)


def test_the_registry_is_bounded(make: Make) -> None:
    rows = make(8, 2, max_writers=2)
    numbers = [rows.table.register() for _ in range(2)]
    with pytest.raises(BufferFull, match="more max_writers"):
        rows.table.register()
    rows.table.forget(numbers[0][0])
    place, number = rows.table.register()
    assert (place, number) == (0, 3)
    with pytest.raises(ConnectionClosed, match="the writer was closed"):
        rows.table.reserve(7, 1)


def test_forgetting_a_writer_ends_its_episode_and_frees_its_chunk(make: Make) -> None:
    rows = make(8, 4)
    place, _ = rows.table.register()
    last = rows.put(place, 6)[-1]
    rows.table.forget(place)
    assert rows.flags.tolist() == [LAST | TRUNCATED if row == last else 0 for row in range(8)]
    assert rows.table.counts()[5] == 0
    other, _ = rows.table.register()
    rows.put(other, 8)
    assert rows.held() == list(range(6, 14))


def test_an_episode_that_had_ended_is_not_truncated(make: Make) -> None:
    rows = make(8, 4)
    place, _ = rows.table.register()
    rows.put(place, 5)
    rows.table.mark(place, LAST)
    rows.table.forget(place)
    assert rows.flags.tolist() == [0, 0, 0, 0, LAST, 0, 0, 0]


def test_the_last_row_is_marked_though_the_next_chunk_was_claimed(make: Make) -> None:
    rows = make(8, 4)
    place, _ = rows.table.register()
    rows.put(place, 4)
    rows.table.reserve(place, 1)
    rows.table.forget(place)
    assert rows.flags.tolist() == [0, 0, 0, LAST | TRUNCATED, 0, 0, 0, 0]


def test_an_insert_that_was_broken_off_leaves_no_gap(make: Make) -> None:
    rows = make(8, 4)
    place, _ = rows.table.register()
    rows.put(place, 2)
    assert rows.table.reserve(place, 2) == (2, 2, 2)
    assert rows.table.reserve(place, 1) == (2, 1, 2)
    rows.sequence[2] = 2
    rows.table.commit(place)
    rows.put(place, 3)
    assert rows.held() == [0, 1, 2, 3, 4, 5]


def test_chunks_link_to_their_writers_previous_one(make: Make) -> None:
    rows = make(12, 3)
    one, other = rows.table.register()[0], rows.table.register()[0]
    for place in (one, other, one, other):
        rows.put(place, 3)
    drawn, stamps = rows.drawn()
    links = {int(row) // 3: rows.table.previous(int(row), int(stamp)) for row, stamp in zip(drawn, stamps, strict=True)}
    assert links == {0: (-1, 0, 0), 1: (-1, 0, 0), 2: (0, 0, 3), 3: (1, 0, 3)}
    rows.put(one, 1)
    drawn, stamps = rows.drawn()
    at_0 = [rows.table.previous(0, int(stamp)) for row, stamp in zip(drawn, stamps, strict=True) if row == 0]
    assert at_0 == [(2, 0, 3)]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(1, 5), st.lists(st.tuples(st.integers(0, 5), st.integers(1, 9)), max_size=40))
def test_c_and_python_do_the_same(capacity: int, chunk_rows: int, steps: list[tuple[int, int]]) -> None:
    chunk_rows = min(chunk_rows, capacity)
    pair = [Rows(capacity, chunk_rows, in_c=in_c, max_writers=3) for in_c in (True, False)]
    places: list[int] = []
    for what, count in steps:
        done = []
        for rows in pair:
            try:
                if what == 0:
                    done.append(rows.table.register())
                elif places and what == 1:
                    rows.table.forget(places[-1])
                elif places:
                    done.append(rows.put(places[what % len(places)], count))
            except BufferFull:
                done.append("full")
        assert done[:1] == done[1:]
        if what == 0 and done[0] != "full":
            places.append(done[0][0])
        elif what == 1 and places:
            places.pop()
        assert pair[0].held() == pair[1].held()
        assert pair[0].table.counts() == pair[1].table.counts()
        assert pair[0].flags.tolist() == pair[1].flags.tolist()


def test_a_stream_is_not_taken_over_from_where_it_was(make: Make) -> None:
    rows, key = make(16, 4), bytes(16)
    one, _ = rows.table.register()
    rows.table.bind(key, one, 0)
    seen = rows.table.cursor(key)
    rows.put(one, 5)
    rows.table.forget(one)
    other, _ = rows.table.register()
    with pytest.raises(BufferFull, match="another writer has this stream"):
        rows.table.bind(key, other, seen or 0)
    assert rows.table.cursor(key) == 5
    rows.table.bind(key, other, 5)
    rows.put(other, 2)
    assert rows.table.cursor(key) == 7


def test_a_closed_table_says_so(make: Make) -> None:
    rows = make(8, 4)
    place, _ = rows.table.register()
    rows.table.close()
    rows.table.close()
    for call in (rows.table.register, lambda: rows.table.reserve(place, 1), rows.drawn, rows.table.counts):
        with pytest.raises(ConnectionClosed, match="closed on this side"):
            call()


def test_columns_lie_on_pages_of_one_segment(name: str) -> None:
    storage = Storage.create(plain(SHAPES), 100, 10, 4, name)
    starts = [array.__array_interface__["data"][0] for array in storage.columns.arrays.values()]
    assert all(start % os.sysconf("SC_PAGESIZE") == 0 for start in starts)
    other = Storage.attach(name)
    storage.columns.arrays["image"][99] = 7
    assert (other.columns.arrays["image"][99] == 7).all()
    assert other.columns.shapes == storage.columns.shapes
    assert (other.capacity, other.chunk_rows, other.max_writers) == (100, 10, 4)
    assert other.incarnation == storage.incarnation
    storage.close()
    other.close()
    storage.close()


def test_memory_is_little_more_than_the_columns() -> None:
    shapes = [
        DataShape("observations", (64,)),
        DataShape("actions", (8,)),
        DataShape("rewards"),
        DataShape("dones", (), "bool"),
    ]
    storage = Storage.create(plain(shapes), 20_000, 156, 64, None)
    own = sum(array.nbytes for array in storage.columns.arrays.values())
    assert storage.segment is not None
    assert storage.segment.nbytes <= 1.1 * own


@pytest.mark.parametrize("dtype", ["bool", "uint8", "float16", "bfloat16", "float8_e4m3fn", "int64", "float64", "complex64"])
def test_dtypes_survive_the_schema(dtype: str, name: str) -> None:
    storage = Storage.create(plain([DataShape("x", (3,), dtype)]), 4, 2, 2, name)
    storage.columns.arrays["x"][1] = np.ones(3).astype(dtype_of(dtype))
    other = Storage.attach(name)
    assert other.columns.arrays["x"].dtype == dtype_of(dtype)
    assert (other.columns.arrays["x"][1] == np.ones(3).astype(dtype_of(dtype))).all()
    storage.close()
    other.close()


def test_objects_are_no_dtype() -> None:
    with pytest.raises(TypeError, match="holds Python objects"):
        dtype_of("object")
    with pytest.raises(TypeError):
        dtype_of("no_such_dtype")


def test_a_name_that_is_taken_is_left_alone(name: str) -> None:
    storage = Storage.create(plain(SHAPES), 8, 2, 4, name)
    with pytest.raises(SegmentError, match="exists already"):
        Storage.create(plain(SHAPES), 8, 2, 4, name)
    Storage.attach(name).close()
    storage.close()


def test_what_a_dead_maker_left_is_replaced(name: str) -> None:
    code = f"from edgeml_ipc.data.segment import Segment; import os; Segment.create({name!r}, 8192); os._exit(0)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)
    with pytest.raises(SegmentError, match="not ready"):
        Storage.attach(name)
    Storage.create(plain(SHAPES), 8, 2, 4, name).close()
    Storage.attach(name).close()


def test_what_is_being_made_is_left_alone(name: str) -> None:
    with Segment.create(name, 8192):
        with pytest.raises(SegmentError, match="exists already"):
            Storage.create(plain(SHAPES), 8, 2, 4, name)
        with pytest.raises(SegmentError, match="not ready"):
            Storage.attach(name)
    assert segments.exists(name)


# magic 0, version 8, ready 12, bytes 16, capacity 24, chunk_rows 32, writers 40, schema bytes 48
@pytest.mark.parametrize(
    ("offset", "data", "message"),
    [
        (0, b"somebody", "not a replay buffer"),
        (8, struct.pack("<I", 99), "another version"),
        (12, struct.pack("<I", 0), "not ready"),
        (12, struct.pack("<I", 7), "not ready"),
        (16, struct.pack("<Q", 1 << 40), "damaged"),
        (24, struct.pack("<Q", 0), "damaged"),
        (24, struct.pack("<Q", 1 << 63), "damaged"),
        (24, struct.pack("<Q", 9_999_999), "damaged"),
        (24, struct.pack("<Q", 50_000), "damaged|schema"),
        (32, struct.pack("<Q", 0), "damaged"),
        (40, struct.pack("<Q", 1 << 40), "damaged"),
        (48, struct.pack("<Q", 1 << 62), "damaged"),
        (48, struct.pack("<Q", 3), "cannot attach"),
    ],
)
def test_a_segment_that_is_foreign_or_damaged(offset: int, data: bytes, message: str, name: str) -> None:
    Storage.create(plain(SHAPES), 100, 10, 4, name).close()
    with Segment.attach(name) as segment:
        segment.memory[offset : offset + len(data)] = data
    with pytest.raises(SegmentError, match=message):
        Storage.attach(name)


@pytest.mark.parametrize("size", [1, 100, 4095, 4096, 70_000])
def test_a_segment_of_zeros_or_noise(size: int, name: str) -> None:
    rng = np.random.default_rng(size)
    with Segment.create(name, size) as segment:
        with pytest.raises(SegmentError, match=r"not ready|not a replay buffer"):
            Storage.attach(name)
        segment.memory[:] = rng.bytes(size)
        with pytest.raises(SegmentError, match="not a replay buffer"):
            Storage.attach(name)


def test_values_in_shared_memory_are_checked_before_they_are_used(name: str) -> None:
    """Noise over the registry and the chunks, from another process: an error or an answer, never a crash."""
    code = f"import sys, numpy as np; from tests.data.test_storage import hammer\nprint(hammer({name!r}, 300))\n"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 10


def hammer(name: str, rounds: int) -> int:
    """Overwrite one number after another with noise and use the table; return how often it was called damaged."""
    rng = np.random.default_rng(5)
    storage = Storage.create(plain(SHAPES), 40, 4, 4, name)
    assert storage.segment is not None
    rows = native()
    assert rows is not None
    begin, end = 4096, rows.schema_at(tuple(Geometry(40, 4, 4, 0, 1, 0)))
    image = bytes(storage.segment.memory[begin:end])
    refused = 0
    for _ in range(rounds):
        storage.segment.memory[begin:end] = image
        table = rows.Table(storage.segment.memory, storage.segment.fd, places_of(storage), ())
        place, _ = table.register()
        table.reserve(place, 3)
        table.commit(place)
        chunks_at = end - 10 * 128
        for _ in range(3):
            at = int(rng.integers(chunks_at // 8, end // 8)) * 8
            storage.segment.memory[at : at + 8] = rng.bytes(8)
        spans = np.empty((table.max_spans(), 3), np.int64)
        try:
            for _ in range(12):
                table.reserve(place, 4)
                table.commit(place)
            table.counts()
            used = table.snapshot(spans)
            ends = spans[:used]
            assert (ends[:, 1] >= 0).all()
            assert (ends[:, 1] + np.diff(ends[:, 0], prepend=0) <= 40).all()
        except (SegmentError, BufferFull):
            refused += 1
        table.close()
    return refused


def places_of(storage: Storage) -> tuple[int, ...]:
    base = np.frombuffer(storage.segment.memory, np.uint8).__array_interface__["data"][0]  # type: ignore[union-attr]
    return tuple(array.__array_interface__["data"][0] - base for array in storage.about.arrays.values())


def test_schemas_that_are_none() -> None:
    schema = plain(SHAPES)
    assert Schema.decode(schema.encode()) == schema
    texts = [b"", b"[]", b"{}", b'{"face": 1, "stack": 1, "columns": []}', b'{"face": "", "stack": 0, "columns": []}']
    columns = [b'[[1, [], "int64", 0, 0]]', b'[["x", [-1], "int64", 0, 0]]', b'[["x", [], "object", 0, 0]]', b"[1]", b"[]"]
    columns += [b'[["x", [], "int64", 1, 0]]', b'[["observations", [3], "int64", 2, 0]]', b'[["x", [], "int64", 9, 0]]']
    texts += [b'{"face": "", "stack": 1, "columns": ' + column + b"}" for column in columns]
    for text in texts:
        with pytest.raises((ValueError, TypeError, KeyError)):
            Schema.decode(text)
    with pytest.raises(ValueError, match="not a set of names"):
        Schema.decode(plain([SHAPES[0], SHAPES[0]]).encode())
