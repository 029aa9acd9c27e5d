"""Tests of edgeml_ipc.data.gather: the compiled pass, numpy's, and the pool of blocks."""

from __future__ import annotations

import gc
import mmap
import subprocess
import sys
import threading
import weakref
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeml_ipc.data.gather import COMPILED, Gather

DTYPES = ["bool", "uint8", "float16", "bfloat16", "float32", "int64", "complex128", "S3", "f4,i8", "float8_e4m3fn", "M8[ns]"]


def dtype_of(name: str) -> np.dtype[Any]:
    return np.dtype(getattr(ml_dtypes, name)) if hasattr(ml_dtypes, name) else np.dtype(name)


def column_of(dtype: np.dtype[Any], rows: int, item: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Return random bytes as an array, without values that a comparison would find unequal to themselves."""
    nbytes = rows * int(np.prod(item)) * dtype.itemsize
    raw = np.random.default_rng(seed).integers(0, 2 if dtype.kind == "b" else 60, nbytes, np.uint8)
    return raw.view(dtype).reshape(rows, *item)


def same_bytes(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


@pytest.fixture(params=[True, False], ids=["compiled", "numpy"])
def compiled(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def test_the_extension_was_built() -> None:
    assert COMPILED


def test_without_the_extension_numpy_takes_over() -> None:
    program = """
import sys
sys.modules["edgeml_ipc.data._rows"] = None  # what an import meets where it was not built
import numpy as np
from edgeml_ipc.data.gather import COMPILED, Gather
from edgeml_ipc.data.priority import Priorities
priorities = Priorities(5)
priorities.added(2, 3)
rows = priorities.sample(np.random.default_rng(0), 3).rows
gather = Gather([np.arange(5) * 10])
print(COMPILED, gather(rows).arrays[0].tolist(), gather.stats()["blocks_reused"])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split("\n")[0] == "False [20, 20, 20] 0"


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("item", [(), (1,), (3,), (2, 5), (0,), (700,), (64, 64, 3)])
def test_every_dtype_and_item_size(name: str, item: tuple[int, ...], compiled: bool) -> None:
    column = column_of(dtype_of(name), 20, item)
    rows = np.array([[19, 0, 5], [5, 7, 18]])
    (got,) = Gather([column], compiled=compiled)(rows).arrays
    assert same_bytes(got, column[rows])


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_compiled_and_numpy_agree(data: st.DataObject) -> None:
    sizes = st.lists(st.integers(0, 40), max_size=2).map(tuple)
    specs = data.draw(st.lists(st.tuples(st.sampled_from(DTYPES), sizes, st.integers(1, 30)), min_size=1, max_size=5))
    columns = [column_of(dtype_of(name), count, item, seed) for seed, (name, item, count) in enumerate(specs)]
    follows = [number % data.draw(st.integers(1, len(columns))) if number else 0 for number in range(len(columns))]
    follows = [sorted(set(follows)).index(which) for which in follows]
    rows = []
    for which in range(max(follows) + 1):
        limit = min(len(c) for c, f in zip(columns, follows, strict=True) if f == which)
        shape = data.draw(st.lists(st.integers(0, 20), min_size=1, max_size=2))
        count = int(np.prod(shape))
        rows.append(
            np.array(data.draw(st.lists(st.integers(-1, limit - 1), min_size=count, max_size=count)), int).reshape(shape)
        )
    ours = Gather(columns, follows)(rows).arrays
    numpys = Gather(columns, follows, compiled=False)(rows).arrays
    assert all(same_bytes(a, b) for a, b in zip(ours, numpys, strict=True))


@pytest.mark.parametrize("row_bytes", [64, 4096, 4100, 28224])
@pytest.mark.parametrize("threads", [1, 3])
def test_batches_that_are_written_past_the_caches(row_bytes: int, threads: int) -> None:
    """From 4 MiB on; rows that are no multiple of a line go the other way. Windows, single rows, and rows of zeros; patched."""
    rng = np.random.default_rng(0)
    columns = [rng.integers(0, 255, (300, row_bytes), np.uint8), rng.random(300), rng.integers(0, 9, (300, 3), np.uint8)]
    count = (5 << 20) // row_bytes // 4
    rows = rng.integers(0, 297, (count, 1)) + np.arange(4)
    rows[rng.random(rows.shape) < 0.1] = -1
    gather = Gather(columns, threads=threads)
    batch = gather(rows)
    numpys = Gather(columns, compiled=False)
    assert sum(array.nbytes for array in batch.arrays) > 4 << 20
    assert all(same_bytes(a, b) for a, b in zip(batch.arrays, numpys(rows).arrays, strict=True))
    at = rng.permutation(rows.size)[: rows.size - 7]
    others = rng.integers(-1, 300, at.size)
    gather.patch(batch, others, at)
    rows.ravel()[at] = others
    assert all(same_bytes(a, b) for a, b in zip(batch.arrays, numpys(rows).arrays, strict=True))


def test_rows_minus_one_are_zeros_in_memory_that_was_used_before(compiled: bool) -> None:
    column = np.ones((4, 100), np.float32)
    gather = Gather([column], compiled=compiled)
    gather(np.array([1, 2, 3]))
    (got,) = gather(np.array([1, -1, 3])).arrays
    assert got.sum(axis=1).tolist() == [100, 0, 100]


@pytest.mark.parametrize("bad", [-2, 6, 2**62, -(2**63)])
def test_a_row_out_of_range_copies_nothing(bad: int, compiled: bool) -> None:
    gather = Gather([np.zeros((9, 2)), np.zeros(6)], compiled=compiled)  # the shortest column counts
    with pytest.raises(IndexError, match=rf"rows\[1\] is {bad}; it must be from -1 to 5"):
        gather(np.array([0, bad, 2]))
    assert gather(np.array([5])).arrays[1].tolist() == [0.0]


def test_an_empty_column_has_no_row(compiled: bool) -> None:
    gather = Gather([np.zeros((0, 4), np.float32)], compiled=compiled)
    assert gather(np.array([-1, -1])).arrays[0].tolist() == [[0] * 4] * 2
    with pytest.raises(IndexError, match="from -1 to -1"):
        gather(np.array([0]))


def test_rows_of_other_dtypes(compiled: bool) -> None:
    gather = Gather([np.arange(10.0)], compiled=compiled)
    assert gather(np.array([3, 4], np.uint8)).arrays[0].tolist() == [3, 4]
    assert gather(np.arange(10)[::3]).arrays[0].tolist() == [0, 3, 6, 9]
    assert gather([[1, 2]]).arrays[0].tolist() == [1, 2]
    assert gather(np.array(7)).arrays[0].shape == ()
    for wrong in (np.array([1.0]), np.array([True])):
        with pytest.raises(TypeError, match="must be integers"):
            gather(wrong)


def test_columns_must_have_rows_in_one_piece(compiled: bool) -> None:
    table = np.arange(60.0).reshape(6, 10)
    for wrong in (table[:, ::2], table[::-1], table.T):
        with pytest.raises(ValueError, match="each row must be in one piece"):
            Gather([wrong], compiled=compiled)
    part = table[::2, 2:5]  # rows apart from each other, each in one piece
    assert same_bytes(Gather([part], compiled=compiled)(np.array([2, 0])).arrays[0], part[[2, 0]])
    with pytest.raises(TypeError, match="objects"):
        Gather([np.array([None])], compiled=compiled)
    with pytest.raises(ValueError, match="no rows"):
        Gather([np.array(1.0)], compiled=compiled)


def test_arguments(compiled: bool) -> None:
    column = np.zeros(3)
    for follows in ([1], [0, 0], [-1]):
        with pytest.raises(ValueError, match=r"follows|numbered"):
            Gather([column], follows, compiled=compiled)
    with pytest.raises(ValueError, match="columns"):
        Gather([], compiled=compiled)
    with pytest.raises(ValueError, match="threads"):
        Gather([column], threads=0, compiled=compiled)
    with pytest.raises(ValueError, match="1 sets"):
        Gather([column], compiled=compiled)([np.array([0]), np.array([0])])


def test_columns_may_be_read_only(compiled: bool) -> None:
    column = np.arange(4)
    column.flags.writeable = False
    (got,) = Gather([column], compiled=compiled)(np.array([3])).arrays
    got += 1
    assert (got.tolist(), column.tolist()) == ([4], [0, 1, 2, 3])


def test_patch_writes_the_named_places_only(compiled: bool) -> None:
    columns = [np.arange(20.0).reshape(10, 2), np.arange(10, dtype=np.uint8)]
    gather = Gather(columns, [0, 1], compiled=compiled)
    batch = gather([np.array([[0, 1], [2, 3]]), np.array([4, 5])])
    gather.patch(batch, [np.array([9, -1]), np.array([8])], [np.array([2, 0]), np.array([1])])
    assert batch.arrays[0].tolist() == [[[0, 0], [2, 3]], [[18, 19], [6, 7]]]
    assert batch.arrays[1].tolist() == [4, 8]
    before = [array.copy() for array in batch.arrays]
    for rows, at, error in [([[9], [1]], [[4], [0]], IndexError), ([[10], [1]], [[0], [0]], IndexError)]:
        with pytest.raises(error):
            gather.patch(batch, rows, at)
    with pytest.raises(ValueError, match="2 rows and 1 places"):
        gather.patch(batch, [[1, 2], [1]], [[0], [0]])
    assert all(same_bytes(a, b) for a, b in zip(batch.arrays, before, strict=True))


def test_a_held_batch_never_changes_and_a_dead_one_gives_its_memory_back() -> None:
    column = np.arange(1000.0)
    gather = Gather([column, column], idle_blocks=2)
    held = []
    for number in range(50):
        arrays = gather(np.full(64, number)).arrays
        held.append(arrays[number % 2][::2])  # a view of one of the arrays is enough
        del arrays
    assert [view.tolist() for view in held] == [[float(number)] * 32 for number in range(50)]
    assert gather.stats() == {"blocks_allocated": 50, "blocks_reused": 0, "blocks_idle": 0}
    held.clear()
    assert gather.stats()["blocks_idle"] == 2
    addresses = set()
    for _ in range(20):
        (first, _) = gather(np.zeros(64, int)).arrays
        assert first.ctypes.data % 64 == 0
        addresses.add(first.ctypes.data)
        del first, _
    assert len(addresses) <= 2
    assert gather.stats()["blocks_reused"] == 20


def test_each_array_of_a_batch_is_aligned() -> None:
    columns = [np.zeros((5, 3), np.uint8), np.zeros(5, bool), np.zeros((5, 7))]
    batch = Gather(columns)(np.array([0, 1, 2]))
    assert [array.ctypes.data % 64 for array in batch.arrays] == [0, 0, 0]


def test_blocks_of_sizes_that_are_no_longer_asked_for_give_way() -> None:
    gather = Gather([np.zeros((4, 10_000))], idle_blocks=2)
    for count in (1, 50, 1, 50, 2, 200, 200, 200):
        gather(np.zeros(count, int))
    assert gather.stats()["blocks_idle"] == 2
    before = gather.stats()["blocks_reused"]
    gather(np.zeros(200, int))
    assert gather.stats()["blocks_reused"] == before + 1


def test_close_lets_go_of_the_columns_and_keeps_the_batches(compiled: bool) -> None:
    memory = mmap.mmap(-1, 4096)
    gather = Gather([np.frombuffer(memory, np.uint8)], compiled=compiled)
    batch = gather(np.array([1, 2]))
    gather.close()
    gather.close()
    gc.collect()
    memory.close()  # BufferError if anything still pointed into it
    assert batch.arrays[0].tolist() == [0, 0]
    with pytest.raises(ValueError, match="closed"):
        gather(np.array([1]))


@pytest.mark.parametrize("threads", [1, 2, 4, 16])
def test_long_rows_are_copied_by_several_threads(threads: int) -> None:
    column = np.random.default_rng(0).integers(0, 255, (50, 84, 84, 4), np.uint8)
    rows = np.random.default_rng(1).integers(-1, 50, 257)
    (got,) = Gather([column], threads=threads)(rows).arrays
    assert same_bytes(got, np.where((rows >= 0)[:, None, None, None], column[rows], 0).astype(np.uint8))


def test_threads_share_a_gather_that_one_of_them_closes() -> None:
    """Each thread gets its own rows; closing waits for nobody and takes nothing from under a running copy."""
    column = np.frombuffer(mmap.mmap(-1, 64 * 5000 * 8), np.int64).reshape(64, 5000)
    column[:] = np.arange(64)[:, None]
    alive = weakref.ref(column)
    gather = Gather([column])
    del column  # from here on only the gather keeps the memory mapped
    wrong: list[int] = []
    done: list[int] = []
    begun = threading.Barrier(4)

    def work(number: int) -> None:
        rows = np.full(40, number)
        begun.wait(20)
        for count in range(10_000):
            try:
                (got,) = gather(rows).arrays
            except ValueError:
                done.append(number)
                return
            if not (got == number).all():
                wrong.append(number)
            if number == 0 and count == 300:
                gather.close()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert (wrong, sorted(done)) == ([], [0, 1, 2, 3])
    gc.collect()
    assert alive() is None
