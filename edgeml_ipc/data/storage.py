"""Storage: one segment that holds a header, the registry of writers, the chunks, the cursors, the schema and the columns.

docs/replay.md draws it. The columns lie from page boundaries and are numpy arrays on the segment. Where the C half was not
built the columns are ordinary arrays, for one process, and each field has one of its own.
"""

from __future__ import annotations

import math
import mmap
import os
from typing import Any, Final, NamedTuple

import numpy as np

from edgeml_ipc.data import segment as segments
from edgeml_ipc.data.chunks import RowStream, RowTable, native
from edgeml_ipc.data.columns import Array, Columns, DataShape, dtype_of, shapes_of_space
from edgeml_ipc.data.limiter import Limits, limits_in
from edgeml_ipc.data.local_table import LocalTable
from edgeml_ipc.data.schema import MAX_COLUMN_BYTES, ROW, Schema, Stored
from edgeml_ipc.data.segment import Segment
from edgeml_ipc.data.waiting import Changes
from edgeml_ipc.errors import SegmentError

__all__ = ["Columns", "DataShape", "Geometry", "Storage", "shapes_of_space"]

ROW_SHAPES: Final = [
    DataShape("sequence", dtype="int64"),
    DataShape("position", dtype="int32"),
    DataShape("policy_version", dtype="int32"),
    DataShape("writer", dtype="int32"),
    DataShape("frame", dtype="uint16"),
    DataShape("flags", dtype="uint8"),
]
CURSORS: Final = 1024
MAX_FRAMED_ROWS: Final = 32768  # of a chunk: frames are counted in 16 bits
_SPARE_SHARE: Final = 256  # one more stack of frames for so many rows, for the ends of episodes
_LAVISH_BYTES: Final = 4 << 20  # where it takes no more, each row gets frames for an observation and a following one of its own
_NO_C_HALF = (
    "a buffer that several processes share needs the C half of this package, which was not built here: install a C compiler "
    "and reinstall edgeml_ipc, or make the buffer without a name"
)


class Geometry(NamedTuple):
    """The sizes that a segment is made with."""

    capacity: int
    chunk_rows: int
    max_writers: int
    chunk_frames: int
    stack: int
    cursors: int


class Storage:
    """The memory of one buffer: columns, what is known of each row, and the table of chunks.

    Attributes:
        schema: of the columns.
        columns: the fields of an item; `columns.arrays` has those that are stored.
        about: of each row: sequence, position, policy_version, writer, frame, flags.
        table: the chunks.
        changes: how to wait until rows are committed or sampled.
        limits: of the rate, which all processes keep to; None: there is no rate limiter.
        segment: None where the memory is private.
        incarnation: 16 random bytes, the same in each process that attaches.
    """

    def __init__(self, schema: Schema, geometry: Geometry, segment: Segment | None, incarnation: bytes) -> None:
        """Lay columns over a segment that has its header; use `create` or `attach`."""
        self.schema, self.geometry = schema, geometry
        self.capacity, self.chunk_rows, self.max_writers = geometry[:3]
        self.segment = segment
        self.incarnation = incarnation
        stored = [*(Stored(shape) for shape in ROW_SHAPES), *schema.columns]
        offsets: list[int] = []
        if segment is None:
            arrays = [np.zeros((_items(column, geometry), *column.shape), dtype_of(column.field.dtype)) for column in stored]
        else:
            offsets, nbytes = _layout(stored, geometry, len(schema.encode()))
            if nbytes != segment.nbytes:
                raise SegmentError(f"{self.label} has {segment.nbytes:,} bytes; its schema needs {nbytes:,}: it is damaged")
            arrays = [_array(segment, column, geometry, offset) for column, offset in zip(stored, offsets, strict=True)]
        names = [column.field.name for column in stored]
        found = dict(zip(names[len(ROW_SHAPES) :], arrays[len(ROW_SHAPES) :], strict=True))
        self.about = Columns(ROW_SHAPES, dict(zip(names, arrays[: len(ROW_SHAPES)], strict=False)))
        self.columns = Columns(schema.fields, found)
        self.limits: Limits | None = None
        self.table: RowTable = self._table(offsets)

    def _table(self, offsets: list[int]) -> RowTable:
        self.changes: Changes
        if self.segment is None:
            local = LocalTable(self.geometry[:3], self.about.arrays, list(self.columns.arrays.values()))
            self.changes = local.changes
            return local
        rows = native()
        assert rows is not None
        flow = rows.Flow(self.segment.memory)
        self.changes, self.limits = flow, limits_in(*flow.limits())
        known = len(ROW_SHAPES)
        columns = tuple(
            (offset, column.kind, column.item_bytes, column.run_bytes)
            for column, offset in zip(self.schema.columns, offsets[known:], strict=True)
        )
        table: RowTable = rows.Table(self.segment.memory, self.segment.fd, tuple(offsets[:known]), columns)
        return table

    @classmethod
    def create(
        cls, schema: Schema, capacity: int, chunk_rows: int, max_writers: int, name: str | None, limits: Limits | None = None
    ) -> Storage:
        """Make storage of zeros.

        Args:
            name: under which other processes attach; None: anonymous, or private where the C half was not built.
            limits: of the rate, for all processes; None: no rate limiter.
        Raises:
            SegmentError: the name is taken, memory is short, or there is no C half and `name` is given.
            ValueError: sizes out of range.
        """
        rows = native()
        if rows is None:
            if name is not None:
                raise SegmentError(f"the segment {name!r} cannot be made: {_NO_C_HALF}")
            private = cls(schema.plain(), Geometry(capacity, chunk_rows, max_writers, 0, 1, 0), None, os.urandom(16))
            private.limits = limits
            return private
        geometry = Geometry(
            capacity, chunk_rows, max_writers, _chunk_frames(schema, capacity, chunk_rows), schema.stack, CURSORS
        )
        encoded, incarnation = schema.encode(), os.urandom(16)
        _, nbytes = _layout([*(Stored(shape) for shape in ROW_SHAPES), *schema.columns], geometry, len(encoded))
        try:
            segment = Segment.create(name, nbytes)
        except SegmentError:
            if name is None or not segments.unlink_abandoned(name, lambda found: rows.is_ready(found.memory)):
                raise
            segment = Segment.create(name, nbytes)
        try:
            rows.format(segment.memory, tuple(geometry), encoded, incarnation)
            if limits is not None:
                rows.Flow(segment.memory).set_limits(limits[0] or 0.0, *limits[1:])
            rows.publish(segment.memory)
            storage = cls(schema, geometry, segment, incarnation)
        except BaseException:
            segment.unlink()
            segment.close()
            raise
        segment.finish()
        return storage

    @classmethod
    def attach(cls, name: str | int) -> Storage:
        """Use storage that another process made, and end the writers that died in it.

        Raises:
            SegmentError: there is none, it is not ready, or it is not such storage, of this version, undamaged.
        """
        rows = native()
        if rows is None:
            raise SegmentError(f"the segment {name!r} cannot be used: {_NO_C_HALF}")
        segment = Segment.attach(name)
        try:
            geometry, schema, incarnation = rows.inspect(segment.memory)
            storage = cls(Schema.decode(schema), Geometry(*geometry), segment, incarnation)
        except (SegmentError, ValueError, TypeError, KeyError) as error:
            segment.close()
            raise SegmentError(f"cannot attach to {segments.described(segment.name)}: {error}") from error
        storage.table.recover()
        return storage

    @property
    def label(self) -> str:
        """How a message names this storage."""
        return "private memory" if self.segment is None else segments.described(self.segment.name)

    def stream(self) -> RowStream:
        """Become a writer.

        Raises:
            BufferFull: live writers hold every place of the registry.
        """
        return self.table.stream(self.schema.spec())

    def close(self) -> None:
        """End this process's writers and let go of the segment; its name stays. Idempotent."""
        self.table.close()
        if self.segment is not None:
            self.segment.close()

    def unlink(self) -> None:
        """Remove the segment's name. Idempotent."""
        if self.segment is not None:
            self.segment.unlink()


