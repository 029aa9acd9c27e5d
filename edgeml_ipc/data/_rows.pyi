"""The C half of the replay buffer: chunks and writers of a shared segment, and the inner loops of sampling. Internal.

In the loops of sampling rows and places are contiguous int64 arrays, weights and targets contiguous float64 arrays; all are
copied or checked before the interpreter lock is released.
"""

from typing import Any, final

from typing_extensions import Buffer

_Geometry = tuple[int, int, int, int, int, int]  # capacity, chunk_rows, max_writers, chunk_frames, stack, cursors

def schema_at(geometry: _Geometry, /) -> int:
    """Return the offset of the schema in the segment. Raises ValueError: out of range."""

def format(segment: Buffer, geometry: _Geometry, schema: bytes, incarnation: bytes, /) -> None:
    """Write the header of a new segment of zeros; it is not ready until `publish`."""

def publish(segment: Buffer, /) -> None: ...
def is_ready(segment: Buffer, /) -> bool:
    """Tell whether the segment was published, or is none of ours."""

def inspect(segment: Buffer, /) -> tuple[_Geometry, bytes, bytes]:
    """Return geometry, schema, incarnation. Raises SegmentError: foreign, unready or damaged."""

@final
class Table:
    """What one process knows of a segment. See `chunks.RowTable`."""

    def __new__(
        cls, segment: Buffer, fd: int, places: tuple[int, ...], columns: tuple[tuple[int, int, int, int], ...], /
    ) -> Table:
        """Lay the columns of ROW_SHAPES over a segment, and those of the data: (offset, kind, item bytes, run bytes)."""

    def close(self) -> None: ...
    def register(self) -> tuple[int, int]: ...
    def forget(self, place: int, /) -> None: ...
    def reserve(self, place: int, rows: int, /) -> tuple[int, int, int]: ...
    def commit(self, place: int, /) -> None: ...
    def mark(self, place: int, flags: int, /) -> None: ...
    def recover(self) -> int: ...
    def max_spans(self) -> int: ...
    def snapshot(self, spans: Buffer, /) -> int: ...
    def resolve(self, spans: Buffer, count: int, positions: Buffer, rows: Buffer, stamps: Buffer, /) -> None: ...
    def draw(self, shares: Buffer, rows: Buffer, stamps: Buffer, /) -> int: ...
    def steps(self, spans: Buffer, count: int, /) -> Steps: ...
    def intact(self, rows: Buffer, stamps: Buffer, out: Buffer, /) -> int: ...
    def counts(self) -> tuple[int, int, int, int, int, int]: ...
    def horizon(self) -> int: ...
    def tally(self, sampled: int, redrawn: int, /) -> None: ...
    def hold(self, nanoseconds: int, /) -> None: ...
    def previous(self, row: int, stamp: int, /) -> tuple[int, int, int]: ...
    def frames(self, rows: Buffer, own: Buffer, following: Buffer, /) -> None: ...
    def cursor(self, key: bytes, /) -> int | None: ...
    def bind(self, key: bytes, place: int, next_id: int, /) -> None: ...
    def total(self, place: int, /) -> int:
        """Return how many rows a writer of this process has committed."""

    def stream(self, spec: tuple[Any, ...], /) -> Stream:
        """Become a writer. The spec: (data, following, leaves, dones, end_of_trajectory, masks).

        `data` has ((key, column or the same again), ...), `following` the same for `next_observations`, or is empty; `leaves`
        (kind, itemsize, shape) of each column; the last three are columns, -1 for none.
        """

@final
class Steps:
    """Episodes of the rows of a snapshot; see `steps.HeldSteps`. Answers go into `out`. IndexError: a row is not held."""

    def before(self, rows: Any, out: Any, /) -> None: ...
    def after(self, rows: Any, out: Any, /) -> None: ...
    def order(self, rows: Any, out: Any, /) -> None: ...
    def stamps(self, rows: Any, out: Any, /) -> None: ...
    def holds(self, rows: Any, out: Any, /) -> None: ...
    def shift(self, rows: Any, offsets: Any, out: Any, /) -> None: ...
    def draw(self, shares: Any, first: int, last: int, min_length: int, anchors: Any, /) -> int: ...
    def reach(self, anchors: Any, begin: int, end: int, rows: Any, mask: Any, /) -> None: ...
    def intact(self, anchors: Any, rows: Any, first: int, last: int, out: Any, /) -> None:
        """Clear in `out` the anchors of whose rows, or steps from `first` to `last`, one was overwritten or is foreign."""

    def predecessors(self, out: Any, /) -> None: ...

