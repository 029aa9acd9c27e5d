"""Batches: copies of rows drawn uniformly from a buffer that others write meanwhile.

Rows are drawn, copied, and then looked at again: those that were overwritten meanwhile are drawn anew, over their places.
"""

from __future__ import annotations

from threading import Lock
from typing import Any, Final

import numpy as np

from edgeml_ipc.data.patience import Patience, overtaken
from edgeml_ipc.data.reading import ABOUT, Drawn, Reader
from edgeml_ipc.data.storage import Storage
from edgeml_ipc.errors import BufferEmpty

LOOKS: Final = 1000  # for rows, where the only one there is is being overwritten
ABOUT_SAMPLES: Final = ("sequence", "position", "policy_version", "writer", "flags")


class UniformRows:
    """Draws rows, each that is held equally likely, and copies them.

    Threads and processes: any thread may call. The rows of one batch are drawn in one step of the generator, which its owner
    may use under `lock`.
    """

    def __init__(self, storage: Storage, rng: np.random.Generator, lock: Lock) -> None:
        self._table, self._capacity = storage.table, storage.capacity
        self._rng, self._lock = rng, lock

    def copy(self, reader: Reader, count: int) -> tuple[list[Any], int]:
        """Return an array for each field of a reader, and how many rows had to be drawn anew."""
        drawn = self._draw(reader, count)
        arrays = drawn.reading.arrays
        return arrays, self._redraw(reader, arrays, drawn.lost) if drawn.lost else 0

    def _redraw(self, reader: Reader, arrays: list[Any], lost: tuple[int, ...]) -> int:
        """Replace the copies of rows that were overwritten meanwhile, until there are none; return how many those were."""
        places, redrawn = np.array(lost), 0
        with Patience(self._table) as patience:
            for _ in patience:
                redrawn += len(places)
                again = self._draw(reader, len(places))
                for mine, new in zip(arrays, again.reading.arrays, strict=True):
                    mine[places] = new
                if not again.lost:
                    return redrawn
                places = places[list(again.lost)]  # the others are good, whatever becomes of their rows
        raise overtaken(self._capacity)

    def _draw(self, reader: Reader, count: int) -> Drawn:
        """Draw rows and copy them; some copies may be torn."""
        for _ in range(LOOKS):
            with self._lock:
                # By age, so that the batch depends on what was inserted and not on where it lies.
                shares = self._rng.random(count)
            drawn = reader.draw(shares)
            if drawn is not None:
                return drawn
            check_not_empty(self._table.counts()[0], count, self._capacity)
        raise BufferEmpty(f"cannot sample {count} rows: each time, the only row of {self._capacity} was being overwritten")


class Batches:
    """Draws rows of a storage and copies them; what it hands out is never written again.

    Threads and processes: any thread may call.
    """

    def __init__(self, storage: Storage, seed: int | None) -> None:
        """Prepare the gathering of the data, and of the data with what is known of each row."""
        self._storage, self._table = storage, storage.table
        data, about = list(storage.columns.shapes), [ABOUT + name for name in ABOUT_SAMPLES]
        self._data_leaves = len(data)
        self._readers = {False: Reader(storage, data), True: Reader(storage, [*data, *about])}
        self._rng = np.random.default_rng(seed)
        self._rng_lock = Lock()
        self._rows = UniformRows(storage, self._rng, self._rng_lock)

    def sample(self, batch_size: int, *, about: bool = False) -> dict[str, Any]:
        """Copy `batch_size` rows, drawn with replacement; see `ReplayBuffer.sample`."""
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1 row, got {batch_size}")
        arrays, redrawn = self._rows.copy(self._readers[about], batch_size)
        self._table.tally(batch_size, redrawn)
        tree = self._storage.columns.tree(arrays[: self._data_leaves])
        if about:
            tree["about"] = dict(zip(ABOUT_SAMPLES, arrays[self._data_leaves :], strict=True))
        return tree

    def generator_state(self) -> dict[str, Any]:
        """Return the state of the random generator, as numpy gives it."""
        with self._rng_lock:
            state: dict[str, Any] = dict(self._rng.bit_generator.state)
            return state

    def set_generator_state(self, state: dict[str, Any]) -> None:
        """Go on drawing from a state that `generator_state` returned."""
        with self._rng_lock:
            self._rng.bit_generator.state = state

    def missing(self) -> str:
        """Say what there is, for a message of one who waited for more."""
        inserted, held, *_ = self._table.counts()
        return f"{inserted} rows were inserted, {held} are held"

    def close(self) -> None:
        """Let go of the columns; batches stay as they are. Idempotent."""
        for reader in self._readers.values():
            reader.close()

    def stats(self) -> dict[str, int]:
        """Return counters of the memory of batches: blocks allocated, reused, and idle now."""
        each = [reader.stats() for reader in self._readers.values()]
        return {key: sum(counters[key] for counters in each) for key in each[0]}


def check_not_empty(inserted: int, count: int, capacity: int) -> None:
    """Raise `BufferEmpty` if nothing was ever inserted."""
    if inserted == 0:
        raise BufferEmpty(f"cannot sample {count} rows: nothing was inserted yet (capacity {capacity} rows)")
