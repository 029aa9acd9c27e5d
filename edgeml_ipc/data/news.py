"""News: the rows that other processes wrote, told once to whoever wants to know of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, overload

import numpy as np

from edgeml_ipc.data.chunks import snapshot
from edgeml_ipc.data.history import History
from edgeml_ipc.data.storage import Storage

_MAX_WRITERS: Final = 1 << 16  # that are remembered; numbers of writers are never given out again

Item = dict[str, Any]


class Items(Sequence[Item]):
    """Items that are read from the buffer when they are first looked at: copies, which belong to the reader.

    Those that were overwritten by then are left out.
    """

    def __init__(self, read: Callable[[], list[Item]]) -> None:
        """Read by `read`, once."""
        self._read = read
        self._items: list[Item] | None = None

    def _all(self) -> list[Item]:
        if self._items is None:
            self._items = self._read()
        return self._items

    def __len__(self) -> int:
        return len(self._all())

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> list[Item]: ...
    def __getitem__(self, index: int | slice) -> Any:
        return self._all()[index]


class News:
    """Tells the rows that a writer has committed since it was last asked about, and since this was made.

    What was committed before is no news. One thread at a time.
    """

    def __init__(self, storage: Storage, history: History) -> None:
        """Begin with what is committed now as known."""
        self._history, self._table = history, storage.table
        about = storage.about.arrays
        self._sequence, self._writer = about["sequence"], about["writer"]
        self._known: dict[int, int] = {}  # writer -> the newest sequence number of theirs that was told
        firsts, lasts, stamps = self._runs()
        newest = np.stack([self._writer[lasts], self._sequence[lasts]], axis=1)
        whole = np.empty(len(lasts), np.bool_)
        self._table.intact(lasts, stamps + lasts - firsts, whole)
        for writer, sequence in newest[whole].tolist():
            self._known[writer] = max(sequence, self._known.get(writer, -1))

    def of(self, writer: int) -> tuple[int, Items]:
        """Return how many rows of `writer` are new, and the items in them, in their order."""
        known = self._known.pop(writer, -1)
        firsts, lasts, stamps = self._runs()
        rows, row_stamps = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for run in np.flatnonzero((self._writer[firsts] == writer) & (self._sequence[lasts] > known)):
            here = np.arange(firsts[run], lasts[run] + 1)
            new = self._sequence[here] > known
            rows.append(here[new])
            row_stamps.append(stamps[run] + (here - firsts[run])[new])
        found, found_stamps = np.concatenate(rows), np.concatenate(row_stamps)
        order = np.argsort(self._sequence[found], kind="stable")
        found, found_stamps = found[order], found_stamps[order]
        sequence, written_by = self._sequence[found], self._writer[found]
        whole = np.empty(len(found), np.bool_)
        self._table.intact(found, found_stamps, whole)  # a run that was overwritten meanwhile can be another's
        whole &= written_by == writer
        self._known[writer] = int(sequence[whole][-1]) if whole.any() else known
        while len(self._known) > _MAX_WRITERS:
            del self._known[next(iter(self._known))]
        found, found_stamps = found[whole], found_stamps[whole]
        return len(found), Items(lambda: self._history.items_at(found, found_stamps))

    def _runs(self) -> tuple[Any, Any, Any]:
        """Return the first row, the last row and the first stamp of each run of whole rows."""
        spans, used = snapshot(self._table)
        counts = np.diff(spans[:used, 0], prepend=0)
        return spans[:used, 1], spans[:used, 1] + counts - 1, spans[:used, 2]
