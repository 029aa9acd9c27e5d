"""The rows of a buffer in the memory of one process, in Python: for where the C half was not built.

The same as `_rows.Table`, readably, under one lock; tests run both through the same steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from threading import Event, Lock
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edgeml_ipc.data.chunks import FIRST, LAST, TERMINAL, TRUNCATED, Ints, RowStream, snapshot
from edgeml_ipc.data.waiting import LocalChanges
from edgeml_ipc.errors import BufferFull, ConnectionClosed

_HOLD_S: Final = 0.05  # a writer holds back no longer


class LocalTable:
    """The rows of a buffer in this process's memory; see `RowTable`."""

    def __init__(
        self,
        geometry: tuple[int, int, int],
        about: Mapping[str, npt.NDArray[Any]],
        columns: Sequence[npt.NDArray[Any]] = (),
    ) -> None:
        """Begin with no rows.

        Args:
            geometry: capacity, chunk_rows, max_writers.
            about: the columns of what is known of each row. columns: those of the data, which streams write.
        """
        capacity, chunk_rows, max_writers = geometry
        self._about, self._columns = about, columns
        self._capacity, self._chunk_rows, self._max_writers = capacity, chunk_rows, max_writers
        self._chunks = -(-capacity // chunk_rows)
        self._stride = 1 << chunk_rows.bit_length()
        self._sequence, self._flags = about["sequence"], about["flags"]
        self.changes = LocalChanges()
        self._lock = Lock()
        self._holder = [0] * self._chunks  # place + 1
        self._reserved, self._committed, self._ended = ([0] * self._chunks for _ in range(3))
        self._before = [-1] * (2 * self._chunks)  # by chunk and generation % 2: the writer's chunk and generation before
        self._before_generation = [0] * (2 * self._chunks)
        self._before_rows = [0] * (2 * self._chunks)
        self._writers: dict[int, dict[str, int]] = {}
        self._cursors: dict[bytes, tuple[int, int | None]] = {}  # what is wanted next, or, with a writer, that less its total
        self._hand = self._next_sequence = self._next_writer = 0
        self._counts = {"inserted": 0, "sampled": 0, "redrawn": 0}
        self._go_on = Event()  # cleared by readers that want writers to hold back
        self._go_on.set()
        self._closed = False

    def close(self) -> None:
        """See `RowTable`."""
        for place in list(self._writers):
            self.forget(place)
        self._closed = True

    def register(self) -> tuple[int, int]:
        """See `RowTable`."""
        self._check_open()
        with self._lock:
            place = next((place for place in range(self._max_writers) if place not in self._writers), None)
            if place is None:
                raise BufferFull(f"all {self._max_writers} places for a writer are held: make the buffer with more max_writers")
            self._next_writer += 1
            counts = ("open", "sequence", "sequences", "total")
            self._writers[place] = {"chunk": -1, "behind": -1, "last": -1, **dict.fromkeys(counts, 0)}
            return place, self._next_writer

    def forget(self, place: int, /) -> None:
        """See `RowTable`."""
        with self._lock:
            last = self._writer(place)["last"]
            if last >= 0 and not self._flags[last] & LAST:
                self._flags[last] |= LAST | TRUNCATED
            self._holder = [0 if holder == place + 1 else holder for holder in self._holder]
            for key in [key for key, (_, at) in self._cursors.items() if at == place]:
                self._cursors[key] = (self._next_id(key), None)
            del self._writers[place]

    def reserve(self, place: int, rows: int, /) -> tuple[int, int, int]:
        """See `RowTable`."""
        self._check_open()
        if not self._go_on.wait(_HOLD_S):
            self._go_on.set()  # who asked for it has not let go: it did not need it any more, or died
        with self._lock:
            me = self._writer(place)
            room = 0
            if me["chunk"] >= 0:
                room = self._rows_in(me["chunk"]) - self._committed[me["chunk"]] % self._stride
            if not room:
                self._claim(place, me)
                room = self._rows_in(me["chunk"])
            rows = min(rows, room)
            if me["sequences"]:  # an attempt that was broken off
                rows = min(rows, me["sequences"])
            else:
                me["sequence"], me["sequences"] = self._next_sequence, rows
                self._next_sequence += rows
            chunk = me["chunk"]
            self._reserved[chunk] = max(self._reserved[chunk], self._committed[chunk] + rows)
            me["open"] = rows
            return chunk * self._chunk_rows + self._committed[chunk] % self._stride, rows, me["sequence"]

    def commit(self, place: int, /) -> None:
        """See `RowTable`."""
        with self._lock:
            me = self._writer(place)
            chunk, rows = me["chunk"], me["open"]
            if not rows:
                return
            self._committed[chunk] += rows
            self._counts["inserted"] += rows
            me["total"] += rows
            me["last"] = chunk * self._chunk_rows + self._committed[chunk] % self._stride - 1
            me["sequence"] += rows
            me["sequences"] -= rows
            me["open"] = 0
            if me["behind"] >= 0:
                self._holder[me["behind"]] = 0
            me["behind"] = -1
        self.changes.wake()

    def mark(self, place: int, flags: int, /) -> None:
        """See `RowTable`."""
        with self._lock:
            last = self._writer(place)["last"]
            if last >= 0:
                self._flags[last] |= flags

    def recover(self) -> int:
        """Return 0: who shares this memory dies with it."""
        return 0

    def max_spans(self) -> int:
        """See `RowTable`."""
        return 2 * self._chunks

    def snapshot(self, spans: Ints, /) -> int:
        """See `RowTable`."""
        self._check_open()
        with self._lock:
            order = [(self._hand + i) % self._chunks for i in range(self._chunks)]
            runs = [self._run(chunk, self._ended[chunk]) for chunk in order if self._has_older(chunk)]
            runs += [self._run(chunk, self._committed[chunk]) for chunk in order]
        count = end = 0
        for rows, row, stamp in runs:
            if rows > 0:
                end += rows
                spans[count] = end, row, stamp
                count += 1
        return count

    def resolve(self, spans: Ints, count: int, positions: Ints, rows: Ints, stamps: Ints, /) -> None:
        """See `RowTable`."""
        ends = spans[:count, 0]
        run = np.searchsorted(ends, positions, side="right")
        offset = positions - np.concatenate(([0], ends))[run]
        rows[:] = spans[run, 1] + offset
        stamps[:] = spans[run, 2] + offset

    def intact(self, rows: Ints, stamps: Ints, out: npt.NDArray[np.bool_], /) -> int:
        """See `RowTable`."""
        self._check_open()
        reserved = np.array(self._reserved)[rows // self._chunk_rows]
        np.less_equal(reserved, stamps + self._stride, out=out)
        return int(len(rows) - np.count_nonzero(out))

    def counts(self) -> tuple[int, int, int, int, int, int]:
        """See `RowTable`."""
        spans = np.empty((self.max_spans(), 3), np.int64)
        count = self.snapshot(spans)
        held = int(spans[count - 1, 0]) if count else 0
        lasts = spans[:count, 1] + np.diff(spans[:count, 0], prepend=0) - 1
        newest = int(self._sequence[lasts].max()) if count else -1
        counts = self._counts
        return counts["inserted"], held, newest, counts["sampled"], counts["redrawn"], len(self._writers)

    def tally(self, sampled: int, redrawn: int, /) -> None:
        """See `RowTable`."""
        with self._lock:
            self._counts["sampled"] += sampled
            self._counts["redrawn"] += redrawn
        self.changes.wake()

    def hold(self, nanoseconds: int, /) -> None:
        """See `RowTable`."""
        if nanoseconds:
            self._go_on.clear()
        else:
            self._go_on.set()

    def previous(self, row: int, stamp: int, /) -> tuple[int, int, int]:
        """See `RowTable`."""
        key = 2 * (row // self._chunk_rows) + (stamp // self._stride) % 2
        return self._before[key], self._before_generation[key], self._before_rows[key]

    def draw(self, shares: Any, rows: Any, stamps: Any, /) -> int:
        """See `RowTable`."""
        spans, used = snapshot(self)
        total = int(spans[used - 1, 0]) if used else 0
        if total:
            self.resolve(spans, used, (shares * total).astype(np.int64), rows, stamps)
        return total

    def steps(self, spans: Any, count: int, /) -> None:
        """See `RowTable`."""

    def stream(self, spec: Any, /) -> RowStream:
        """See `RowTable`."""
        return LocalStream(self, self._columns, self._about)

    def horizon(self) -> int:
        """See `RowTable`."""
        with self._lock:
            taken = [me["sequence"] for me in self._writers.values() if me["sequences"]]
            return min([self._next_sequence, *taken])

    def frames(self, rows: Ints, own: Ints, following: Ints, /) -> None:
        """See `RowTable`; here no column is in frames."""
        raise IndexError("this table has no frames")

    def cursor(self, key: bytes, /) -> int | None:
        """See `RowTable`."""
        self._check_open()
        with self._lock:
            return self._next_id(key) if key in self._cursors else None

    def bind(self, key: bytes, place: int, next_id: int, /) -> None:
        """See `RowTable`."""
        self._check_open()
        with self._lock:
            _, holder = self._cursors.get(key, (0, None))
            if holder not in (None, place) or (holder is None and key in self._cursors and self._next_id(key) > next_id):
                raise BufferFull("another writer has this stream of items")
            self._cursors[key] = (next_id - self._writer(place)["total"], place)

    def _next_id(self, key: bytes) -> int:
        base, place = self._cursors[key]
        return base if place is None else base + self._writers[place]["total"]

    def _check_open(self) -> None:
        if self._closed:
            raise ConnectionClosed("the buffer was closed on this side")

    def _writer(self, place: int) -> dict[str, int]:
        if place not in self._writers:
            raise ConnectionClosed("the writer was closed")
        return self._writers[place]

    def _rows_in(self, chunk: int) -> int:
        return min(self._chunk_rows, self._capacity - chunk * self._chunk_rows)

    def _has_older(self, chunk: int) -> bool:
        return self._ended[chunk] // self._stride < self._committed[chunk] // self._stride

    def _run(self, chunk: int, end: int) -> tuple[int, int, int]:
        generation, rows = divmod(end, self._stride)
        gone = max(0, self._reserved[chunk] - (generation + 1) * self._stride)
        return rows - gone, chunk * self._chunk_rows + gone, generation * self._stride + gone

    def _claim(self, place: int, me: dict[str, int]) -> None:
        chunk = me["chunk"]
        for _ in range(self._chunks):
            tried = self._hand % self._chunks
            self._hand += 1
            if not self._holder[tried]:
                chunk = tried
                break
        if chunk < 0:
            raise BufferFull(f"all {self._chunks} chunks are held by writers: make the buffer with smaller chunk_rows")
        previous = me["chunk"]
        generation, rows = divmod(self._committed[chunk], self._stride)
        before_generation = self._committed[previous] // self._stride if previous >= 0 else 0
        if rows:
            generation += 1
            self._reserved[chunk] = generation * self._stride
            self._ended[chunk] = self._committed[chunk]
        self._before[2 * chunk + generation % 2] = previous
        self._before_generation[2 * chunk + generation % 2] = before_generation
        self._before_rows[2 * chunk + generation % 2] = self._committed[previous] % self._stride if previous >= 0 else 0
        self._committed[chunk] = generation * self._stride
        self._holder[chunk] = place + 1
        if chunk != previous:
            me["behind"] = previous
        me["chunk"] = chunk


class LocalStream:
    """A writer of this process's memory; see `RowStream`."""

    def __init__(self, table: LocalTable, columns: Sequence[npt.NDArray[Any]], about: Mapping[str, npt.NDArray[Any]]) -> None:
        """Register."""
        self._table, self._about = table, about
        self._columns = [column.reshape(len(column), -1).view(np.uint8) if column.size else None for column in columns]
        self.place, self.number = table.register()
        self._position = 0
        self._lock = Lock()
        self._closed = False

    def insert(self, data: Any, ended: bool, /) -> bool:
        """Return False: items are converted first."""
        return False

    def insert_many(self, batch: Any, /) -> bool:
        """Return False, as `insert`."""
        return False

    def append(self, rows: int, values: Any, nexts: Any, ended: Any, terminal: Any, versions: Any, /) -> None:
        """See `RowStream`."""
        with self._lock:
            done = 0
            while done < rows:
                row, granted, sequence = self._table.reserve(self.place, rows - done)
                here, there = slice(row, row + granted), slice(done, done + granted)
                for column, value in zip(self._columns, values, strict=True):
                    if column is not None:
                        column[here] = value.reshape(rows, -1)[there]
                self._describe(row, sequence, ended[there], terminal[there], versions[there])
                self._table.commit(self.place)
                done += granted

    def end(self) -> None:
        """See `RowStream`."""
        with self._lock:
            if self._position:
                self._table.mark(self.place, LAST | TRUNCATED)
                self._position = 0

    def close(self) -> bool:
        """See `RowStream`."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._table.forget(self.place)
        return False

    def _describe(self, row: int, sequence: int, ended: Any, terminal: Any, versions: Any) -> None:
        for i in range(len(ended)):
            flags = FIRST if self._position == 0 else 0
            if ended[i]:
                flags |= LAST | (TERMINAL if terminal[i] else TRUNCATED)
            known = {"sequence": sequence + i, "position": self._position, "policy_version": versions[i]}
            for name, value in (*known.items(), ("writer", self.number), ("flags", flags)):
                self._about[name][row + i] = value
            self._position = 0 if ended[i] else self._position + 1
