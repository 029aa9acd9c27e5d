"""Prioritized anchors: a sum tree that follows what is inserted into a shared buffer, and handles that outlive it.

The tree is private to a process and a sample config. Before each draw it is brought up to date with a view of the rows held:
those that came get the greatest priority seen so far, those that were overwritten get none. A row of the buffer is another
row each time it is written, so what is handed out is no row number but a handle, `generation * capacity + row`: priorities for
a handle whose row was overwritten meanwhile go to nobody.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from edgeml_ipc.data.gather import Rows
from edgeml_ipc.data.priority import Priorities, Singles, Weights
from edgeml_ipc.data.runs import Runs, View
from edgeml_ipc.data.storage import Storage

_NOT_HELD: Final = -1


class PriorityTracker:
    """The priorities of the rows that a buffer holds.

    Threads and processes: one thread's at a time. Views must come in the order in which they were made.

    Attributes:
        priorities: by row; a row has one from when it is followed until it is seen to be overwritten.
    """

    def __init__(self, storage: Storage, priorities: Priorities) -> None:
        """Begin with no rows."""
        self.priorities = priorities
        self._capacity, self._chunk_rows = storage.capacity, storage.chunk_rows
        self._stride_bits = storage.chunk_rows.bit_length()
        self._runs = Runs(storage.capacity, storage.chunk_rows)
        self._stamps = np.full(storage.capacity, _NOT_HELD, np.int64)

    def follow(self, view: View) -> None:
        """Bring the priorities up to date; the cost is that of the rows that changed."""
        changes = self._runs.follow(view)
        for change in changes:  # first all that went: a row may be gone from one run and be in another
            for gone in change.before.without(change.after):
                self.priorities.removed(gone.begin, gone.end)
                self._stamps[gone.begin : gone.end] = _NOT_HELD
        for change in changes:
            for came in change.after.without(change.before):
                self.priorities.added(came.begin, came.end)
                first = (came.generation << self._stride_bits) + came.begin % self._chunk_rows
                self._stamps[came.begin : came.end] = np.arange(first, first + came.end - came.begin)

    def stamps(self, rows: Rows) -> Rows:
        """Return the stamps of rows that are held, by which to tell later whether they were overwritten."""
        return self._stamps.take(rows)

    def hand_out(self, rows: Rows, stamps: Rows, weights: Weights, beta: float) -> tuple[Rows, Singles]:
        """Return what a batch has of rows that were drawn.

        Args:
            rows, stamps, weights: `(n,)`, as they were when each row was drawn.
        Returns:
            numbers by which `update` knows the rows, generation * capacity + row; and their importance, on one scale for all,
            whenever they were drawn.
        """
        return self.priorities.tree.hand_out(rows, stamps, weights, self._stride_bits, beta)

    def update(self, handles: Any, errors: Any) -> int:
        """Set the priorities of the rows that are still held.

        Args:
            handles: integers `(n,)`; errors: `(n,)`. Of a row that is named twice the last error counts.
        Returns:
            How many of the handles those were.
        Raises:
            ValueError: handles that are no integers, another number of errors, or one that is not finite. IndexError: a handle
                below 0. Nothing was changed.
        """
        given, values = np.asarray(handles), np.asarray(errors)
        if given.ndim != 1 or given.dtype.kind not in "iu" or values.shape != given.shape:
            raise ValueError(
                f"indices must be (n,) integers and errors (n,) numbers, got {given.dtype} of shape {given.shape} and "
                f"{values.shape}"
            )
        known = np.ascontiguousarray(given, np.int64)
        return self.priorities.update_held(known, np.ascontiguousarray(values, np.float64), self._stamps, self._stride_bits)
