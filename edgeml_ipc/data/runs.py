"""Runs: which rows are held, chunk by chunk, and what changed since they were looked at last.

A chunk has at most two runs of rows: of the generation that is being written, and what is left of the one before. So a run is
known by its chunk and by whether its generation is even or odd, and a look costs the runs that changed, not the rows there are.
"""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import numpy as np

from edgeml_ipc.data.chunks import Ints, snapshot
from edgeml_ipc.data.steps import ChunkMap, HeldSteps


class View:
    """The rows that are held at one moment.

    Attributes:
        spans: `(runs, 3)`: (end, row, stamp) of each run, oldest chunk first; see `RowTable.snapshot`.
        total: how many rows are held.
    """

    def __init__(self, chunk_map: ChunkMap) -> None:
        """Look now."""
        self._map = chunk_map
        self.table = chunk_map.storage.table
        spans, used = snapshot(self.table)
        self.spans = spans[:used]
        self.total = int(spans[used - 1, 0]) if used else 0

    @cached_property
    def steps(self) -> HeldSteps:
        """The episodes of these rows."""
        return self._map.steps_of(self.spans)

    @cached_property
    def counts(self) -> Ints:
        """How many rows each run has."""
        counts = self.spans[:, 0].copy()
        counts[1:] -= self.spans[:-1, 0]
        return counts


class Run(NamedTuple):
    """The rows from `begin` up to `end`, all written in one generation of their chunk."""

    begin: int
    end: int
    generation: int

    def without(self, other: Run) -> list[Run]:
        """Return the parts of this run that are not in another."""
        if self.generation != other.generation or other.end <= self.begin or self.end <= other.begin:
            parts = [self]
        else:
            parts = [self._replace(end=other.begin), self._replace(begin=other.end)]
        return [part for part in parts if part.begin < part.end]


class Change(NamedTuple):
    """A run that is not what it was; of no rows, where there was none or is none any more.

    Attributes:
        key: of the run: 2 * chunk + generation % 2.
    """

    key: int
    before: Run
    after: Run


class Runs:
    """Remembers the runs of one view, to tell what is different in the next.

    Threads and processes: one thread's at a time; views must come in the order in which they were made.
    """

    def __init__(self, capacity: int, chunk_rows: int) -> None:
        """Begin with no rows."""
        self._chunk_rows, self._stride_bits = chunk_rows, chunk_rows.bit_length()
        self._known = np.zeros((2 * -(-capacity // chunk_rows), 3), np.int64)
        self._spans = b""

    @property
    def keys(self) -> int:
        """How many runs there can be."""
        return len(self._known)

    def keys_of(self, view: View) -> Ints:
        """Return the key of each run of a view."""
        keys: Ints = 2 * (view.spans[:, 1] // self._chunk_rows) + ((view.spans[:, 2] >> self._stride_bits) & 1)
        return keys

    def follow(self, view: View) -> list[Change]:
        """Return what changed since the view before."""
        spans = view.spans.tobytes()
        if spans == self._spans:
            return []
        self._spans = spans
        now = np.zeros_like(self._known)
        keys = self.keys_of(view)
        now[keys, 0] = view.spans[:, 1]
        now[keys, 1] = view.spans[:, 1] + view.counts
        now[keys, 2] = view.spans[:, 2] >> self._stride_bits
        changed = np.flatnonzero((now != self._known).any(axis=1))
        pairs = zip(changed.tolist(), self._known[changed].tolist(), now[changed].tolist(), strict=True)
        changes = [Change(key, Run(*before), Run(*after)) for key, before, after in pairs]
        self._known = now
        return changes
