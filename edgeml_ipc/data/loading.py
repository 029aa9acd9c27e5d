"""Loading: rows from a file into an empty buffer, after everything in the file was checked.

`layout` says where they are to lie, `restoring` writes them, and nothing is seen of them until all are there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from edgeml_ipc.data import edgeml_files
from edgeml_ipc.data.chunks import FIRST, LAST, TRUNCATED
from edgeml_ipc.data.columns import Array, DataShape
from edgeml_ipc.data.layout import Frames, Geometry, Piece, Run, layout_of
from edgeml_ipc.data.restoring import Restorer
from edgeml_ipc.data.saved_file import SavedFile
from edgeml_ipc.data.saved_rows import SavedRows
from edgeml_ipc.data.saving import Progress, kind_of, rows_at_once, words_of
from edgeml_ipc.data.schema import NEXT, ROW, STACK
from edgeml_ipc.data.storage import Storage
from edgeml_ipc.errors import SegmentError


class Source(Protocol):
    """Rows that can be loaded.

    Attributes:
        runs: oldest first. geometry: of the buffer that they lay in.
        next_sequence: above those of all rows. counters: rows inserted, sampled and redrawn.
    """

    runs: list[Run]
    geometry: Geometry
    next_sequence: int
    counters: dict[str, int]

    def read(self, begin: int, end: int) -> tuple[dict[str, Array], dict[str, Array]]:
        """Return the columns of rows, and of each its sequence, position, policy_version and flags."""


def check_schema(path: str, wanted: Sequence[DataShape], found: Sequence[DataShape]) -> None:
    """Raise `SegmentError` unless the fields are the same ones."""
    ours, theirs = ({shape.name: kind_of(shape) for shape in shapes} for shapes in (wanted, found))
    if ours != theirs:
        differ = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
        raise SegmentError(
            f"{path!r} cannot be loaded: it has other fields than this buffer: "
            + "; ".join(f"{name!r} is {theirs.get(name, 'missing')} there, {ours.get(name, 'missing')} here" for name in differ)
        )


def restore(storage: Storage, source: Source, progress: Progress | None) -> None:
    """Put the rows of a source into an empty storage; the newest, where not all fit."""
    frames = frames_of(storage, source) if storage.schema.has_frames else None
    restorer = Restorer(storage, frames)
    layout = layout_of(source.runs, source.geometry, Geometry(storage.capacity, storage.chunk_rows), frames)
    step = rows_at_once(storage)
    in_all = sum(piece.rows for piece in layout.pieces)
    lasts = {piece.writer: piece for piece in layout.pieces}
    extents = _extents(layout.pieces)
    begin = end = written = 0
    values, about = dict[str, Array](), dict[str, Array]()
    for piece, extent in zip(layout.pieces, extents, strict=True):
        done = 0
        while done < piece.rows:
            first = piece.first + done
            if not begin <= first < end:
                begin, end = first, min(first + step, extent)
                values, about = source.read(begin, end)
            rows = slice(first - begin, min(end, piece.first + piece.rows) - begin)
            known = {name: item[rows] for name, item in about.items()}
            done += rows.stop - rows.start
            if lasts[piece.writer] is piece and done == piece.rows and not known["flags"][-1] & LAST:
                known["flags"][-1] |= LAST | TRUNCATED  # nobody goes on with it
            restorer.write(piece, first - piece.first, {name: item[rows] for name, item in values.items()}, known)
            written += rows.stop - rows.start
            if progress is not None and (rows.stop == end - begin or piece is layout.pieces[-1]):
                progress(written, in_all)
    restorer.finish(layout, source.next_sequence, source.counters)


def frames_of(storage: Storage, source: Source) -> Frames:
    """Look through all observations for those that are stored already when their rows come."""
    total, step = sum(run.rows for run in source.runs), rows_at_once(storage)
    shares, detached = np.zeros(total + 1, np.bool_), np.zeros(total, np.bool_)
    framed = [column for column in storage.schema.columns if column.kind != ROW]
    for begin in range(0, total, step):
        end = min(begin + step, total)
        values, about = source.read(begin, min(end + 1, total))  # one row more: what follows the last one
        here, after = slice(0, end - begin), slice(1, end - begin + 1)
        alike = about["flags"][after] & FIRST == 0
        for column in framed:
            seen, then = values[column.field.name], values[NEXT + column.field.name][here]
            alike &= (words_of(then[: len(alike)]) == words_of(seen[after])).all(axis=1)
            if column.kind == STACK:
                own, following = (np.moveaxis(item, 1 + column.axis, 1) for item in (seen[here], then))
                detached[begin:end] |= (words_of(own[:, 1:]) != words_of(following[:, :-1])).any(axis=1)
        shares[begin + 1 : begin + 1 + len(alike)] = alike
    return Frames(storage.geometry.chunk_frames, storage.schema.stack, shares[:total], detached)


def _extents(pieces: Sequence[Piece]) -> list[int]:
    """Return, for each piece, where the rows end that are wanted one after the other from it on."""
    ends: list[int] = []
    following = -1
    for piece in reversed(pieces):
        end = piece.first + piece.rows
        ends.append(ends[-1] if following == end else end)
        following = piece.first
    return ends[::-1]


def load(storage: Storage, path: str, accept: Callable[[Mapping[str, Any]], None], progress: Progress | None) -> None:
    """Fill an empty storage from a file; see `ReplayBuffer.load`.

    Args:
        accept: is given the states of random generators, once all rows are there; a file of edgeml has none.
    """
    if begins_with(path, edgeml_files.MAGIC):
        with edgeml_files.edgeml_rows(path, storage.columns) as rows:
            restore(storage, rows, progress)
        return
    with SavedFile(path) as file:
        saved = SavedRows(file)
        check_schema(path, list(storage.columns.shapes.values()), saved.shapes)
        restore(storage, saved, progress)
        accept(saved.generators)


def begins_with(path: str, magic: bytes) -> bool:
    """Tell whether a file begins so."""
    try:
        with open(path, "rb") as file:
            return file.read(len(magic)) == magic
    except OSError as error:
        raise SegmentError(f"{path!r} cannot be read: {error.strerror}") from error
