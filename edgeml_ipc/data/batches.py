"""Batches: copies of rows drawn uniformly from a buffer that others write meanwhile.

Rows are drawn, copied, and then looked at again: those that were overwritten meanwhile are drawn anew, over their places.
"""

from __future__ import annotations

from threading import Lock
from typing import Any, Final

import numpy as np

from edgeml_ipc.data.chunks import Ints, snapshot
from edgeml_ipc.data.columns import Array
from edgeml_ipc.data.gather import Batch, Gather
from edgeml_ipc.data.storage import Storage
from edgeml_ipc.errors import BufferEmpty, ConnectionClosed, EdgeMLError

ATTEMPTS: Final = 1000


class Batches:
    """Draws rows of a storage and copies them; what it hands out is never written again.

    Threads and processes: any thread may call. The rows of one batch are drawn in one step of the generator.
    """

    def __init__(self, storage: Storage, seed: int | None) -> None:
        """Prepare the gathering of the data, and of the data with what is known of each row."""
        self._storage, self._table = storage, storage.table
        data, about = storage.columns.leaves(), storage.about.leaves()
        self._data_leaves = len(data)
        self._gathers = {False: Gather(data), True: Gather([*data, *about])}
        self._rng = np.random.default_rng(seed)
        self._rng_lock = Lock()

    def sample(self, batch_size: int, *, about: bool = False) -> dict[str, Any]:
        """Copy `batch_size` rows, drawn with replacement; see `ReplayBuffer.sample`."""
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1 row, got {batch_size}")
        rows, stamps = self._draw(batch_size)
        gather = self._gathers[about]
        batch = gathered(gather, rows)
        redrawn = self._redraw(gather, batch, rows, stamps)
        self._table.tally(batch_size, redrawn)
        tree = self._storage.columns.tree(batch.arrays[: self._data_leaves])
        if about:
            tree["about"] = self._storage.about.tree(batch.arrays[self._data_leaves :])
        return tree

    def close(self) -> None:
        """Let go of the columns; batches stay as they are. Idempotent."""
        for gather in self._gathers.values():
            gather.close()

    def stats(self) -> dict[str, int]:
        """Return counters of the memory of batches: blocks allocated, reused, and idle now."""
        each = [gather.stats() for gather in self._gathers.values()]
        return {key: sum(counters[key] for counters in each) for key in each[0]}

    def _redraw(self, gather: Gather, batch: Batch, rows: Ints, stamps: Ints) -> int:
        """Replace the copies of rows that were overwritten meanwhile, until there are none; return how many those were."""
        redrawn = 0
        places: Ints = np.arange(len(rows))
        whole = np.empty(len(rows), np.bool_)
        for _ in range(ATTEMPTS):
            lost = self._table.intact(rows, stamps, whole)
            if lost == 0:
                return redrawn
            redrawn += lost
            places = places[~whole]  # the others are good, whatever becomes of their rows
            rows, stamps = self._draw(lost)
            whole = np.empty(lost, np.bool_)
            patched(gather, batch, rows, places)
        raise overtaken(self._storage.capacity)

    def _draw(self, count: int) -> tuple[Ints, Ints]:
        """Return rows, and the stamps by which to tell later whether they were overwritten."""
        for _ in range(ATTEMPTS):
            spans, used = snapshot(self._table)
            if used:
                with self._rng_lock:
                    # By age, so that the batch depends on what was inserted and not on where it lies.
                    positions = self._rng.integers(0, spans[used - 1, 0], size=count)
                rows, stamps = np.empty(count, np.int64), np.empty(count, np.int64)
                self._table.resolve(spans, used, positions, rows, stamps)
                return rows, stamps
            check_not_empty(self._table.counts()[0], count, self._storage.capacity)
        raise BufferEmpty(
            f"cannot sample {count} rows: each time, the only row of {self._storage.capacity} was being overwritten"
        )


def check_not_empty(inserted: int, count: int, capacity: int) -> None:
    """Raise `BufferEmpty` if nothing was ever inserted."""
    if inserted == 0:
        raise BufferEmpty(f"cannot sample {count} rows: nothing was inserted yet (capacity {capacity} rows)")


def overtaken(capacity: int) -> EdgeMLError:
    """Return the error of a reader that writers overtook again and again."""
    return EdgeMLError(
        f"rows of the sample were overwritten while they were copied, {ATTEMPTS} times over: writers go round the "
        f"{capacity} rows faster than they can be read; make the capacity larger"
    )


def gathered(gather: Gather, rows: Array | list[Array]) -> Batch:
    """Gather rows that are in range. Raises `ConnectionClosed`: the buffer was closed meanwhile."""
    try:
        return gather(rows)
    except ValueError as error:
        raise ConnectionClosed("the buffer was closed on this side") from error


def patched(gather: Gather, batch: Batch, rows: Array | list[Array], at: Array | list[Array]) -> None:
    """Copy other rows over places of a batch. Raises `ConnectionClosed`: the buffer was closed meanwhile."""
    try:
        gather.patch(batch, rows, at)
    except ValueError as error:
        raise ConnectionClosed("the buffer was closed on this side") from error
