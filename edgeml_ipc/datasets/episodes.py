"""Episodes: the one walk over a buffer that all exports share."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from edgeml_ipc.data.chunks import LAST, TERMINAL, Ints
from edgeml_ipc.data.columns import Array
from edgeml_ipc.data.reading import ABOUT, Reader
from edgeml_ipc.data.replay_buffer import SharedBuffer
from edgeml_ipc.data.saving import row_bytes_of, words_of
from edgeml_ipc.data.schema import NEXT, OBSERVATIONS
from edgeml_ipc.data.steps import ChunkMap
from edgeml_ipc.datasets.open_episode import MOST_BYTES

logger = logging.getLogger("edgeml_ipc")

_NEEDED: Final = ("observations", "next_observations", "actions", "rewards")


@dataclass(frozen=True)
class Episode:
    """Transitions of one episode that follow on from one another, as copies.

    Attributes:
        values: for each field of a transition `(T, *shape)`; a field within a nested dict is called "observations.image".
        following: the observation after the last transition, `(1, *shape)` for each of its fields.
        terminated: the episode ended for good. truncated: it was cut off, or goes on, or what follows is not held.
    """

    values: dict[str, Array]
    following: dict[str, Array]
    terminated: bool
    truncated: bool

    def __len__(self) -> int:
        """Return T, the number of transitions."""
        return len(next(iter(self.values.values())))

    def observations(self) -> dict[str, Array]:
        """Return for each field of the observation all T + 1 of them."""
        return {name: np.concatenate([self.values[name], last]) for name, last in self.following.items()}


def episodes(buffer: SharedBuffer) -> Iterator[Episode]:
    """Go through the episodes that a buffer holds now, oldest first.

    All rows that are held are in one: of an episode whose beginning was overwritten, what is left; of one that goes on, what is
    there. An episode is cut where `masks` are 0, where a transition does not begin with the observation that the one before
    ended with, and where it takes 512 MiB. Others may write and sample meanwhile; rows that they overwrite before they were
    copied are left out.

    Raises:
        ValueError: the buffer has no `observations`, `next_observations`, `actions` or `rewards`.
        ConnectionClosed: it was closed.
    """
    walk = _Walk(buffer)
    try:
        for rows, stamps in walk.runs():
            yield from walk.episodes(rows, stamps)
    finally:
        walk.close()


def check_fields(buffer: SharedBuffer) -> None:
    """Raise `ValueError` unless the transitions of a buffer make episodes."""
    shapes = buffer._storage.columns.shapes
    roots = {name.split(".")[0] for name in shapes}
    if missing := [name for name in _NEEDED if name not in roots]:
        raise ValueError(f"the buffer has the fields {sorted(shapes)}; a data set needs {missing}, too")
    if unlike := [name for name in shapes if name.split(".")[0] == OBSERVATIONS and NEXT + name not in shapes]:
        raise ValueError(f"the buffer has {unlike} and not the same of next_observations, which a data set needs")


class _Walk:
    """One pass over the rows that were held when it began."""

    def __init__(self, buffer: SharedBuffer) -> None:
        check_fields(buffer)
        self._storage, self._table = buffer._storage, buffer._storage.table
        shapes = self._storage.columns.shapes
        self._observations = [name for name in shapes if name.split(".")[0] == OBSERVATIONS]
        self._fields = list(shapes)
        self._reader = Reader(self._storage, [*self._fields, ABOUT + "flags"])
        self._most_rows = max(1, MOST_BYTES // max(1, sum(map(row_bytes_of, shapes.values()))))

    def close(self) -> None:
        """Let go of the columns."""
        self._reader.close()

    def runs(self) -> Iterator[tuple[Ints, Ints]]:
        """Return rows, and their stamps, that follow on from one another within an episode, by age of their first."""
        held = ChunkMap(self._storage).steps()
        rows = held.rows()
        before, order, stamps = held.before(rows), held.order(rows), held.stamps(rows)
        whole = np.empty(len(rows), np.bool_)
        self._table.intact(rows, stamps, whole)  # what was said of these rows was true
        by_rank = np.argsort(order)
        kept = by_rank[whole[by_rank]]
        begins = (before[kept] == 0) | (np.diff(order[kept], prepend=-2) != 1)
        found = np.split(kept, np.flatnonzero(begins))[1:]
        for places in sorted(found, key=lambda places: int(places[0])):
            for at in range(0, len(places), self._most_rows):
                piece = places[at : at + self._most_rows]
                yield rows[piece], stamps[piece]

    def episodes(self, rows: Ints, stamps: Ints) -> Iterator[Episode]:
        """Copy rows, and return the episodes in them."""
        *arrays, flags = self._reader.read(rows).arrays
        whole = np.empty(len(rows), np.bool_)
        if self._table.intact(rows, stamps, whole):
            kept = slice(int(np.flatnonzero(~whole)[-1]) + 1, None)  # the oldest go first
            arrays, flags = [array[kept] for array in arrays], flags[kept]
        if not len(flags):
            return
        values = dict(zip(self._fields, arrays, strict=True))
        nexts = {name: values.pop(NEXT + name) for name in self._observations}
        elsewhere = np.zeros(len(flags) - 1, np.bool_)
        for name in self._observations:
            elsewhere |= (words_of(nexts[name][:-1]) != words_of(values[name][1:])).any(axis=1)
        terminal = flags & TERMINAL != 0
        if elsewhere.any():
            logger.warning(
                "an episode is written in %d parts: a transition does not begin with the observation that the one before ended "
                "with",
                int(elsewhere.sum()) + 1,
            )
        ends = np.flatnonzero(np.append(elsewhere | terminal[:-1] | (flags[:-1] & LAST != 0), True)) + 1
        for begin, end in zip([0, *ends[:-1].tolist()], ends.tolist(), strict=True):
            part = {name: array[begin:end] for name, array in values.items()}
            following = {name: nexts[name][end - 1 : end] for name in self._observations}
            yield Episode(part, following, bool(terminal[end - 1]), not terminal[end - 1])
