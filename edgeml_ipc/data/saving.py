"""Saving: the rows of a buffer in one file.

    runs                   per run of rows of one writer: writer, whether it goes on from its run before, rows, first row
    about.sequence ...     of each row, oldest first
    columns.<name>         of each row
    stored_next            per row: 0 if `next_observations` are the next row's observations, bit for bit; 1 if not
    next.<name>            of the rows with a 1 only
    stored_stack           per row, where observations are stacks: 0 if they are those of the row before and one frame more;
                           then columns.<name> has the newest frame of each row, and
    stack.<name>           the whole stacks of the rows with a 1

`saved_file` has the bytes, `loading` the way back. Rows are copied while others write: those that were
overwritten before they were copied are left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from edgeml_ipc.data.chunks import snapshot
from edgeml_ipc.data.columns import Array, DataShape, dtype_of
from edgeml_ipc.data.reading import ABOUT, Reader
from edgeml_ipc.data.saved_file import Maker, Section, bytes_of
from edgeml_ipc.data.schema import NEXT, OBSERVATIONS, STACK, Schema
from edgeml_ipc.data.steps import ChunkMap
from edgeml_ipc.data.storage import Storage

Progress = Callable[[int, int], object]
Mask = npt.NDArray[np.bool_]

_PIECE_BYTES: Final = 1 << 24
ABOUT_DTYPES: Final = {"sequence": "int64", "position": "int64", "policy_version": "int64", "flags": "uint8"}
_ALL_FLAGS: Final = 15  # the others tell how a buffer stores its rows
DERIVED: Final = NEXT + OBSERVATIONS


class Generator(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The state of a random generator of numpy's: a name, numbers of 128 bits in hex, and what is left of a draw."""

    name: str
    state: str
    increment: str
    left: int
    has_left: bool

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Generator:
        """Take the state that numpy gives."""
        inner = state["state"]
        has_left = bool(state["has_uint32"])
        return cls(state["bit_generator"], f"{inner['state']:032x}", f"{inner['inc']:032x}", int(state["uinteger"]), has_left)

    def checked(self) -> dict[str, Any]:
        """Return the state as numpy takes it. Raises ValueError: it is none."""
        state, increment = int(self.state, 16), int(self.increment, 16)
        if self.name != "PCG64" or not (0 <= state < 1 << 128 and 0 <= increment < 1 << 128 and 0 <= self.left < 1 << 32):
            raise ValueError(f"the state of a generator {self.name!r} is not one of PCG64")
        inner = {"state": state, "inc": increment}
        return {"bit_generator": self.name, "state": inner, "has_uint32": int(self.has_left), "uinteger": self.left}


class Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a saved file says of itself."""

    byte_order: str
    schema: str
    capacity: int
    chunk_rows: int
    rows: int
    next_sequence: int
    counters: dict[str, int]
    incarnation: str
    generators: dict[str, Generator]
    sections: list[Section]


def save(storage: Storage, generators: Mapping[str, Mapping[str, Any]], path: str, progress: Progress | None) -> None:
    """Write the rows that are held now, and states of random generators; see `ReplayBuffer.save`."""
    counts = storage.table.counts()
    with Maker(path) as maker:
        copy = _Copy(storage, maker)
        copy.all_rows(progress)
        maker.part("runs", np.array(copy.runs(), np.int64).reshape(-1, 4))
        maker.finish(
            {
                "schema": storage.schema.encode().decode(),
                "capacity": storage.capacity,
                "chunk_rows": storage.chunk_rows,
                "rows": copy.rows,
                "next_sequence": max(counts[2], copy.newest) + 1,
                "counters": {"inserted": max(counts[0], copy.rows), "sampled": counts[3], "redrawn": counts[4]},
                "incarnation": storage.incarnation.hex(),
                "generators": {name: Generator.of(state) for name, state in generators.items()},
            }
        )


def row_bytes_of(shape: DataShape) -> int:
    """Return the bytes of one item of a field."""
    return math.prod(shape.shape) * dtype_of(shape.dtype).itemsize


def rows_at_once(storage: Storage) -> int:
    """Return how many rows are copied in one piece."""
    row_bytes = sum(row_bytes_of(shape) for shape in storage.columns.shapes.values())
    return max(1, min(1 << 16, _PIECE_BYTES // max(1, row_bytes)))


def derived(shapes: Mapping[str, DataShape]) -> dict[str, str]:
    """Return, for each field of `next_observations`, the field of `observations` that it is in the row before."""
    pairs = {name: name[len(NEXT) :] for name in shapes if name.split(".")[0] == DERIVED}
    same = {name: of for name, of in pairs.items() if of in shapes and shapes[of] == DataShape(of, *kind_of(shapes[name]))}
    return same if len(same) == len(pairs) else {}


def stacked(schema: Schema) -> dict[str, int]:
    """Return the fields that are stacks of frames, and along which axis."""
    return {column.field.name: column.axis for column in schema.columns if column.kind == STACK}


def kind_of(shape: DataShape) -> tuple[tuple[int, ...], str]:
    """Return what two fields must have in common besides their names."""
    return shape.shape, shape.dtype


def words_of(rows: Array) -> Array:
    """Return rows as `(rows, words)` of the largest unsigned integers that they are made of."""
    flat = bytes_of(rows).reshape(len(rows), math.prod(rows.shape[1:]) * rows.dtype.itemsize)
    size = next(size for size in (8, 4, 2, 1) if flat.shape[1] % size == 0)
    return flat.view(f"u{size}")


class _Copy:
    """One pass over the rows of a buffer, oldest first, into a file.

    Attributes:
        rows: written. newest: the highest sequence number among them, or -1.
    """

    def __init__(self, storage: Storage, maker: Maker) -> None:
        self._storage, self._table, self._maker = storage, storage.table, maker
        spans, used = snapshot(storage.table)
        self._spans, self._used = np.ascontiguousarray(spans[:used]), used
        self._total = int(spans[used - 1, 0]) if used else 0
        self._before_run = ChunkMap(storage).steps_of(self._spans).predecessors()
        shapes = storage.columns.shapes
        self._pairs = derived(shapes)
        self._stacks = stacked(storage.schema)
        self._oldest: dict[str, Array] = {}  # stacks of the last row
        self._fields = list(shapes)
        self._about = [*ABOUT_DTYPES, "writer"]
        self._step = rows_at_once(storage)
        for name, dtype in ABOUT_DTYPES.items():
            maker.column(ABOUT + name, self._total * np.dtype(dtype).itemsize)
        for name, shape in shapes.items():
            if name not in self._pairs:
                frames = storage.schema.stack if name in self._stacks else 1
                maker.column(f"columns.{name}", self._total * row_bytes_of(shape) // frames)
        if self._stacks:
            maker.column("stored_stack", self._total)
        if self._pairs:
            maker.column("stored_next", self._total)
        self._kept = np.zeros(self._total, np.bool_)
        self._writers: list[Array] = []
        self._before: dict[str, Array] = {}  # next_observations of the last row, until it is known what comes after it
        self.rows, self.newest = 0, -1

    def all_rows(self, progress: Progress | None) -> None:
        """Copy what still stands, piece by piece."""
        reader = Reader(self._storage, [*self._fields, *(ABOUT + name for name in self._about)])
        try:
            for begin in range(0, self._total, self._step):
                end = min(begin + self._step, self._total)
                rows, stamps, whole = np.empty(end - begin, np.int64), np.empty(end - begin, np.int64), self._kept[begin:end]
                self._table.resolve(self._spans, self._used, np.arange(begin, end), rows, stamps)
                arrays = reader.read(rows).arrays
                if self._table.intact(rows, stamps, whole):
                    arrays = [array[whole] for array in arrays]
                values = dict(zip([*self._fields, *self._about], arrays, strict=True))
                if len(values["writer"]):
                    self._add(values)
                if progress is not None:
                    progress(end, self._total)
        finally:
            reader.close()
        if self._before:
            self._add_next(np.ones(1, np.bool_), self._before)

    def _add(self, values: dict[str, Array]) -> None:
        self.rows += len(values["writer"])
        self.newest = max(self.newest, int(values["sequence"].max()))
        self._writers.append(values["writer"])
        for name, dtype in ABOUT_DTYPES.items():
            value = values[name] & _ALL_FLAGS if name == "flags" else values[name]
            self._maker.extend(ABOUT + name, value.astype(dtype, copy=False))
        for name in self._fields:
            if name not in self._pairs and name not in self._stacks:
                self._maker.extend(f"columns.{name}", values[name])
        if self._stacks:
            self._add_stacks({name: np.moveaxis(values[name], 1 + axis, 1) for name, axis in self._stacks.items()})
        if not self._pairs:
            return
        if self._before:
            self._add_next(self._differs(self._before, {of: values[of][:1] for of in self._pairs.values()}), self._before)
        inner = {name: values[name][:-1] for name in self._pairs}
        self._add_next(self._differs(inner, {of: values[of][1:] for of in self._pairs.values()}), inner)
        self._before = {name: values[name][-1:].copy() for name in self._pairs}

    def _add_stacks(self, stacks: dict[str, Array]) -> None:
        whole = np.zeros(len(next(iter(stacks.values()))), np.bool_)
        whole[0] = not self._oldest
        for name, items in stacks.items():
            begin = 0 if self._oldest else 1
            before = np.concatenate([self._oldest[name], items[:-1]]) if self._oldest else items[:-1]
            whole[begin:] |= (words_of(before[:, 1:]) != words_of(items[begin:, :-1])).any(axis=1)
            self._maker.extend(f"columns.{name}", items[:, -1])
        self._maker.extend("stored_stack", whole)
        if whole.any():
            for name, items in stacks.items():
                self._maker.part(f"stack.{name}", items[whole])
        self._oldest = {name: items[-1:].copy() for name, items in stacks.items()}

    def _differs(self, nexts: Mapping[str, Array], observations: Mapping[str, Array]) -> Mask:
        rows = len(next(iter(nexts.values())))
        differs = np.zeros(rows, np.bool_)
        if rows:
            for name, of in self._pairs.items():
                differs |= (words_of(nexts[name]) != words_of(observations[of])).any(axis=1)
        return differs

    def _add_next(self, stored: Mask, nexts: Mapping[str, Array]) -> None:
        self._maker.extend("stored_next", stored)
        if stored.any():
            for name in self._pairs:
                self._maker.part(f"next.{name}", nexts[name][stored])

    def runs(self) -> list[tuple[int, int, int, int]]:
        """List the runs of rows that were written: writer, follows, rows, row."""
        if not self.rows:
            return []
        writers = np.concatenate(self._writers)
        found: list[tuple[int, int, int, int]] = []
        ended: dict[int, int] = {}  # by writer, the last run of the snapshot of which the last row was kept
        written = begin = 0
        for at, (end, row, _) in enumerate(self._spans.tolist()):
            kept = self._kept[begin:end]
            for low, high in np.flatnonzero(np.diff(kept, prepend=False, append=False)).reshape(-1, 2).tolist():
                writer, before = int(writers[written]), int(self._before_run[at])
                follows = low == 0 and before >= 0 and ended.get(writer) == before
                found.append((writer, int(follows), high - low, row + low))
                ended[writer] = at if high == end - begin else -1
                written += high - low
            begin = end
        return found
