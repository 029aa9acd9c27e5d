"""Storage: one segment that holds a header, the registry of writers, the chunks, the schema and the columns.

docs/replay.md draws it. The columns lie from page boundaries, `(capacity, *shape)` each, and are numpy arrays on the segment.
Where the C half was not built the columns are ordinary arrays, for one process.
"""

from __future__ import annotations

import json
import math
import mmap
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from edgeml_ipc.data import segment as segments
from edgeml_ipc.data.chunks import LocalTable, RowTable, native
from edgeml_ipc.data.columns import Array, Columns, DataShape, dtype_of, shapes_of_space
from edgeml_ipc.data.segment import Segment
from edgeml_ipc.errors import SegmentError

__all__ = ["Columns", "DataShape", "Storage", "shapes_of_space"]

ROW_SHAPES = [
    DataShape("sequence", dtype="int64"),
    DataShape("position", dtype="int64"),
    DataShape("policy_version", dtype="int64"),
    DataShape("writer", dtype="int32"),
    DataShape("flags", dtype="uint8"),
]
_NO_C_HALF = (
    "a buffer that several processes share needs the C half of this package, which was not built here: install a C compiler "
    "and reinstall edgeml_ipc, or make the buffer without a name"
)
_MAX_COLUMN_BYTES = 1 << 46


class Storage:
    """The memory of one buffer: columns, what is known of each row, and the table of chunks.

    Attributes:
        columns: of the data.
        about: of each row: sequence, position, policy_version, writer, flags.
        table: the chunks.
        segment: None where the memory is private.
        incarnation: 16 random bytes, the same in each process that attaches.
    """

    def __init__(
        self, shapes: Sequence[DataShape], geometry: tuple[int, int, int], segment: Segment | None, incarnation: bytes
    ) -> None:
        """Lay columns over a segment that has its header; use `create` or `attach`."""
        self.capacity, self.chunk_rows, self.max_writers = geometry
        self.segment = segment
        self.incarnation = incarnation
        all_shapes = [*ROW_SHAPES, *shapes]
        if segment is None:
            arrays = [np.zeros((self.capacity, *shape.shape), dtype_of(shape.dtype)) for shape in all_shapes]
        else:
            offsets, nbytes = _layout(all_shapes, geometry, len(schema_of(shapes)))
            if nbytes != segment.nbytes:
                raise SegmentError(f"{self.label} has {segment.nbytes:,} bytes; its schema needs {nbytes:,}: it is damaged")
            arrays = [_array(segment, self.capacity, *pair) for pair in zip(all_shapes, offsets, strict=True)]
        self.about = Columns(ROW_SHAPES, arrays[: len(ROW_SHAPES)])
        self.columns = Columns(shapes, arrays[len(ROW_SHAPES) :])
        self.table: RowTable
        if segment is None:
            self.table = LocalTable(*geometry, self.about.arrays["sequence"], self.about.arrays["flags"])
        else:
            rows = native()
            assert rows is not None
            self.table = rows.Table(segment.memory, segment.fd, offsets[0], offsets[len(ROW_SHAPES) - 1])

    @classmethod
    def create(cls, shapes: Sequence[DataShape], capacity: int, chunk_rows: int, max_writers: int, name: str | None) -> Storage:
        """Make storage of zeros.

        Args:
            name: under which other processes attach; None: anonymous, or private where the C half was not built.
        Raises:
            SegmentError: the name is taken, memory is short, or there is no C half and `name` is given.
            ValueError: sizes out of range.
        """
        geometry = (capacity, chunk_rows, max_writers)
        rows = native()
        if rows is None:
            if name is not None:
                raise SegmentError(f"the segment {name!r} cannot be made: {_NO_C_HALF}")
            return cls(shapes, geometry, None, os.urandom(16))
        schema, incarnation = schema_of(shapes), os.urandom(16)
        _, nbytes = _layout([*ROW_SHAPES, *shapes], geometry, len(schema))
        try:
            segment = Segment.create(name, nbytes)
        except SegmentError:
            if name is None or not segments.unlink_abandoned(name, lambda found: rows.is_ready(found.memory)):
                raise
            segment = Segment.create(name, nbytes)
        try:
            rows.format(segment.memory, *geometry, schema, incarnation)
            rows.publish(segment.memory)
            storage = cls(shapes, geometry, segment, incarnation)
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
            *geometry, schema, incarnation = rows.inspect(segment.memory)
            storage = cls(shapes_in(schema), (geometry[0], geometry[1], geometry[2]), segment, incarnation)
        except (SegmentError, ValueError, TypeError) as error:
            segment.close()
            raise SegmentError(f"cannot attach to {segments.described(segment.name)}: {error}") from error
        storage.table.recover()
        return storage

    @property
    def label(self) -> str:
        """How a message names this storage."""
        return "private memory" if self.segment is None else segments.described(self.segment.name)

    def close(self) -> None:
        """End this process's writers and let go of the segment; its name stays. Idempotent."""
        self.table.close()
        if self.segment is not None:
            self.segment.close()

    def unlink(self) -> None:
        """Remove the segment's name. Idempotent."""
        if self.segment is not None:
            self.segment.unlink()


def schema_of(shapes: Sequence[DataShape]) -> bytes:
    """Return the shapes as they are written into a segment."""
    return json.dumps([[shape.name, list(shape.shape), shape.dtype] for shape in shapes]).encode()


def shapes_in(schema: bytes) -> list[DataShape]:
    """Return the shapes that a segment's schema describes. Raises ValueError, TypeError: it describes none."""
    entries = json.loads(schema)
    shapes = []
    for name, shape, dtype in entries:
        if not isinstance(name, str) or not all(type(size) is int and 0 <= size < _MAX_COLUMN_BYTES for size in shape):
            raise ValueError(f"the column {name!r} of shape {shape!r} is not one")
        shapes.append(DataShape(name, tuple(shape), dtype_of(dtype).name))
    if not shapes or len({shape.name for shape in shapes}) != len(shapes):
        raise ValueError(f"the columns {[shape.name for shape in shapes]} are not a set of names")
    return shapes


def _column_bytes(shape: DataShape, capacity: int) -> int:
    return capacity * math.prod(shape.shape) * dtype_of(shape.dtype).itemsize


def _layout(shapes: Sequence[DataShape], geometry: tuple[int, int, int], schema_bytes: int) -> tuple[list[int], int]:
    """Return the offset of each column and the size of the segment, both in bytes."""
    rows = native()
    assert rows is not None
    end, offsets = rows.schema_at(*geometry) + schema_bytes, []
    for shape in shapes:
        offsets.append(-(-end // mmap.PAGESIZE) * mmap.PAGESIZE)
        end = offsets[-1] + _column_bytes(shape, geometry[0])
        if end > _MAX_COLUMN_BYTES:
            raise ValueError(f"{geometry[0]:,} rows of {shape.name!r} of shape {shape.shape} are out of range")
    return offsets, -(-end // mmap.PAGESIZE) * mmap.PAGESIZE


def _array(segment: Segment, capacity: int, shape: DataShape, offset: int) -> Array:
    dtype = dtype_of(shape.dtype)
    count = capacity * math.prod(shape.shape)
    array: np.ndarray[Any, np.dtype[Any]] = np.frombuffer(segment.memory, dtype, count, offset)
    return array.reshape(capacity, *shape.shape)
