"""Follower: records the rows that other writers commit to a shared buffer, in this process or in another."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from threading import Event, Thread
from typing import Final

import numpy as np

from edgeml_ipc.data.chunks import LAST, TERMINAL, Ints, snapshot
from edgeml_ipc.data.reading import ABOUT, Reader
from edgeml_ipc.data.replay_buffer import SharedBuffer
from edgeml_ipc.data.saving import rows_at_once
from edgeml_ipc.data.schema import NEXT
from edgeml_ipc.datasets.recorder import Recorder
from edgeml_ipc.datasets.rlds_features import Feature, fields_of
from edgeml_ipc.errors import ConnectionClosed, DatasetError

logger = logging.getLogger("edgeml_ipc")

_LONGEST_WAIT_SECONDS: Final = 1.0
_PAUSE_SECONDS: Final = 0.02  # between two looks, so that writers who never pause cost little


class _Open:
    """A writer whose rows are recorded.

    Attributes:
        row, stamp: of its last one. position: that its next one has if the episode goes on.
    """

    def __init__(self, recorder: Recorder) -> None:
        self.recorder, self.row, self.stamp, self.position = recorder, -1, -1, 0


class Follower:
    """Reads rows as they come, in a thread, until it is closed. What is in the buffer when it is made is not recorded.

    Threads and processes: `close` is called once.

    Attributes:
        recorded: rows of others so far. inserted: rows that anybody inserted since it was made, as far as it has looked.
    """

    def __init__(self, buffer: SharedBuffer, features: Sequence[Feature], new_recorder: Callable[[], Recorder]) -> None:
        """Begin.

        Raises:
            ValueError: the buffer lacks a field.
        """
        storage = buffer._storage
        self._buffer, self._storage, self._table, self._new_recorder = buffer, storage, storage.table, new_recorder
        self._values, self._nexts = fields_of(features, storage.columns.shapes)
        self._reader = Reader(storage, [*self._values, *self._nexts, ABOUT + "position", ABOUT + "flags"])
        about = storage.about.arrays
        self._sequence, self._writer, self._flags = about["sequence"], about["writer"], about["flags"]
        self._open: dict[int, _Open] = {}
        self._known: dict[int, int] = {}  # writer -> the newest sequence number of theirs that was looked at
        self._first_id = buffer.latest_data_id() + 1
        self.recorded = self.inserted = 0
        self._error: DatasetError | None = None
        self._stopped = Event()
        firsts, lasts, _ = self._runs()
        for writer, sequence in zip(self._writer[firsts].tolist(), self._sequence[lasts].tolist(), strict=True):
            self._known[writer] = max(sequence, self._known.get(writer, -1))
        self._thread = Thread(target=self._run, name="edgeml_ipc follower", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Record what is there, end the open episodes as truncated, and stop.

        Raises:
            DatasetError: an episode could not be written, now or before; then nothing more was recorded.
        """
        self._stopped.set()
        self._storage.changes.wake()
        self._thread.join()
        try:
            if self._error is not None:
                raise self._error
            self._look()
        except ConnectionClosed:
            logger.warning("the buffer was closed before the logger: its last rows may not have been recorded")
        finally:
            self._reader.close()

    def _run(self) -> None:
        changes = self._storage.changes
        try:
            while not self._stopped.is_set():
                seen = changes.begin()
                if not self._look():
                    changes.wait(seen, _LONGEST_WAIT_SECONDS)
                    self._table.recover()
                self._stopped.wait(_PAUSE_SECONDS)
        except ConnectionClosed:
            return
        except DatasetError as error:
            logger.error("rows of other writers are no longer recorded: %s", error)
            self._error = error

    def _look(self) -> bool:
        """Record what is new; tell whether anything was."""
        inserted = self._buffer.latest_data_id() + 1 - self._first_id
        rows, stamps = self._new_rows()
        step = rows_at_once(self._storage)
        for begin in range(0, len(rows), step):
            self._record(rows[begin : begin + step], stamps[begin : begin + step])
        self.inserted = inserted
        for number, writer in list(self._open.items()):
            self._look_after(number, writer)
        return bool(len(rows))

    def _new_rows(self) -> tuple[Ints, Ints]:
        """Return the rows of others that were not looked at, each writer's in its order."""
        own = self._buffer._default_writer
        firsts, lasts, stamps = self._runs()
        found: list[tuple[int, int, Ints, Ints]] = []
        by, newest = self._writer[firsts].tolist(), self._sequence[lasts].tolist()
        for run, (writer, last) in enumerate(zip(by, newest, strict=True)):
            if last <= self._known.get(writer, -1) or (own is not None and writer == own.number):
                continue
            here = np.arange(firsts[run], lasts[run] + 1)
            here = here[self._sequence[here] > self._known.get(writer, -1)]
            if len(here):
                found.append((writer, int(self._sequence[here[0]]), here, stamps[run] + here - firsts[run]))
        found.sort(key=lambda entry: entry[:2])
        for writer, _, here, _ in found:
            self._known[writer] = max(int(self._sequence[here[-1]]), self._known.get(writer, -1))
        none = np.empty(0, np.int64)
        return np.concatenate([none, *(entry[2] for entry in found)]), np.concatenate([none, *(entry[3] for entry in found)])

    def _record(self, rows: Ints, stamps: Ints) -> None:
        """Copy rows, and record those that were not overwritten meanwhile, episode by episode."""
        writers = self._writer[rows]
        *arrays, position, flags = self._reader.read(rows).arrays
        whole = np.empty(len(rows), np.bool_)
        self._table.intact(rows, stamps, whole)
        fields = [*self._values, *self._nexts]
        kept = np.flatnonzero(whole)
        ends = flags & (LAST | TERMINAL) != 0
        goes_on = (np.diff(kept) == 1) & (np.diff(writers[kept]) == 0) & (np.diff(position[kept]) == 1) & ~ends[kept[:-1]]
        for piece in np.split(kept, np.flatnonzero(~goes_on) + 1):
            if not len(piece):
                continue
            first, last = int(piece[0]), int(piece[-1])
            writer = self._open.get(int(writers[first]))
            if writer is None:
                writer = self._open[int(writers[first])] = _Open(self._new_recorder())
            if position[first] != writer.position:
                writer.recorder.end_trajectory()  # it ended after its last row was read, or what is between is missing
            values = {name: array[first : last + 1] for name, array in zip(fields, arrays, strict=True)}
            following = {name[len(NEXT) :]: values.pop(name)[-1:] for name in self._nexts}
            ended = bool(ends[last])
            writer.recorder.extend(values, following, ended, bool(flags[last] & TERMINAL))
            writer.row, writer.stamp = int(rows[last]), int(stamps[last])
            writer.position = 0 if ended else int(position[last]) + 1
            self.recorded += len(piece)

    def _look_after(self, number: int, writer: _Open) -> None:
        """End an episode that its writer ended after the last row was read."""
        ended = bool(self._flags[writer.row] & LAST)
        whole = np.empty(1, np.bool_)
        self._table.intact(np.array([writer.row]), np.array([writer.stamp]), whole)
        if whole[0] and ended and writer.position:
            writer.recorder.end_trajectory()
            writer.position = 0

    def _runs(self) -> tuple[Ints, Ints, Ints]:
        """Return the first row, the last row and the first stamp of each run of whole rows."""
        spans, used = snapshot(self._table)
        counts = np.diff(spans[:used, 0], prepend=0)
        return spans[:used, 1], spans[:used, 1] + counts - 1, spans[:used, 2]
