"""History: the rows of a buffer in the order of their sequence numbers, for those who upload or copy them."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgeml_ipc.data.chunks import Ints, snapshot
from edgeml_ipc.data.columns import Array
from edgeml_ipc.data.patience import ATTEMPTS, Patience
from edgeml_ipc.data.reading import ABOUT, Reader
from edgeml_ipc.data.storage import Storage
from edgeml_ipc.data.transitions import UNKNOWN_VERSION
from edgeml_ipc.errors import EdgeMLError


class History:
    """Reads rows in order.

    Threads and processes: any thread may call; whoever inserts in this process must not meanwhile.
    """

    def __init__(self, storage: Storage) -> None:
        """Read from `storage`."""
        self._storage, self._table = storage, storage.table
        self._reader = Reader(storage, [*storage.columns.shapes, f"{ABOUT}policy_version"])

    def read_since(self, from_id: int, limit: int | None) -> tuple[int, list[dict[str, Any]], int]:
        """Read copies of what came after `from_id`; see `ReplayBuffer.read_since`."""
        with Patience(self._table) as patience:
            for _ in patience:
                horizon = self._table.horizon()  # before the rows: those below it are all there, or never will be
                rows, stamps = self._rows_since(from_id, limit)
                below = self._storage.about.arrays["sequence"][rows] < horizon
                rows, stamps = rows[below], stamps[below]
                sequences = self._storage.about.arrays["sequence"][rows]
                reading = self._reader.read(rows[: None if limit is None else limit])
                if self._table.intact(rows, stamps, np.empty(len(rows), np.bool_)) == 0:
                    break
            else:
                raise EdgeMLError(f"rows after {from_id} were overwritten in each of {ATTEMPTS} attempts to read them")
        first_id = int(sequences[0]) if len(sequences) else from_id + 1
        return first_id, self._items(reading.arrays), first_id - from_id - 1

    def items_at(self, rows: Ints, stamps: Ints) -> list[dict[str, Any]]:
        """Return copies of rows, without those that were overwritten meanwhile."""
        reading = self._reader.read(rows)
        whole = np.empty(len(rows), np.bool_)
        self._table.intact(rows, stamps, whole)
        return self._items([array[whole] for array in reading.arrays])

    def _rows_since(self, from_id: int, limit: int | None) -> tuple[Ints, Ints]:
        """Return the rows after `from_id` with ids that rise by one: some more than `limit`, and at least one, if there are."""
        spans, used = snapshot(self._table)
        sequence = self._storage.about.arrays["sequence"]
        counts = np.diff(spans[:used, 0], prepend=0)
        newer = np.flatnonzero(sequence[spans[:used, 1] + counts - 1] > from_id)
        firsts = sequence[spans[newer, 1]]
        ids: list[Array] = [np.empty(0, np.int64)]
        rows: list[Array] = [np.empty(0, np.int64)]
        stamps: list[Array] = [np.empty(0, np.int64)]
        found, highest = 0, -1
        for first, span in sorted(zip(firsts.tolist(), newer.tolist(), strict=True)):
            if limit is not None and found >= max(1, limit) and first > highest:
                break
            offsets = np.arange(counts[span])
            here = sequence[spans[span, 1] + offsets]
            offsets = offsets[here > from_id]
            ids.append(here[here > from_id])
            rows.append(spans[span, 1] + offsets)
            stamps.append(spans[span, 2] + offsets)
            found += len(offsets)
            highest = max(highest, int(here[-1]))
        all_ids = np.concatenate(ids)
        order = np.argsort(all_ids, kind="stable")
        if limit is not None:
            order = order[: max(1, limit)]
        if len(order):
            gaps = np.flatnonzero(np.diff(all_ids[order]) != 1)
            order = order[: gaps[0] + 1] if len(gaps) else order
        return np.concatenate(rows)[order], np.concatenate(stamps)[order]

    def _items(self, batch: list[Array]) -> list[dict[str, Any]]:
        """Return one nested dict for each row of a batch of all leaves and the versions."""
        *data, versions = batch
        items = []
        for i, version in enumerate(versions.tolist()):
            item = self._storage.columns.tree(leaf[i] for leaf in data)
            if version != UNKNOWN_VERSION:
                item["policy_version"] = version
            items.append(item)
        return items
