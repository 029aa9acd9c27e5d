"""Saved rows: what a file that was saved holds, after everything in it was checked. `saving.py` says what its sections are."""

from __future__ import annotations

import sys
from typing import Final

import msgspec
import numpy as np

from edgeml_ipc.data.columns import Array, DataShape, dtype_of
from edgeml_ipc.data.layout import Geometry, Mask, Run
from edgeml_ipc.data.reading import ABOUT
from edgeml_ipc.data.saved_file import SavedFile
from edgeml_ipc.data.saving import ABOUT_DTYPES, Header, derived, row_bytes_of, stacked
from edgeml_ipc.data.schema import Schema

_COUNTERS: Final = {"inserted", "sampled", "redrawn"}
_FLAGS: Final = {"stored_next", "stored_stack"}
_MOST: Final = 1 << 62
_ALL_FLAGS: Final = 15


class SavedRows:
    """`Source` of a file that `save` wrote. Made only of files of which everything was checked.

    Attributes:
        shapes: of the columns.
        generators: states of random generators, as numpy takes them.
    """

    def __init__(self, file: SavedFile) -> None:
        """Check a whole file.

        Raises:
            SegmentError: it is damaged, or says what cannot be.
        """
        self._file = file
        header, schema = _parsed(file)
        self.shapes = schema.fields
        self.geometry = _checked_geometry(file, header)
        try:
            self.generators = {name: state.checked() for name, state in header.generators.items()}
        except ValueError as error:
            raise file.damaged(str(error)) from error
        self._by_name = {shape.name: shape for shape in self.shapes}
        self._pairs, self._stacks, self._frames = derived(self._by_name), stacked(schema), schema.stack
        self._sizes = {name: row_bytes_of(shape) for name, shape in self._by_name.items()}
        self._rows = header.rows
        self.next_sequence, self.counters = header.next_sequence, header.counters
        self._check_numbers(header)
        bools = {f"columns.{name}" for name, shape in self._by_name.items() if shape.dtype == "bool"}
        bools |= {f"next.{name}" for name, shape in self._by_name.items() if shape.dtype == "bool"} | _FLAGS
        file.check(header.sections, bools.__contains__)
        self._check_sizes(header)
        self.runs = self._checked_runs()
        self._check_about()

    def read(self, begin: int, end: int) -> tuple[dict[str, Array], dict[str, Array]]:
        """See `Source`."""
        more = min(end + 1, self._rows)
        values = {name: self._column(name, begin, more) for name in self._by_name if name not in self._pairs}
        if self._pairs:
            stored = np.flatnonzero(self._stored[begin:end])
            first = int(self._stored_before[begin])
        for name, of in self._pairs.items():
            nexts = np.empty((end - begin, *self._by_name[name].shape), dtype_of(self._by_name[name].dtype))
            nexts[: more - begin - 1] = values[of][1 : more - begin]
            nexts[stored] = self._items(f"next.{name}", self._by_name[name], first, first + len(stored))
            values[name] = nexts
        return {name: values[name][: end - begin] for name in self._by_name}, self._about_of(begin, end)

    def _about_of(self, begin: int, end: int) -> dict[str, Array]:
        return {
            name: self._items(ABOUT + name, DataShape(name, dtype=dtype), begin, end) for name, dtype in ABOUT_DTYPES.items()
        }

    def _column(self, name: str, begin: int, end: int) -> Array:
        shape = self._by_name[name]
        if name not in self._stacks:
            return self._items(f"columns.{name}", shape, begin, end)
        return self._stack(name, shape, self._stacks[name], begin, end)

    def _stack(self, name: str, shape: DataShape, axis: int, begin: int, end: int) -> Array:
        """Put stacks together: the frames since the last row that has its whole stack, and before them those of that one."""
        frame = DataShape(name, shape.shape[:axis] + shape.shape[axis + 1 :], shape.dtype)
        rows = np.arange(begin, end)
        number = np.searchsorted(self._whole, rows, side="right") - 1
        start = self._whole[number]
        first, first_whole = max(0, begin - self._frames + 1), int(number[0]) if len(rows) else 0
        newest = self._items(f"columns.{name}", frame, first, end)
        stacks = DataShape(name, (self._frames, *frame.shape), shape.dtype)
        whole = self._items(f"stack.{name}", stacks, first_whole, int(number[-1]) + 1 if len(rows) else 0)
        items = np.empty((end - begin, *stacks.shape), dtype_of(shape.dtype))
        for back in range(self._frames):
            at = rows - back
            since = at >= start
            items[since, self._frames - 1 - back] = newest[at[since] - first]
            old = ~since
            items[old, self._frames - 1 - back] = whole[number[old] - first_whole, self._frames - 1 - (start[old] - at[old])]
        return np.moveaxis(items, 1, 1 + axis)

    def _items(self, section: str, shape: DataShape, begin: int, end: int) -> Array:
        size = row_bytes_of(shape)
        raw = self._file.read(section, begin * size, end * size)
        return raw.view(dtype_of(shape.dtype)).reshape(end - begin, *shape.shape)

    def _check_numbers(self, header: Header) -> None:
        counters = header.counters
        if header.byte_order != sys.byteorder:
            raise self._file.damaged(f"its bytes are in {header.byte_order!r} order, this machine's in {sys.byteorder!r}")
        if set(counters) != _COUNTERS or not all(0 <= count < _MOST for count in [*counters.values(), header.next_sequence]):
            raise self._file.damaged(f"its counters are {counters}, its next sequence number is {header.next_sequence}")
        if not 0 <= header.rows <= min(header.capacity, counters["inserted"], header.next_sequence):
            raise self._file.damaged(f"it has {header.rows} rows of {counters['inserted']}, and room for {header.capacity}")

    def _check_sizes(self, header: Header) -> None:
        rows, file = header.rows, self._file
        sizes = {ABOUT + name: rows * np.dtype(dtype).itemsize for name, dtype in ABOUT_DTYPES.items()}
        sizes |= {f"columns.{name}": rows * size for name, size in self._sizes.items() if name not in self._pairs}
        if self._stacks:
            sizes["stored_stack"] = rows
            self._whole = np.flatnonzero(self._flags("stored_stack"))
            sizes |= {f"columns.{name}": rows * self._sizes[name] // self._frames for name in self._stacks}
            sizes |= {f"stack.{name}": len(self._whole) * self._sizes[name] for name in self._stacks}
            if rows and self._whole[:1].tolist() != [0]:
                raise file.damaged("its first row says that its observations go on from those of the row before")
        if self._pairs:
            sizes["stored_next"] = rows
            self._stored = self._flags("stored_next")
            self._stored_before = np.concatenate(([0], np.cumsum(self._stored)))
            sizes |= {f"next.{name}": int(self._stored_before[-1]) * self._sizes[name] for name in self._pairs}
            if rows and not self._stored[-1:].all():
                raise file.damaged("its last row says that its next observations are those of the row after it")
        for name, size in sizes.items():
            if file.bytes_in(name) != size:
                raise file.damaged(f"its section {name!r} has {file.bytes_in(name):,} bytes, {size:,} are needed")
        if unknown := {section.name for section in header.sections} - {*sizes, "runs"}:
            raise file.damaged(f"its sections {sorted(unknown)} are not known")

    def _flags(self, name: str) -> Mask:
        flags: Mask = self._file.read(name, 0, min(self._rows, self._file.bytes_in(name))).view(np.bool_)
        return flags

    def _checked_runs(self) -> list[Run]:
        nbytes = self._file.bytes_in("runs")
        if nbytes % 32:
            raise self._file.damaged(f"its section 'runs' has {nbytes} bytes, which is no multiple of 32")
        table = self._file.read("runs", 0, nbytes).view(np.int64).reshape(-1, 4)
        writer, follows, rows, row = table.T
        most = self.geometry.capacity
        fits = (writer > 0) & (writer < _MOST) & (rows > 0) & (rows <= most) & (row >= 0) & (row <= most - rows)
        if not (fits & (follows >= 0) & (follows <= 1)).all() or sum(rows.tolist()) != self._rows:
            raise self._file.damaged(f"its runs are not those of {self._rows} rows")
        return [Run(one[0], bool(one[1]), one[2], one[3]) for one in table.tolist()]

    def _check_about(self) -> None:
        """Refuse what is known of rows if it cannot be; sequence numbers must rise in each run."""
        starts = np.cumsum([0, *(run.rows for run in self.runs)])[:-1]
        limit = np.iinfo(np.int32).max
        for begin in range(0, self._rows, 1 << 20):
            end = min(begin + (1 << 20), self._rows)
            before = max(begin - 1, 0)
            about = self._about_of(before, end)
            sequence, position, version = about["sequence"], about["position"], about["policy_version"]
            rises = np.diff(sequence, prepend=-1) > 0
            rises[starts[(starts >= before) & (starts < end)] - before] = True
            fine = rises & (sequence >= 0) & (sequence < self.next_sequence) & (about["flags"] <= _ALL_FLAGS)
            fine &= (position >= 0) & (position <= limit) & (version >= -1) & (version <= limit)
            fine[: begin - before] = True
            if not fine.all():
                at = int(np.flatnonzero(~fine)[0])
                said = {key: int(item[at]) for key, item in about.items()}
                raise self._file.damaged(f"of its row {before + at} it says {said}")


def _parsed(file: SavedFile) -> tuple[Header, Schema]:
    try:
        header = msgspec.json.decode(file.header, type=Header)
        return header, Schema.decode(header.schema.encode())
    except (msgspec.MsgspecError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise file.damaged(f"its header is not one: {error}") from error


def _checked_geometry(file: SavedFile, header: Header) -> Geometry:
    if not 1 <= header.chunk_rows <= header.capacity <= 1 << 40:
        raise file.damaged(f"a buffer of {header.capacity} rows in chunks of {header.chunk_rows} cannot be")
    return Geometry(header.capacity, header.chunk_rows)


def described(path: str) -> tuple[Schema, Geometry]:
    """Return the schema and the sizes of the buffer that a file was saved from, by its header alone.

    Raises:
        SegmentError: it is not such a file, or its header is damaged.
    """
    with SavedFile(path) as file:
        header, schema = _parsed(file)
        return schema, _checked_geometry(file, header)
