"""Chunks: which rows a writer may write, which rows are whole, and which were overwritten while they were copied.

The table of a shared segment is `_rows.Table`, in C, since Python has no memory barriers; docs/replay.md is its specification.
`LocalTable` is the same in Python for the threads of one process, and is used where the C half was not built.
"""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from edgeml_ipc.errors import BufferFull, ConnectionClosed

if TYPE_CHECKING:
    from types import ModuleType

FIRST: Final = 1
LAST: Final = 2
TERMINAL: Final = 4
TRUNCATED: Final = 8

Ints = npt.NDArray[np.int64]


class RowTable(Protocol):
    """What a process knows of a buffer's rows.

    Threads: `reserve`, `commit`, `mark` and `forget` of one place are one thread's at a time; all else any thread's.
    """

    def close(self) -> None:
        """End this process's writers (see `forget`). Idempotent; all other calls then raise `ConnectionClosed`."""

    def register(self) -> tuple[int, int]:
        """Become a writer; return its place in the registry, and its number, which no other ever has.

        Raises:
            BufferFull: live writers hold every place.
        """

    def forget(self, place: int, /) -> None:
        """End a writer: its open episode ends as truncated, its chunks can be taken by others."""

    def reserve(self, place: int, rows: int, /) -> tuple[int, int, int]:
        """Reserve up to `rows` rows, which lie one after the other; what they held is gone.

        Returns:
            the first row, how many there are, and the sequence number of the first; the others follow on.
        Raises:
            BufferFull: live writers hold every chunk.
        """

    def commit(self, place: int, /) -> None:
        """Say that all rows that were last reserved are written; from now on they are read."""

    def mark(self, place: int, flags: int, /) -> None:
        """Add flags to the row that this writer committed last."""

    def recover(self) -> int:
        """End the writers whose processes died, as `forget` does; return how many those were."""

    def max_spans(self) -> int:
        """Return how many spans a snapshot can have."""

    def snapshot(self, spans: Any, /) -> int:
        """Write the runs of whole rows into `spans` `(max_spans, 3)`, oldest first, and return how many those are.

        A run is (end, row, stamp): it has the positions from the end of the run before up to `end`, at `row` and after it.
        """

    def resolve(self, spans: Any, count: int, positions: Any, rows: Any, stamps: Any, /) -> None:
        """Turn positions in a snapshot into rows and their stamps."""

    def intact(self, rows: Any, stamps: Any, out: Any, /) -> int:
        """Say, after rows were copied, which copies are whole; return how many are not."""

    def counts(self) -> tuple[int, int, int, int, int, int]:
        """Return rows inserted, rows held, the newest sequence number (-1: none), rows sampled, rows redrawn, writers."""

    def tally(self, sampled: int, redrawn: int, /) -> None:
        """Add to the counts of rows sampled and redrawn."""

    def previous(self, row: int, stamp: int, /) -> tuple[int, int]:
        """Return the chunk (-1: none) and generation that the writer of this row's chunk filled before it."""


def native() -> ModuleType | None:
    """Return the C half, or None where it was not built."""
    try:
        import edgeml_ipc.data._rows as _rows
    except ImportError:
        return None
    return _rows


def snapshot(table: RowTable) -> tuple[Ints, int]:
    """Return the runs of whole rows (see `RowTable.snapshot`), and how many those are."""
    spans = np.empty((table.max_spans(), 3), np.int64)
    return spans, table.snapshot(spans)


class LocalTable:
    """The rows of a buffer in this process's memory; see `RowTable`."""

    def __init__(self, capacity: int, chunk_rows: int, max_writers: int, sequence: Ints, flags: npt.NDArray[np.uint8]) -> None:
        """Begin with no rows. `sequence` and `flags` are the columns of those names."""
        self._capacity, self._chunk_rows, self._max_writers = capacity, chunk_rows, max_writers
        self._chunks = -(-capacity // chunk_rows)
        self._stride = 1 << chunk_rows.bit_length()
        self._sequence, self._flags = sequence, flags
        self._lock = Lock()
        self._holder = [0] * self._chunks  # place + 1
        self._reserved, self._committed, self._ended = ([0] * self._chunks for _ in range(3))
        self._before = [-1] * (2 * self._chunks)  # by chunk and generation % 2: the writer's chunk and generation before
        self._before_generation = [0] * (2 * self._chunks)
        self._writers: dict[int, dict[str, int]] = {}
        self._hand = self._next_sequence = self._next_writer = 0
        self._counts = {"inserted": 0, "sampled": 0, "redrawn": 0}
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
            self._writers[place] = {"chunk": -1, "behind": -1, "last": -1, "open": 0, "sequence": 0, "sequences": 0}
            return place, self._next_writer

    def forget(self, place: int, /) -> None:
        """See `RowTable`."""
        with self._lock:
            last = self._writer(place)["last"]
            if last >= 0 and not self._flags[last] & LAST:
                self._flags[last] |= LAST | TRUNCATED
            self._holder = [0 if holder == place + 1 else holder for holder in self._holder]
            del self._writers[place]

    def reserve(self, place: int, rows: int, /) -> tuple[int, int, int]:
        """See `RowTable`."""
        self._check_open()
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
            me["last"] = chunk * self._chunk_rows + self._committed[chunk] % self._stride - 1
            me["sequence"] += rows
            me["sequences"] -= rows
            me["open"] = 0
            if me["behind"] >= 0:
                self._holder[me["behind"]] = 0
            me["behind"] = -1

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

    def previous(self, row: int, stamp: int, /) -> tuple[int, int]:
        """See `RowTable`."""
        key = 2 * (row // self._chunk_rows) + (stamp // self._stride) % 2
        return self._before[key], self._before_generation[key]

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
        self._committed[chunk] = generation * self._stride
        self._holder[chunk] = place + 1
        if chunk != previous:
            me["behind"] = previous
        me["chunk"] = chunk