@final
class Stream:
    """A writer. See `chunks.RowStream`."""

    number: int
    place: int
    def insert(self, data: Any, ended: bool, /) -> bool: ...
    def insert_many(self, batch: Any, /) -> bool: ...
    def append(self, rows: int, values: Any, nexts: Any, ended: Any, terminal: Any, versions: Any, /) -> None: ...
    def end(self) -> None: ...
    def close(self) -> bool: ...

@final
class Flow:
    """How one process waits for changes in a segment (see `waiting.Changes`), and the counts of its rate limiter."""

    def __new__(cls, segment: Buffer, /) -> Flow: ...
    def begin(self) -> int: ...
    def wait(self, seen: int, seconds: float | None, /) -> None: ...
    def wake(self) -> None: ...
    def granted(self) -> tuple[int, int]:
        """Return the rows that were granted to inserts and to samples. Raises SegmentError: they are no counts."""

    def grant_insert(self, seen: int, rows: int, /) -> bool:
        """Add to the rows granted to inserts if they are as many as were `seen`; tell whether they were."""

    def grant_sample(self, seen: int, rows: int, /) -> bool: ...
    def give_back(self, inserts: int, samples: int, /) -> None: ...
    def charge(self, place: int, rows: int, /) -> None:
        """Note on which writer's account rows were granted: what it has not committed when it ends is given back."""

    def limits(self) -> tuple[float, int, float]:
        """Return samples_per_insert (0: none), min_rows (0: no rate limiter), slack_samples, as they were found."""

    def set_limits(self, samples_per_insert: float, min_rows: int, slack_samples: float, /) -> None:
        """Set them, before the segment is published."""

@final
class Block:
    """Writable memory of one batch, aligned to 64 bytes; goes back to its pool when the last array on it dies."""

    def __buffer__(self, flags: int, /) -> memoryview: ...

@final
class Pool:
    """Keeps up to `idle_blocks` (at most 64) blocks that nobody uses for the next batches."""

    def __new__(cls, idle_blocks: int) -> Pool: ...
    def stats(self) -> dict[str, int]: ...

@final
class Gather:
    """Copies rows of columns. Any thread may call; holds the columns' buffers until `close`."""

    def __new__(cls, columns: tuple[Any, ...], which: tuple[int, ...], threads: int) -> Gather:
        """Take columns of bytes (rows, row_bytes); column i follows the set of rows number `which[i]`."""
    def run(self, rows: tuple[Any, ...], pool: Pool, /) -> tuple[Block, tuple[int, ...]]:
        """Copy the rows of each set, zeros for -1; return the block and the byte at which each column begins."""
    def patch(self, block: Block, places: tuple[int, ...], rows: tuple[Any, ...], at: tuple[Any, ...], /) -> None:
        """Copy rows over places of a block that `run` made for `places[s]` rows of set s."""
    def draw(
        self, table: Table, parts: tuple[int, ...], shares: Any, pool: Pool, /
    ) -> tuple[Block, tuple[int, ...], tuple[int, ...]] | None:
        """Draw as `Table.draw` does, copy the rows, or frames of them, and look whether they still stand.

        Args:
            parts: for each set of rows what its columns follow: 0 the rows, 1 the frames of their observations, 2 the frames of
                the ones that follow; 4 more: all frames of a stack, else the newest. shares: float64.
        Returns:
            the block, where in it each column begins, and the places of rows that were overwritten meanwhile; None: no row is
            held.
        """

    def take(
        self, table: Table, parts: tuple[int, ...], rows: Any, stamps: Any, pool: Pool, /
    ) -> tuple[Block, tuple[int, ...], tuple[int, ...]]:
        """Do as `draw` with rows that were drawn before, and their stamps."""

    def close(self) -> None:
        """Let go of the columns, once the calls under way are done."""

@final
class SumTree:
    """Weights of rows and their sums. Its caller serialises all calls."""

    total: float
    least: float
    def __new__(cls, capacity: int) -> SumTree: ...
    def set(self, rows: Any, weights: Any, /) -> None: ...
    def update(
        self, handles: Any, errors: Any, stamps: Any, stride_bits: int, epsilon: float, alpha: float, /
    ) -> tuple[int, float]:
        """See `priority.Tree`."""
    def fill(self, begin: int, end: int, weight: float, /) -> None: ...
    def get(self, rows: Any, out: Any, /) -> None: ...
    def find(self, parts: Any, stratified: bool, rows: Any, weights: Any, /) -> bool: ...
    def hand_out(
        self, rows: Any, stamps: Any, weights: Any, stride_bits: int, beta: float, handles: Any, importance: Any, /
    ) -> None: ...
