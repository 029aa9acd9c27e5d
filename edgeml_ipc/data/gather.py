"""Gather: copy scattered rows of several columns into one batch, in one compiled pass.

    columns   obs (capacity, 64) f4    act (capacity, 8) f4    next_obs: the same array as obs
    follows   set 0                    set 0                   set 1
    rows      [7, 2, 9, ...]                                   [8, 3, -1, ...]     -1: a row of zeros
    block     | obs 256 x 256 B | act 256 x 32 B | next_obs 256 x 256 B |          each column at a multiple of 64 bytes

The arrays of a batch lie in one block. The block goes back to the pool, and is written again, when the last array (or view of
one) has died, and never before: so a batch that is held never changes, and memory that is warm is used again.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from edgeml_ipc.data.chunks import native

if TYPE_CHECKING:
    import edgeml_ipc.data._rows as _rows

Array: TypeAlias = npt.NDArray[Any]
Rows: TypeAlias = npt.NDArray[np.int64]

_KERNELS: Final[Any] = native()
COMPILED: Final = _KERNELS is not None
IDLE_BLOCKS: Final = 8
MAX_THREADS: Final = 4
_SHAPES_KNOWN: Final = 64
_INT64: Final = np.dtype(np.int64)


class Batch:
    """One array for each column, `(*rows.shape, *item)`; writable, and the holder's own.

    Attributes:
        arrays: in the order of the columns.
    """

    __slots__ = ("_block", "_shapes", "arrays")

    def __init__(self, arrays: list[Array], shapes: Sequence[tuple[int, ...]], block: Any) -> None:
        self.arrays = arrays
        self._shapes = shapes
        self._block = block


class Gather:
    """Copies rows of columns that all calls share.

    Threads and processes: any thread may call; other Python threads run while rows are copied. Rows that another thread or
    process writes meanwhile may arrive torn; who gathers finds that out and patches them. Nothing is shared between processes.

    Example:
        >>> observations = np.arange(12.0).reshape(6, 2)
        >>> with Gather([observations, np.arange(6), observations], follows=[0, 0, 1]) as gather:
        ...     seen, number, then = gather([np.array([4, 0]), np.array([5, -1])]).arrays
        >>> seen.tolist(), number.tolist(), then.tolist()
        ([[8.0, 9.0], [0.0, 1.0]], [4, 0], [[10.0, 11.0], [0.0, 0.0]])
    """

    def __init__(
        self,
        columns: Sequence[Array],
        follows: Sequence[int] | None = None,
        *,
        idle_blocks: int = IDLE_BLOCKS,
        threads: int | None = None,
        compiled: bool = COMPILED,
    ) -> None:
        """Prepare to gather from `columns`; nothing is copied.

        Args:
            columns: arrays `(rows, *item)` of any dtype without Python objects, each row in one piece. They are kept, as views,
                until `close`.
            follows: for each column, the number of the set of rows that it follows; None: all follow set 0.
            idle_blocks: how many blocks that nobody holds are kept for the next batches, at most 64.
            threads: at most so many share the copying of rows of 2 KiB and more; None: one per CPU, up to 4.
            compiled: False takes numpy instead of the extension module, with the same results and without a pool.
        Raises:
            ValueError: no columns, rows that are not in one piece, or sets that are not numbered from 0 without a gap.
            TypeError: a dtype with Python objects.
        """
        self._columns = list(columns)
        self._follows = [0] * len(self._columns) if follows is None else list(follows)
        if not self._columns or len(self._follows) != len(self._columns):
            raise ValueError(
                f"got {len(self._columns)} columns and {len(self._follows)} entries in follows; one for each is needed"
            )
        self._sets = max(self._follows) + 1
        if set(self._follows) != set(range(self._sets)):
            raise ValueError(f"sets of rows are numbered from 0 without a gap, got follows={self._follows}")
        if threads is None:
            threads = min(len(os.sched_getaffinity(0)), MAX_THREADS)
        if threads < 1:
            raise ValueError(f"threads must be at least 1, got {threads}")
        self._items = [(which, c.dtype, c.shape[1:]) for which, c in zip(self._follows, self._columns, strict=True)]
        self._dtypes = [dtype for _, dtype, _ in self._items]
        self._shapes: dict[tuple[tuple[int, ...], ...], list[tuple[int, ...]]] = {}  # of the columns, by those of the sets
        self._core: _rows.Gather | None = None
        views = tuple(_bytes_of(column, number) for number, column in enumerate(self._columns))
        if compiled:
            self._pool = _KERNELS.Pool(idle_blocks)
            self._core = _KERNELS.Gather(views, tuple(self._follows), threads)

    def __call__(self, rows: Array | Sequence[Array]) -> Batch:
        """Copy rows into a new batch.

        Args:
            rows: for each set an array of row numbers of any shape, or one array where there is one set. -1 gives zeros.
        Raises:
            IndexError: a row below -1, or past the last row. TypeError: rows that are not integers.
            ValueError: another number of sets, or closed. In all cases nothing was copied.
        """
        sets = self._checked(rows)
        shapes = [rows_of_set.shape for rows_of_set in sets]
        if self._core is None:
            return Batch(self._taken(sets), shapes, None)
        return self._on(*self._core.run(tuple(sets), self._pool), shapes)

    def draw(
        self, table: _rows.Table, parts: tuple[int, ...], shares: Any, shapes: Sequence[tuple[int, ...]]
    ) -> tuple[Batch, tuple[int, ...]] | None:
        """Draw rows of a table and copy them, in one compiled call; see `_rows.Gather.draw`.

        Args:
            parts: for each set, what its columns follow. shapes: of each set's rows.
        Returns:
            the batch, and the places of rows that were overwritten meanwhile.
        """
        assert self._core is not None
        made = self._core.draw(table, parts, shares, self._pool)
        return None if made is None else (self._on(made[0], made[1], shapes), made[2])

    def take(
        self, table: _rows.Table, parts: tuple[int, ...], rows: Rows, stamps: Rows, shapes: Sequence[tuple[int, ...]]
    ) -> tuple[Batch, tuple[int, ...]]:
        """Do the same as `draw` with rows that were drawn before, and their stamps."""
        assert self._core is not None
        block, offsets, lost = self._core.take(table, parts, rows, stamps, self._pool)
        return self._on(block, offsets, shapes), lost

    def _on(self, block: Any, offsets: tuple[int, ...], shapes: Sequence[tuple[int, ...]]) -> Batch:
        """Return the arrays of a block; numpy takes any exporter of a buffer."""
        key = tuple(shapes)
        whole = self._shapes.get(key)
        if whole is None:
            if len(self._shapes) >= _SHAPES_KNOWN:
                self._shapes.clear()
            whole = self._shapes[key] = [shapes[which] + item for which, _, item in self._items]
        dtypes = self._dtypes
        arrays = [np.ndarray(shape, dtype, block, offset) for shape, dtype, offset in zip(whole, dtypes, offsets, strict=True)]
        return Batch(arrays, shapes, block)

    def patch(self, batch: Batch, rows: Array | Sequence[Array], at: Array | Sequence[Array]) -> None:
        """Copy other rows over some places of a batch, in place.

        Args:
            batch: made by this gather.
            rows: as for a call, for each set.
            at: for each set, of the shape of its rows: the places, counted through the flattened rows of the batch.
        Raises:
            IndexError, TypeError, ValueError: as a call; nothing was copied.
        """
        sets, places = self._checked(rows), self._checked(at)
        if batch._block is not None and self._core is not None:
            self._core.patch(batch._block, tuple(int(np.prod(shape)) for shape in batch._shapes), tuple(sets), tuple(places))
            return
        for which, (rows_of_set, at_of_set) in enumerate(zip(sets, places, strict=True)):
            if rows_of_set.size != at_of_set.size:
                raise ValueError(f"set {which} has {rows_of_set.size} rows and {at_of_set.size} places")
            _check_range("at", at_of_set, 0, int(np.prod(batch._shapes[which])))
        taken = self._taken(sets)
        for array, new, (which, _, item) in zip(batch.arrays, taken, self._items, strict=True):
            array.reshape(-1, *item)[places[which].ravel()] = new.reshape(-1, *item)

    def close(self) -> None:
        """Let go of the columns; batches stay as they are. Idempotent."""
        if self._core is not None:
            self._core.close()
        self._columns = []

    def __enter__(self) -> Gather:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def stats(self) -> dict[str, int]:
        """Return counters: blocks allocated, reused, and idle now."""
        return {"blocks_allocated": 0, "blocks_reused": 0, "blocks_idle": 0} if self._core is None else self._pool.stats()

    def _checked(self, rows: Array | Sequence[Array]) -> list[Rows]:
        given = [rows] if isinstance(rows, np.ndarray) else list(rows)
        if len(given) != self._sets:
            raise ValueError(f"{self._sets} sets of rows are needed, got {len(given)}")
        return [_as_rows(rows_of_set) for rows_of_set in given]

    def _taken(self, sets: Sequence[Rows]) -> list[Array]:
        """Gather with numpy alone: what the compiled pass does, readably."""
        if not self._columns:
            raise ValueError("this gather was closed")
        for which, rows in enumerate(sets):
            limit = min(len(column) for column, follows in zip(self._columns, self._follows, strict=True) if follows == which)
            _check_range("rows", rows, -1, limit)
        arrays = []
        for column, which in zip(self._columns, self._follows, strict=True):
            rows = sets[which]
            out = np.zeros((*rows.shape, *column.shape[1:]), column.dtype)
            if len(column):
                column.take(rows, axis=0, mode="clip", out=out)
            out[rows < 0] = np.zeros((), column.dtype)
            arrays.append(out)
        return arrays


def _as_rows(rows: Any) -> Rows:
    array = np.asarray(rows)
    if array.dtype is _INT64 and array.flags.c_contiguous:
        return array
    if array.dtype.kind not in "iu" and array.size:
        raise TypeError(f"row numbers must be integers, got dtype {array.dtype}")
    return np.ascontiguousarray(array, np.int64).reshape(array.shape)


def _check_range(name: str, rows: Rows, lowest: int, end: int) -> None:
    bad = np.flatnonzero((rows.ravel() < lowest) | (rows.ravel() >= end))
    if bad.size:
        raise IndexError(f"{name}[{bad[0]}] is {rows.ravel()[bad[0]]}; it must be from {lowest} to {end - 1}")


def _bytes_of(column: Array, number: int) -> Array:
    """Return a view of a column as bytes `(rows, row_bytes)`, whatever its dtype (bfloat16 exports no buffer of its own)."""
    if column.ndim < 1:
        raise ValueError(f"column {number} has no rows: its shape is ()")
    if column.dtype.hasobject:
        raise TypeError(f"column {number} has dtype {column.dtype}: Python objects cannot be gathered")
    row = column.strides[1:]
    packed = np.empty(column.shape[1:], column.dtype).strides
    in_one_piece = all(size <= 1 or got == want for size, got, want in zip(column.shape[1:], row, packed, strict=True))
    row_bytes = column.dtype.itemsize * int(np.prod(column.shape[1:], dtype=np.int64))
    if row_bytes and len(column) > 1 and not (in_one_piece and column.strides[0] >= row_bytes):
        raise ValueError(f"column {number} of shape {column.shape} has strides {column.strides}: each row must be in one piece")
    if row_bytes == 0 or len(column) == 0:
        return np.empty((len(column), row_bytes), np.uint8)
    itemsize = column.dtype.itemsize
    flat = np.lib.stride_tricks.as_strided(column, (len(column), row_bytes // itemsize), (column.strides[0], itemsize))
    return flat.view(np.uint8)
