"""Layouts: where rows that were saved are to lie in an empty buffer, so that it samples as the saved one did.

What is drawn depends on the order of rows by age, and on which runs follow on from one another. In a buffer of the same
capacity and `chunk_rows` each run is put where it was:

    saved, oldest first      A 5 rows | B 5 | A 8 | B 8 | A 3 | B 3         chunks of 8 rows, 4 chunks, A and B write
    chunk                    0          1     2     3     0     1
    row in the chunk         3 .. 7     3 ..  0 ..  0 ..  0 ..  0 ..        the generation before, and the present one

In another, runs are laid one after the other, each from a chunk of its own on if the run before was another writer's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]
NONE: Final = -1


class Geometry(NamedTuple):
    """Rows of a buffer, and of each of its chunks; the last chunk may be shorter."""

    capacity: int
    chunk_rows: int

    @property
    def chunks(self) -> int:
        """How many chunks there are."""
        return -(-self.capacity // self.chunk_rows)

    def rows_in(self, chunk: int) -> int:
        """Return how many rows a chunk has."""
        return min(self.chunk_rows, self.capacity - chunk * self.chunk_rows)


class Frames:
    """What rows need of the frames of their chunks.

    Attributes:
        per_chunk: frames that a chunk has. stack: frames in an observation.
        shares: `(rows,)`, of all saved rows by age: its observation is the one that followed the row before.
        detached: `(rows,)`: the observation that follows shares no frame with its own.
    """

    def __init__(self, per_chunk: int, stack: int, shares: Mask, detached: Mask) -> None:
        """Count the frames."""
        self.per_chunk, self.stack, self.shares, self.detached = per_chunk, stack, shares, detached
        each = np.where(shares, 0, stack) + np.where(detached, stack, 1)
        self._before = np.concatenate(([0], np.cumsum(each)))

    def taken(self, first: int, rows: int) -> int:
        """Return how many frames rows take that lie one after the other, behind no other of theirs."""
        return int(self._before[first + rows] - self._before[first]) + (self.stack if self.shares[first] else 0)

    def room(self, first: int, used: int) -> int:
        """Return how many rows there is room for behind frames that are used."""
        left = self.per_chunk - used - (self.stack if self.shares[first] else 0)
        return int(np.searchsorted(self._before, self._before[first] + left, side="right")) - 1 - first


class Run(NamedTuple):
    """Rows of one writer, one after the other, as they lay in the saved buffer.

    Attributes:
        writer: its number. rows: how many. row: where the first lay.
        follows: they go on where the run before of the same writer ended.
    """

    writer: int
    follows: bool
    rows: int
    row: int


class Piece(NamedTuple):
    """Rows that are to lie in one chunk, where others of the same writer and generation may come before them.

    Attributes:
        first: the first of them, counted through the saved rows by age. rows: how many.
        writer: as in `Run`.
        chunk, generation, offset: where the first is to lie; generation 0, or 1 over what is left of generation 0.
        previous: the piece before of the same writer if this one goes on from it, else -1.
    """

    first: int
    rows: int
    writer: int
    chunk: int
    generation: int
    offset: int
    previous: int


class Layout(NamedTuple):
    """Pieces, oldest rows first, and the chunk that is to be claimed next.

    Attributes:
        left: the first so many are left over from generation 0: generation 1 has begun in their chunks, has rows of its own
            or none, and those before the offset are gone.
    """

    pieces: list[Piece]
    hand: int
    left: int


def layout_of(runs: Sequence[Run], saved: Geometry, target: Geometry, frames: Frames | None) -> Layout:
    """Return where runs, oldest first, are to lie. `frames`: None where observations lie in their rows."""
    same = _as_it_was(runs, saved) if saved == target else None
    if same is not None and frames is not None:
        used: dict[int, int] = {}
        for piece in same.pieces:
            used[piece.chunk] = used.get(piece.chunk, 0) + frames.taken(piece.first, piece.rows)
        same = None if max(used.values(), default=0) > frames.per_chunk else same
    return same or _packed(runs, target, frames)


def _as_it_was(runs: Sequence[Run], geometry: Geometry) -> Layout | None:
    """Put each run where it was; None if rows that were lost while the buffer was saved left runs that no writer leaves."""
    size, chunks = geometry.chunk_rows, geometry.chunks
    if any(run.row % size + run.rows > geometry.rows_in(run.row // size) for run in runs):
        return None
    hand = (runs[-1].row // size + 1) % chunks if runs else 0
    turns = [(run.row // size - hand) % chunks for run in runs]
    falls = [at for at in range(1, len(runs)) if turns[at] <= turns[at - 1]]
    begun = [at + 1 for at, run in enumerate(runs) if run.row % size]
    newer = falls[0] if falls else max(begun, default=0)  # the first run of the generation that was being written
    if len(falls) > 1 or max(begun, default=0) > newer:
        return None
    left = {run.row // size: run.row % size for run in runs[:newer]}
    if any(run.rows > left.get(run.row // size, size) for run in runs[newer:]):
        return None
    pieces, last, first = [], dict[int, int](), 0
    for at, run in enumerate(runs):
        chunk, offset = divmod(run.row, size)
        generation = int(at >= newer and chunk in left)
        previous = last.get(run.writer, NONE) if run.follows else NONE
        pieces.append(Piece(first, run.rows, run.writer, chunk, generation, offset, previous))
        last[run.writer] = at
        first += run.rows
    return Layout(pieces, hand, newer)


class _Stretch(NamedTuple):
    """Runs of one writer that follow on from one another with no other writer's between them.

    Attributes:
        parts: of each run the first row, counted through the saved rows, and how many.
        follows: the first goes on from an earlier run of its writer.
    """

    writer: int
    follows: bool
    parts: list[tuple[int, int]]


def _packed(runs: Sequence[Run], geometry: Geometry, frames: Frames | None) -> Layout:
    """Lay runs one after the other, each stretch of one writer from a chunk of its own on, in the order of age if that fits.

    If it does not, runs of the same writer are brought together: first of two neighbours, then of four, and so on; and if that
    does not help, the oldest rows are left out.
    """
    rows = min(geometry.capacity, sum(run.rows for run in runs))
    while rows > 0:
        kept = _newest(runs, rows)
        neighbours, excess = 1, geometry.chunks
        while neighbours < 2 * len(kept):
            pieces = _cut(_stretches(kept, neighbours), geometry, frames)
            if pieces[-1].chunk < geometry.chunks:
                return Layout(pieces, (pieces[-1].chunk + 1) % geometry.chunks, 0)
            excess = min(excess, pieces[-1].chunk + 1 - geometry.chunks)
            neighbours *= 2
        rows -= min(1 + rows // 16, excess * max(1, geometry.chunk_rows // 2))
    return Layout([], 0, 0)


def _newest(runs: Sequence[Run], rows: int) -> list[tuple[int, Run]]:
    """Return the runs with the newest rows, each with its first row, counted through all saved rows."""
    gone = sum(run.rows for run in runs) - rows
    kept, first = [], 0
    for run in runs:
        cut = min(max(0, gone - first), run.rows)
        if cut < run.rows:
            kept.append((first + cut, run._replace(rows=run.rows - cut, follows=run.follows and not cut)))
        first += run.rows
    return kept


def _stretches(kept: Sequence[tuple[int, Run]], neighbours: int) -> list[_Stretch]:
    found: list[_Stretch] = []
    for begin in range(0, len(kept), neighbours):
        for first, run in sorted(kept[begin : begin + neighbours], key=lambda pair: pair[1].writer):
            if not (found and run.follows and found[-1].writer == run.writer):
                found.append(_Stretch(run.writer, run.follows, [(first, run.rows)]))
                continue
            parts = found[-1].parts
            if parts[-1][0] + parts[-1][1] == first:
                parts[-1] = (parts[-1][0], parts[-1][1] + run.rows)
            else:
                parts.append((first, run.rows))
    return found


def _cut(stretches: Sequence[_Stretch], geometry: Geometry, frames: Frames | None) -> list[Piece]:
    """Cut stretches into pieces, one chunk after the other, in as many chunks as that takes."""
    pieces: list[Piece] = []
    last: dict[int, int] = {}
    chunk = -1
    for stretch in stretches:
        if not (stretch.follows and stretch.writer in last):
            last[stretch.writer] = NONE
        chunk, offset, used = chunk + 1, 0, 0
        for first, rows in stretch.parts:
            end = first + rows
            while first < end:
                room = geometry.rows_in(min(chunk, geometry.chunks - 1)) - offset
                count = min(end - first, room if frames is None else min(room, frames.room(first, used)))
                if count <= 0:
                    chunk, offset, used = chunk + 1, 0, 0
                    continue
                pieces.append(Piece(first, count, stretch.writer, chunk, 0, offset, last[stretch.writer]))
                last[stretch.writer] = len(pieces) - 1
                used += 0 if frames is None else frames.taken(first, count)
                first, offset = first + count, offset + count
    return pieces
