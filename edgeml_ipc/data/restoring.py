"""Restoring: writing rows that were saved into an empty buffer, as if their writers had written them there.

Nothing is seen of them before `finish`. This is the one place that knows how rows get into a storage other than by a stream.
docs/replay.md draws chunks, rows and frames.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from edgeml_ipc.data.chunks import native
from edgeml_ipc.data.columns import Array
from edgeml_ipc.data.layout import NONE, Frames, Layout, Piece
from edgeml_ipc.data.local_table import LocalTable
from edgeml_ipc.data.schema import FRAME, NEXT, ROW, Stored
from edgeml_ipc.data.storage import Storage
from edgeml_ipc.errors import SegmentError

DETACHED: Final = 16  # flag of a row: the observation that follows shares no frame with its own
_OF: Final = np.dtype(
    [
        *[("writer", "i8"), ("previous_chunk", "i8"), ("previous_generation", "u8")],
        *[("previous_rows", "i8"), ("before", "i8"), ("writer_rows", "i8")],
    ]
)
_CHUNK: Final = np.dtype(
    {
        "names": ["reserved", "committed", "ended", "of"],
        "formats": ["u8", "u8", "u8", (_OF, 2)],
        "offsets": [8, 16, 24, 32],
        "itemsize": 128,
    }
)
_CURSOR_BYTES: Final = 64
_HAND, _NEXT_SEQUENCE, _NEXT_WRITER = 0x080, 0x100, 0x180


class _Counters(NamedTuple):
    hand: int
    next_sequence: int
    next_writer: int
    inserted: int


class Restorer:
    """Writes pieces into an empty storage.

    Threads and processes: one thread's, and nobody may insert meanwhile.
    """

    def __init__(self, storage: Storage, frames: Frames | None) -> None:
        """Begin.

        Args:
            frames: what the rows need of them; None: the storage has none.
        Raises:
            SegmentError: the storage is not empty, or somebody is about to write.
        """
        inserted, _, _, _, _, writers = storage.table.counts()
        if inserted or writers:
            raise SegmentError(
                f"{storage.label} cannot be loaded into: {inserted} rows were inserted and {writers} writers are there; load "
                "into a buffer that was just made, before anybody writes"
            )
        self._storage, self._frames = storage, frames
        self._numbers: dict[int, int] = {}  # of the new writers, by those of the old
        self._used: dict[int, int] = {}  # frames, by chunk

    def write(self, piece: Piece, begin: int, values: Mapping[str, Array], about: Mapping[str, Array]) -> None:
        """Write rows of a piece.

        Args:
            begin: how many of its rows were written before; they come in order.
            values: for each field `(rows, *item)`.
            about: of each row sequence, position, policy_version and flags.
        """
        count = len(about["sequence"])
        row = piece.chunk * self._storage.chunk_rows + piece.offset + begin
        rows = slice(row, row + count)
        known = dict(about)
        if self._frames is not None:
            first = piece.first + begin
            known["frame"], detached = self._place(self._frames, piece, first, count, fresh=begin == 0, values=values)
            known["flags"] = about["flags"] | np.where(detached, DETACHED, 0).astype(np.uint8)
        for column in self._storage.schema.columns:
            if column.kind == ROW:
                self._storage.columns.arrays[column.field.name][rows] = values[column.field.name]
        for name, value in known.items():
            self._storage.about.arrays[name][rows] = value
        self._storage.about.arrays["writer"][rows] = self._numbers.setdefault(piece.writer, len(self._numbers) + 1)

    def _place(
        self, frames: Frames, piece: Piece, first: int, count: int, *, fresh: bool, values: Mapping[str, Array]
    ) -> tuple[Array, Array]:
        """Write the observations of rows; return the newest frame of each row's own, and which are detached."""
        used = self._used.get(piece.chunk, 0)
        new, detached = ~frames.shares[first : first + count], frames.detached[first : first + count]
        new[0] |= fresh
        own = np.where(new, frames.stack, 0)
        ahead = np.where(detached, frames.stack, 1)
        ends = used + np.cumsum(own + ahead)
        newest = ends - ahead - 1
        self._used[piece.chunk] = int(ends[-1])
        for column in self._storage.schema.columns:
            if column.kind != ROW:
                array = self._storage.columns.arrays[column.field.name]
                ring = array[piece.chunk * frames.per_chunk : (piece.chunk + 1) * frames.per_chunk]
                seen, then = (values[name] for name in (column.field.name, NEXT + column.field.name))
                _put_frames(ring, column, newest[new], seen[new], frames.stack)
                _put_frames(ring, column, (newest + ahead)[detached], then[detached], frames.stack)
                _put_frames(ring, column, (newest + ahead)[~detached], then[~detached], 1)
        return newest % frames.per_chunk, detached

    def finish(self, layout: Layout, next_sequence: int, counters: Mapping[str, int]) -> None:
        """Make all rows seen at once.

        Args:
            layout: whose pieces were written.
            next_sequence: of the row that is inserted next.
            counters: rows inserted, sampled and redrawn, from which this buffer counts on.
        """
        storage = self._storage
        stride = 1 << storage.chunk_rows.bit_length()
        chunks = np.zeros(-(-storage.capacity // storage.chunk_rows), _CHUNK)
        for at, piece in enumerate(layout.pieces):
            chunk, end = chunks[piece.chunk], piece.offset + piece.rows
            of = chunk["of"][piece.generation]
            if at < layout.left:
                chunk["ended"], chunk["committed"] = end, stride
                chunk["reserved"] = max(chunk["reserved"], stride + (0 if of["writer"] else piece.offset))
                chunk["of"]["before"][1] += piece.rows
            else:
                chunk["committed"] = piece.generation * stride + end
                chunk["reserved"] = max(chunk["reserved"], chunk["committed"])
            if not of["writer"]:  # else it goes on behind another piece
                of["writer"] = self._numbers[piece.writer]
                before = layout.pieces[piece.previous] if piece.previous != NONE else None
                of["previous_chunk"] = NONE if before is None else before.chunk
                of["previous_generation"] = 0 if before is None else before.generation
                of["previous_rows"] = 0 if before is None else before.offset + before.rows
        held = sum(piece.rows for piece in layout.pieces)
        current = int(chunks["committed"][0]) // stride
        chunks["of"]["before"][0, current] += max(0, counters["inserted"] - held)
        _put(storage, chunks, _Counters(layout.hand, next_sequence, len(self._numbers) + 1, max(held, counters["inserted"])))
        storage.table.tally(counters["sampled"], counters["redrawn"])


def _put_frames(ring: Array, column: Stored, newest: Array, items: Array, frames: int) -> None:
    """Write the last so many frames of items, of which the newest are to lie at `newest`, modulo the ring."""
    if column.kind == FRAME:
        ring[newest % len(ring)] = items
        return
    by_frame = np.moveaxis(items, 1 + column.axis, 1)
    for back in range(frames):
        ring[(newest - back) % len(ring)] = by_frame[:, by_frame.shape[1] - 1 - back]


def _put(storage: Storage, chunks: npt.NDArray[Any], counters: _Counters) -> None:
    """Write the state of the chunks, `committed` last."""
    if isinstance(storage.table, LocalTable):
        _put_local(storage.table, chunks, counters)
        return
    rows, segment = native(), storage.segment
    assert rows is not None
    assert segment is not None
    at = rows.schema_at(tuple(storage.geometry)) - storage.geometry.cursors * _CURSOR_BYTES - chunks.nbytes
    there = np.frombuffer(segment.memory, _CHUNK, len(chunks), at)
    for name in ("of", "reserved", "ended"):
        there[name] = chunks[name]
    places = ((_NEXT_SEQUENCE, counters.next_sequence), (_NEXT_WRITER, counters.next_writer), (_HAND, counters.hand))
    for offset, value in places:
        np.frombuffer(segment.memory, np.int64, 1, offset)[0] = value
    there["committed"] = chunks["committed"]


def _put_local(table: LocalTable, chunks: npt.NDArray[Any], counters: _Counters) -> None:
    with table._lock:
        table._hand, table._next_sequence, table._next_writer = counters[0], counters[1], counters[2] - 1
        table._counts["inserted"] = counters.inserted
        table._reserved, table._ended = chunks["reserved"].tolist(), chunks["ended"].tolist()
        table._before = chunks["of"]["previous_chunk"].reshape(-1).tolist()
        table._before_generation = chunks["of"]["previous_generation"].reshape(-1).tolist()
        table._before_rows = chunks["of"]["previous_rows"].reshape(-1).tolist()
        table._committed = chunks["committed"].tolist()
