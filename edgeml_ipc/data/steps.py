"""Steps: the episodes of a shared buffer, followed through chunks that lie anywhere.

A writer fills one chunk after the other, and each chunk knows which one its writer filled before. So the runs of a snapshot
make chains; along a chain each row has a *rank*, and a chain's ranks are the order in which its writer wrote.

    chunk       7          2          5           |  4          9
    writer      A          A          A           |  B          B
    rank        0 .. 7     8 .. 15    16 .. 20    |  21 .. 28   29 .. 31
    position    3 4 5 0 1 2 3 ...                 |  a row and the k-th after it are of one episode if position rises by k

Rows may be overwritten while this is read. What was read of a row that still stands afterwards was right; who samples asks that
of every row it uses: see `intact`. `TableSteps` is the compiled one, by `rows_steps.c`; `ChunkSteps` is the same in numpy, for
where the C half was not built.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from threading import Lock
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from edgeml_ipc.data.chunks import Ints, snapshot
from edgeml_ipc.data.draws import Mask, fitting, window
from edgeml_ipc.data.gather import Rows
from edgeml_ipc.data.priority import Weights
from edgeml_ipc.data.storage import Storage
from edgeml_ipc.errors import BufferEmpty

if TYPE_CHECKING:
    import edgeml_ipc.data._rows as _rows

_NONE: Final = -1


class Links(NamedTuple):
    """What is known of two generations of each chunk, by 2 * chunk + generation % 2; -1: nothing."""

    generation: Ints
    previous_chunk: Ints
    previous_generation: Ints
    previous_rows: Ints


class ChunkMap:
    """Remembers which chunk comes before which, since that never changes once a generation has begun.

    Threads and processes: any thread may call.
    """

    def __init__(self, storage: Storage) -> None:
        """Begin knowing nothing."""
        self.storage = storage
        self.chunks = -(-storage.capacity // storage.chunk_rows)
        self.stride_bits = storage.chunk_rows.bit_length()
        self._known = Links(*(np.full(2 * self.chunks, _NONE, np.int64) for _ in range(4)))
        self._lock = Lock()
        self._last: tuple[bytes, HeldSteps | None] = b"", None  # where nobody inserts, one is made for all batches

    def steps(self) -> HeldSteps:
        """Look at the rows that are held now."""
        spans, used = snapshot(self.storage.table)
        return self.steps_of(spans[:used])

    def steps_of(self, spans: Ints) -> HeldSteps:
        """Join the runs `(end, row, stamp)` of a snapshot to chains."""
        looked, (known, made) = spans.tobytes(), self._last
        if made is None or looked != known:
            compiled = self.storage.table.steps(spans, len(spans))
            made = ChunkSteps(self, spans) if compiled is None else TableSteps(self, spans, compiled)
            self._last = looked, made
        return made

    def before(self, rows: Ints, stamps: Ints, counts: Ints) -> tuple[Ints, Ints, Ints]:
        """Return, for each run, the chunk that its writer filled before, -1 for none, that one's generation, and its rows."""
        table, known = self.storage.table, self._known
        generations = stamps >> self.stride_bits
        keys = 2 * (rows // self.storage.chunk_rows) + (generations & 1)
        with self._lock:
            new = np.flatnonzero(known.generation[keys] != generations)
            for run in new.tolist():
                key = keys[run]
                found = table.previous(int(rows[run]), int(stamps[run]))
                known.previous_chunk[key], known.previous_generation[key], known.previous_rows[key] = found
            if len(new):
                # A link is true if it was read before the generation after the next began: while the last row stands.
                whole = np.empty(len(new), np.bool_)
                ends = counts[new] - 1
                table.intact(rows[new] + ends, stamps[new] + ends, whole)
                known.previous_chunk[keys[new[~whole]]] = _NONE
                known.generation[keys[new]] = np.where(whole, generations[new], _NONE)
            return known.previous_chunk[keys], known.previous_generation[keys], known.previous_rows[keys]


class HeldSteps(ABC):
    """`draws.Steps` of the rows that a storage held at one moment.

    Threads and processes: any thread may call. Takes no lock; rows can be overwritten at any time.

    Attributes:
        spans: `(runs, 3)`, the runs of the snapshot. total: how many rows are held.
    """

    def __init__(self, chunk_map: ChunkMap, spans: Ints) -> None:
        self.spans = spans
        self.total = int(spans[-1, 0]) if len(spans) else 0
        self._table, self._capacity = chunk_map.storage.table, chunk_map.storage.capacity

    def draw(self, rng: np.random.Generator, count: int, first: int, last: int, min_length: int) -> Rows:
        """See `draws.Steps`."""
        if not self.total:
            raise BufferEmpty(f"cannot sample {count} rows: none is held (capacity {self._capacity} rows)")
        return self._draw(rng.random(count), first, last, min_length)

    @abstractmethod
    def _draw(self, shares: Weights, first: int, last: int, min_length: int) -> Rows: ...

    def rows(self) -> Rows:
        """Return all rows, oldest chunk first."""
        ends, row, _ = self.spans.T
        count = np.diff(ends, prepend=0)
        rows: Rows = np.arange(self.total) + np.repeat(row - ends + count, count)
        return rows

    @abstractmethod
    def before(self, rows: Rows) -> Rows:
        """Return how many steps of the episode are held before each row."""

    @abstractmethod
    def after(self, rows: Rows) -> Rows:
        """Return how many steps of the episode are held after each row."""

    @abstractmethod
    def shift(self, rows: Rows, offsets: Rows) -> Rows:
        """Return the rows `offsets` steps further on; asked only within `before` and `after`."""

    @abstractmethod
    def window(self, anchors: Rows, begin: int, end: int) -> tuple[Rows, Mask]:
        """See `draws.Steps`."""

    @abstractmethod
    def order(self, rows: Rows) -> Rows:
        """Return each row's rank; within an episode it rises as the position does."""

    @abstractmethod
    def stamps(self, rows: Rows) -> Rows:
        """Return the stamps by which to tell later whether rows were overwritten."""

    @abstractmethod
    def holds(self, rows: Rows) -> Mask:
        """Tell which of any rows of the buffer are held."""

    @abstractmethod
    def intact(self, anchors: Rows, rows: Rows, first: int = 0, last: int = 0) -> Mask:
        """Tell, after rows were copied, for which anchors all copies are whole, and of the anchor's episode.

        Args:
            rows: `(batch, ...)`, -1 where nothing was copied. All must be held.
            first, last: the steps from `anchor + first` to `anchor + last` had to be there, and must still stand: else one may
                have gone before its row was picked, and be masked.
        """

    @abstractmethod
    def predecessors(self) -> Ints:
        """Return, for each run of the snapshot, which one it goes on from, or -1."""


class TableSteps(HeldSteps):
    """The compiled one."""

    def __init__(self, chunk_map: ChunkMap, spans: Ints, compiled: _rows.Steps) -> None:
        super().__init__(chunk_map, spans)
        self._compiled = compiled

    def _draw(self, shares: Weights, first: int, last: int, min_length: int) -> Rows:
        anchors = np.empty(len(shares), np.int64)
        return anchors[: self._compiled.draw(shares, first, last, min_length, anchors)]

    def before(self, rows: Rows) -> Rows:
        """See `HeldSteps`."""
        return _told(self._compiled.before, rows)

    def after(self, rows: Rows) -> Rows:
        """See `HeldSteps`."""
        return _told(self._compiled.after, rows)

    def order(self, rows: Rows) -> Rows:
        """See `HeldSteps`."""
        return _told(self._compiled.order, rows)

    def stamps(self, rows: Rows) -> Rows:
        """See `HeldSteps`."""
        return _told(self._compiled.stamps, rows)

    def holds(self, rows: Rows) -> Mask:
        """See `HeldSteps`."""
        held = np.empty(rows.shape, np.bool_)
        self._compiled.holds(np.ascontiguousarray(rows), held)
        return held

    def shift(self, rows: Rows, offsets: Rows) -> Rows:
        """See `HeldSteps`."""
        rows, offsets = np.broadcast_arrays(rows, offsets)
        shifted = np.empty(rows.shape, np.int64)
        self._compiled.shift(np.ascontiguousarray(rows, np.int64), np.ascontiguousarray(offsets, np.int64), shifted)
        return shifted

    def window(self, anchors: Rows, begin: int, end: int) -> tuple[Rows, Mask]:
        """See `draws.Steps`."""
        rows, mask = np.empty((len(anchors), end - begin), np.int64), np.empty((len(anchors), end - begin), np.bool_)
        self._compiled.reach(anchors, begin, end, rows, mask)
        return rows, mask

    def intact(self, anchors: Rows, rows: Rows, first: int = 0, last: int = 0) -> Mask:
        """See `HeldSteps`."""
        whole = np.ones(len(anchors), np.bool_)
        self._compiled.intact(anchors, np.ascontiguousarray(rows), first, last, whole)
        return whole

    def predecessors(self) -> Ints:
        """See `HeldSteps`."""
        found = np.empty(len(self.spans), np.int64)
        self._compiled.predecessors(found)
        return found


def _told(ask: Callable[[Rows, Rows], None], rows: Rows) -> Rows:
    answers = np.empty(rows.shape, np.int64)
    ask(np.ascontiguousarray(rows), answers)
    return answers


class ChunkSteps(HeldSteps):
    """The same in numpy."""

    def __init__(self, chunk_map: ChunkMap, spans: Ints) -> None:
        super().__init__(chunk_map, spans)
        about = chunk_map.storage.about.arrays
        self._position, sequence, writer = about["position"], about["sequence"], about["writer"]
        self._chunk_rows = chunk_map.storage.chunk_rows
        ends, self._row, self._stamp = (np.ascontiguousarray(column) for column in spans.T)
        self._count = np.diff(ends, prepend=0)
        chunk, generation = self._row // self._chunk_rows, self._stamp >> chunk_map.stride_bits
        self._newer, self._older = (np.full(chunk_map.chunks, _NONE, np.int64) for _ in range(2))
        self._runs_by_chunk(chunk)
        # A writer's runs in the order in which it wrote them; those that follow on from one another are joined.
        self._order = np.lexsort((sequence[self._row], writer[self._row]))
        before_chunk, before_generation, before_rows = chunk_map.before(self._row, self._stamp, self._count)
        first, second = self._order[:-1], self._order[1:]
        full = self._row[first] + self._count[first] == chunk[first] * self._chunk_rows + before_rows[second]
        whole_begin = self._row[second] == chunk[second] * self._chunk_rows
        linked = (before_chunk[second] == chunk[first]) & (before_generation[second] == generation[first])
        joined = linked & full & whole_begin
        counts = self._count[self._order]
        self._ordered_ends = np.cumsum(counts)
        begins = self._ordered_ends - counts
        runs = len(self._order)
        self._base, self._chain_begin, self._chain_end = (np.empty(runs, np.int64) for _ in range(3))
        self._base[self._order] = begins
        self._chain_begin[self._order] = np.maximum.accumulate(np.where(np.append(False, joined)[:runs], 0, begins))
        tails = np.where(np.append(joined, False)[:runs], self.total, self._ordered_ends)
        self._chain_end[self._order] = np.minimum.accumulate(tails[::-1])[::-1]

    def predecessors(self) -> Ints:
        """See `HeldSteps`."""
        found = np.full(len(self._order), _NONE, np.int64)
        joined = self._base[self._order] != self._chain_begin[self._order]
        found[self._order[joined]] = self._order[np.flatnonzero(joined) - 1]
        return found

    def _draw(self, shares: Weights, first: int, last: int, min_length: int) -> Rows:
        rows, stamps = np.empty(len(shares), np.int64), np.empty(len(shares), np.int64)
        self._table.resolve(self.spans, len(self.spans), (shares * self.total).astype(np.int64), rows, stamps)
        return fitting(self, rows, first, last, min_length)

    def before(self, rows: Rows) -> Rows:
        """See `HeldSteps`."""
        run = self._run_of(rows)
        rank = self._base[run] + rows - self._row[run]
        held: Rows = np.minimum(np.maximum(self._position[rows], 0), rank - self._chain_begin[run])
        return held

    def after(self, rows: Rows) -> Rows:
        """See `HeldSteps`."""
        run = self._run_of(rows)
        rank = self._base[run] + rows - self._row[run]
        position = self._position[rows]
        low, high = np.zeros(rows.shape, np.int64), self._chain_end[run] - rank  # it goes on for `low`, and not for `high`
        step = np.ones(rows.shape, np.int64)
        while np.any(open_ := high - low > 1):
            middle = np.where(open_, np.minimum(low + step, (low + high) // 2), low)
            same = self._position[self._row_at(rank + middle)] == position + middle
            low, high = np.where(same, middle, low), np.where(same, high, middle)
            step = np.where(same, 2 * step, high - low)
        return low

    def shift(self, rows: Rows, offsets: Rows) -> Rows:
        """See `HeldSteps`."""
        return self._row_at(self.order(rows) + offsets)

    def window(self, anchors: Rows, begin: int, end: int) -> tuple[Rows, Mask]:
        """See `draws.Steps`."""
        return window(self, anchors, begin, end)

    def intact(self, anchors: Rows, rows: Rows, first: int = 0, last: int = 0) -> Mask:
        """See `HeldSteps`."""
        cells = rows.reshape(len(anchors), -1)
        cells = np.where(cells >= 0, cells, anchors[:, None])
        cells = np.concatenate([cells, self.shift(anchors[:, None], np.arange(first, last + 1))], axis=1)
        whole = np.empty(cells.size, np.bool_)
        self._table.intact(cells.ravel(), self.stamps(cells).ravel(), whole)
        apart = self.order(cells) - self.order(anchors)[:, None]
        of_one_episode = self._position[cells] - self._position[anchors][:, None] == apart
        intact: Mask = (whole.reshape(cells.shape) & of_one_episode).all(axis=1)
        return intact

    def holds(self, rows: Rows) -> Mask:
        """See `HeldSteps`."""
        run = self._run_of(rows)
        if not self.total:
            return np.zeros(rows.shape, np.bool_)
        offsets = rows - self._row[run]
        held: Mask = (run >= 0) & (offsets >= 0) & (offsets < self._count[run])
        return held

    def stamps(self, rows: Rows) -> Rows:
        """See `HeldSteps`."""
        run = self._run_of(rows)
        stamps: Rows = self._stamp[run] + rows - self._row[run]
        return stamps

    def order(self, rows: Rows) -> Rows:
        """See `HeldSteps`."""
        run = self._run_of(rows)
        ranks: Rows = self._base[run] + rows - self._row[run]
        return ranks

    def _run_of(self, rows: Rows) -> Rows:
        chunk = rows // self._chunk_rows
        newer, older = self._newer[chunk], self._older[chunk]
        if not self.total:
            return newer
        in_newer = (newer >= 0) & (rows < self._row[newer] + self._count[newer])
        return np.where(in_newer | (older < 0), newer, older)

    def _row_at(self, ranks: Rows) -> Rows:
        place = np.searchsorted(self._ordered_ends, ranks, side="right")
        run = self._order[place]
        rows: Rows = self._row[run] + ranks - self._base[run]
        return rows

    def _runs_by_chunk(self, chunk: Ints) -> None:
        """Find the two runs that a chunk can have: of the generation being written, and of the one before."""
        by_age = np.argsort(self._stamp, kind="stable")
        self._newer[chunk[by_age]] = by_age  # the last one that is written to a place counts
        older = by_age[self._newer[chunk[by_age]] != by_age]
        self._older[chunk[older]] = older