def _chunk_frames(schema: Schema, capacity: int, chunk_rows: int) -> int:
    """Choose how many frames a chunk has: one per row, and some for the begins and ends of episodes."""
    if not schema.has_frames:
        return 0
    if chunk_rows > MAX_FRAMED_ROWS:
        raise ValueError(f"chunk_rows must be at most {MAX_FRAMED_ROWS} where observations are stored once, got {chunk_rows}")
    stack = schema.stack
    frugal, lavish = chunk_rows + 2 * stack + stack * chunk_rows // _SPARE_SHARE, 2 * stack * chunk_rows
    frame_bytes = sum(column.nbytes for column in schema.columns if column.kind != ROW)
    is_small = -(-capacity // chunk_rows) * lavish * frame_bytes <= _LAVISH_BYTES
    return lavish if lavish <= frugal or (is_small and lavish < 1 << 16) else frugal


def _items(column: Stored, geometry: Geometry) -> int:
    """Return how many rows or frames a column has."""
    chunks = -(-geometry.capacity // geometry.chunk_rows)
    return geometry.capacity if column.kind == ROW else chunks * geometry.chunk_frames


def _layout(columns: list[Stored], geometry: Geometry, schema_bytes: int) -> tuple[list[int], int]:
    """Return the offset of each column and the size of the segment, both in bytes."""
    rows = native()
    assert rows is not None
    end, offsets = rows.schema_at(tuple(geometry)) + schema_bytes, []
    for column in columns:
        offsets.append(-(-end // mmap.PAGESIZE) * mmap.PAGESIZE)
        end = offsets[-1] + _items(column, geometry) * column.nbytes
        if end > MAX_COLUMN_BYTES:
            raise ValueError(f"{geometry.capacity:,} rows of {column.field.name!r} of shape {column.shape} are out of range")
    return offsets, -(-end // mmap.PAGESIZE) * mmap.PAGESIZE


def _array(segment: Segment, column: Stored, geometry: Geometry, offset: int) -> Array:
    items = _items(column, geometry)
    count = items * math.prod(column.shape)
    array: np.ndarray[Any, np.dtype[Any]] = np.frombuffer(segment.memory, dtype_of(column.field.dtype), count, offset)
    return array.reshape(items, *column.shape)
