"""Reading: copies of fields of rows, wherever the storage keeps them.

Who samples names fields and rows; this is the one place that knows that an observation lies in frames, and that the one that
follows it begins one frame later.

    rows of a set       7          2         -1
    frames, own         3 4 5      8 9 0     -1 -1 -1       stack = 3
    frames, next        4 5 6      9 0 1     -1 -1 -1
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from edgeml_ipc.data.columns import Array
from edgeml_ipc.data.gather import COMPILED, Batch, Gather, Rows
from edgeml_ipc.data.schema import NEXT, ROW, STACK
from edgeml_ipc.data.storage import Storage
from edgeml_ipc.errors import ConnectionClosed

ABOUT: Final = "about."
_IN_ROW, _OWN, _NEXT = range(3)
_STACKED: Final = 4


class Reading(NamedTuple):
    """Copies that belong to the caller.

    Attributes:
        arrays: one for each field, in order: `(*rows.shape, *item)`; those of stacked frames need not be contiguous.
        batch: what they were made of, to patch them.
    """

    arrays: list[Array]
    batch: Batch


class Drawn(NamedTuple):
    """Rows that were drawn and copied.

    Attributes:
        lost: places in the batch of rows that were overwritten meanwhile.
    """

    reading: Reading
    lost: tuple[int, ...]


class _Source(NamedTuple):
    """Where a field lies: which column, which set of rows, and which frames it takes for a row (`stacked`: all of a stack)."""

    array: Array
    group: int
    part: int
    stacked: bool
    axis: int


class Reader:
    """Copies fields of any rows of a storage, by one compiled pass.

    Rows that are written meanwhile may arrive torn: ask `table.intact` afterwards, draw others and `patch`.

    Threads and processes: any thread may call.
    """

    def __init__(self, storage: Storage, fields: Sequence[str], groups: Sequence[int] | None = None) -> None:
        """Prepare to copy `fields`.

        Args:
            fields: names of leaves of the schema (`storage.columns.shapes`), or `about.` and a name of `storage.about.shapes`.
                A field may be named more than once.
            groups: for each field, which of the sets of rows it follows, numbered from 0 without a gap; None: all set 0.
        """
        self._table, self._stack = storage.table, storage.schema.stack
        numbers = [0] * len(fields) if groups is None else groups
        self._sources = [_source(storage, field, group) for field, group in zip(fields, numbers, strict=True)]
        self._groups = max(numbers) + 1
        # What the columns follow: each (group, part, stacked) once.
        self._sets = list(dict.fromkeys(source[1:4] for source in self._sources))
        places = {key: number for number, key in enumerate(self._sets)}
        self._framed = sorted({group for group, part, _ in self._sets if part != _IN_ROW})
        self._parts = tuple(part + _STACKED * stacked for _, part, stacked in self._sets)
        self._turns = any(source.stacked for source in self._sources)
        self._compiled = COMPILED and storage.segment is not None
        self._gather = Gather([source.array for source in self._sources], [places[source[1:4]] for source in self._sources])

    def draw(self, shares: npt.NDArray[np.float64]) -> Drawn | None:
        """Copy the rows that lie at `shares` of all that are held; for a reader of one set of rows.

        Args:
            shares: `(batch,)` in [0, 1).
        Returns:
            None: no row is held.
        Raises:
            ConnectionClosed: the buffer was closed meanwhile.
        """
        count = len(shares)
        if not self._compiled:
            rows, stamps = np.empty(count, np.int64), np.empty(count, np.int64)
            return self._taken(rows, stamps) if self._table.draw(shares, rows, stamps) else None
        table: Any = self._table
        try:
            made = self._gather.draw(table, self._parts, shares, self._shapes_of(count))
        except ValueError as error:
            raise ConnectionClosed("the buffer was closed on this side") from error
        return None if made is None else Drawn(self._reading(made[0]), made[1])

    def take(self, rows: Rows, stamps: Rows) -> Drawn:
        """Copy rows, `(batch,)`, and look whether they still stood afterwards; for a reader of one set of rows.

        Raises:
            ConnectionClosed: the buffer was closed meanwhile.
        """
        if not self._compiled:
            return self._taken(rows, stamps)
        table: Any = self._table
        try:
            batch, lost = self._gather.take(table, self._parts, rows, stamps, self._shapes_of(len(rows)))
        except ValueError as error:
            raise ConnectionClosed("the buffer was closed on this side") from error
        return Drawn(self._reading(batch), lost)

    def read(self, rows: Rows | Sequence[Rows]) -> Reading:
        """Copy fields of rows into a new batch.

        Args:
            rows: for each set an array of row numbers of any shape, or one array where there is one set. -1 gives zeros.
        Raises:
            ConnectionClosed: the buffer was closed meanwhile.
        """
        try:
            batch = self._gather(self._places(rows))
        except ValueError as error:
            raise ConnectionClosed("the buffer was closed on this side") from error
        return self._reading(batch)

    def patch(self, reading: Reading, rows: Rows | Sequence[Rows], at: Rows | Sequence[Rows]) -> None:
        """Copy other rows over places of a reading, in place.

        Args:
            rows: as for `read`. at: for each set, of the shape of its rows: the places, counted through its flattened rows.
        Raises:
            ConnectionClosed: the buffer was closed meanwhile.
        """
        places = self._groups_of(at)
        spread = [self._spread(places[group]) if stacked else places[group] for group, _, stacked in self._sets]
        try:
            self._gather.patch(reading.batch, self._places(rows), spread)
        except ValueError as error:
            raise ConnectionClosed("the buffer was closed on this side") from error

    def close(self) -> None:
        """Let go of the columns; readings stay as they are. Idempotent."""
        self._gather.close()

    def stats(self) -> dict[str, int]:
        """Return counters of the memory of batches: blocks allocated, reused, and idle now."""
        return self._gather.stats()

    def _taken(self, rows: Rows, stamps: Rows) -> Drawn:
        whole = np.empty(len(rows), np.bool_)
        reading = self.read(rows)
        self._table.intact(rows, stamps, whole)
        return Drawn(reading, tuple(np.flatnonzero(~whole).tolist()))

    def _shapes_of(self, count: int) -> list[tuple[int, ...]]:
        if self._stack == 1:
            return [(count,)] * len(self._sets)
        return [(count, self._stack) if stacked else (count,) for *_, stacked in self._sets]

    def _reading(self, batch: Batch) -> Reading:
        if not self._turns:
            return Reading(batch.arrays, batch)
        return Reading([self._turned(*pair) for pair in zip(self._sources, batch.arrays, strict=True)], batch)

    def _groups_of(self, rows: Rows | Sequence[Rows]) -> list[Rows]:
        found = [rows] if isinstance(rows, np.ndarray) else list(rows)
        assert len(found) == self._groups, "one array of rows for each group"
        return found

    def _places(self, rows: Rows | Sequence[Rows]) -> list[Rows]:
        """Return, for each set that columns follow, the rows or frames that are to be copied."""
        groups = self._groups_of(rows)
        frames = {group: self._frames(groups[group]) for group in self._framed}
        return [
            groups[group] if part == _IN_ROW else self._part(frames[group][part - _OWN], stacked)
            for group, part, stacked in self._sets
        ]

    def _frames(self, rows: Rows) -> tuple[Rows, Rows]:
        flat = np.ascontiguousarray(rows, np.int64)
        shape = rows.shape if self._stack == 1 else (*rows.shape, self._stack)
        own, following = np.empty(shape, np.int64), np.empty(shape, np.int64)
        self._table.frames(flat, own, following)
        return own, following

    def _part(self, frames: Rows, stacked: bool) -> Rows:
        return frames if stacked or self._stack == 1 else np.ascontiguousarray(frames[..., -1])

    def _spread(self, places: Rows) -> Rows:
        spread: Rows = places[..., None] * self._stack + np.arange(self._stack)
        return spread

    def _turned(self, source: _Source, array: Array) -> Array:
        """Put the axis of the frames where the item has it."""
        if not source.stacked:
            return array
        item_dims = source.array.ndim  # a frame has one dimension less than the column, an item has as many
        first = array.ndim - item_dims
        return np.moveaxis(array, first, first + source.axis)


def _source(storage: Storage, field: str, group: int) -> _Source:
    if field.startswith(ABOUT):
        return _Source(storage.about.arrays[field[len(ABOUT) :]], group, _IN_ROW, False, 0)
    columns = {column.field.name: column for column in storage.schema.columns}
    is_next = field not in columns
    name = field[len(NEXT) :] if is_next else field
    column, array = columns[name], storage.columns.arrays[name]
    if column.kind == ROW:
        return _Source(array, group, _IN_ROW, False, 0)
    return _Source(array, group, _NEXT if is_next else _OWN, column.kind == STACK, column.axis)
