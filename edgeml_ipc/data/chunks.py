"""Chunks: which rows a writer may write, which rows are whole, and which were overwritten while they were copied.

The table of a shared segment is `_rows.Table`, in C, since Python has no memory barriers; docs/replay.md is its specification.
`LocalTable` is the same in Python for the threads of one process, and is used where the C half was not built.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from types import ModuleType

    import edgeml_ipc.data._rows as _rows

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

    def draw(self, shares: Any, rows: Any, stamps: Any, /) -> int:
        """Write the rows that lie at shares, float64 in [0, 1), of all that are held, and their stamps.

        Returns:
            how many rows are held; 0: nothing was written.
        """

    def steps(self, spans: Any, count: int, /) -> _rows.Steps | None:
        """Return the episodes of a snapshot, compiled; None: `steps.ChunkSteps` finds them."""

    def intact(self, rows: Any, stamps: Any, out: Any, /) -> int:
        """Say, after rows were copied, which copies are whole; return how many are not."""

    def counts(self) -> tuple[int, int, int, int, int, int]:
        """Return rows inserted, rows held, the newest sequence number (-1: none), rows sampled, rows redrawn, writers."""

    def horizon(self) -> int:
        """Return a sequence number: rows with lower ones are committed, or never will be."""

    def tally(self, sampled: int, redrawn: int, /) -> None:
        """Add to the counts of rows sampled and redrawn."""

    def hold(self, nanoseconds: int, /) -> None:
        """Ask writers to hold back for so long, at most 50 ms; 0: no more. They may go on all the same."""

    def previous(self, row: int, stamp: int, /) -> tuple[int, int, int]:
        """Return the chunk (-1: none), generation and number of rows that the writer of this row's chunk filled before it."""

    def stream(self, spec: Any, /) -> RowStream:
        """Become a writer of the items that `Schema.spec` describes; raises as `register`."""

    def frames(self, rows: Any, own: Any, following: Any, /) -> None:
        """Write where the observations of rows lie, and those that follow: `stack` frames for each row, -1 for the row -1."""

    def cursor(self, key: bytes, /) -> int | None:
        """Return the item that a stream wants next; None: nothing was ever heard of it."""

    def bind(self, key: bytes, place: int, next_id: int, /) -> None:
        """Give a stream to a writer: from now on its cursor moves by one with each row that the writer commits.

        Raises:
            BufferFull: another live writer has it, or had it and left it past `next_id`; or live writers hold all cursors.
        """


class RowStream(Protocol):
    """One writer's way of putting items into rows; each call is one step.

    Attributes:
        number: of the writer, which no other ever has.
        place: in the registry.
    """

    number: int
    place: int

    def insert(self, data: Any, ended: bool, /) -> bool:
        """Put in one item that is just as it is stored; False: it is not, and nothing was done."""

    def insert_many(self, batch: Any, /) -> bool:
        """Put in many, a list of items or a dict of stacked arrays; False: as for `insert`."""

    def append(self, rows: int, values: Any, nexts: Any, ended: Any, terminal: Any, versions: Any, /) -> None:
        """Put in rows whose bytes were made to fit.

        Args:
            values: for each column the bytes of all rows. nexts: the same of the observations that follow, where they are
                stored in frames; None: they are those of the next row.
            ended, terminal: uint8 `(rows,)`. versions: int32 `(rows,)`.
        """

    def end(self) -> None:
        """End the open episode as truncated."""

    def close(self) -> bool:
        """Leave; True: an item waited for the observation that follows it, and is dropped. Idempotent."""


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
