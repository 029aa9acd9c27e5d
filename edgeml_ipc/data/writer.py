"""Writers: one stream of transitions into a buffer, episode after episode."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from threading import Lock
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeml_ipc.data.chunks import FIRST, LAST, TERMINAL, TRUNCATED
from edgeml_ipc.data.columns import Array
from edgeml_ipc.data.storage import Storage
from edgeml_ipc.data.transitions import completed, positions_of
from edgeml_ipc.errors import ConnectionClosed


class Writer:
    """One stream of transitions: its episodes are contiguous, and no other writer's rows come between them.

    An environment needs one of its own where one process runs several. Made by `ReplayBuffer.writer`. A context manager.

    Threads and processes: any thread may call; each insert is one atomic step. Of no use in a forked child.

    Attributes:
        number: of this writer, which no other of the buffer ever has; the rows carry it.
    """

    def __init__(self, storage: Storage, lock: Lock) -> None:
        """Register. `lock` makes the inserts of one process's writers take turns."""
        self._storage, self._lock = storage, lock
        self._table = storage.table
        self._leaves = storage.columns.leaves()
        about = storage.about.arrays
        self._sequence, self._position = about["sequence"], about["position"]
        self._version, self._writer, self._flags = about["policy_version"], about["writer"], about["flags"]
        self._place, self.number = self._table.register()
        self._next_position = 0  # in the episode; 0: none is open
        self._closed = False

    def insert(self, data: Mapping[str, Any], end_of_trajectory: bool = False) -> None:
        """Copy one transition in; see `ReplayBuffer.insert`."""
        tree, version = completed(data, end_of_trajectory)
        values = self._storage.columns.check(tree, rows=None)
        ended, masked = bool(tree["dones"]), bool(tree["masks"])
        with self._lock:
            row, _, sequence = self._table.reserve(self._place, 1)
            for column, value in zip(self._leaves, values, strict=True):
                column[row] = value
            position = self._next_position
            self._sequence[row] = sequence
            self._position[row] = position
            self._version[row] = version
            self._writer[row] = self.number
            flags = FIRST if position == 0 else 0
            if ended:
                flags |= LAST | (TRUNCATED if masked else TERMINAL)
            self._flags[row] = flags
            self._table.commit(self._place)
            self._next_position = 0 if ended else position + 1

    def batch_insert(self, batch: Iterable[Mapping[str, Any]] | Mapping[str, Any]) -> None:
        """Copy many transitions in; see `ReplayBuffer.batch_insert`."""
        check = self._storage.columns.check
        if isinstance(batch, Mapping):
            tree, versions = completed(batch, False)
            count = len(np.atleast_1d(tree.get("rewards", ())))
            values = check(tree, rows=count)
        else:
            pairs = [completed(data, False) for data in batch]
            checked = [check(tree, rows=None) for tree, _ in pairs]
            count = len(checked)
            values = [np.stack(column) for column in zip(*checked, strict=True)]
            versions = np.array([version for _, version in pairs], np.int64)
        if count == 0:
            return
        about = dict(zip(self._storage.columns.shapes, values, strict=True))
        versions = np.broadcast_to(np.asarray(versions, np.int64), (count,))
        with self._lock:
            self._write(values, about["dones"], about["masks"] != 0, versions)

    def _write(
        self, values: list[Array], ended: npt.NDArray[np.bool_], masked: npt.NDArray[np.bool_], versions: npt.NDArray[np.int64]
    ) -> None:
        count = len(ended)
        positions = positions_of(ended, self._next_position)
        flags = np.where(positions == 0, FIRST, 0) | np.where(ended, LAST | np.where(masked, TRUNCATED, TERMINAL), 0)
        done = 0
        while done < count:
            row, granted, sequence = self._table.reserve(self._place, count - done)
            here, there = slice(row, row + granted), slice(done, done + granted)
            for column, value in zip(self._leaves, values, strict=True):
                column[here] = value[there]
            self._sequence[here] = np.arange(sequence, sequence + granted)
            self._position[here] = positions[there]
            self._version[here] = versions[there]
            self._writer[here] = self.number
            self._flags[here] = flags[there]
            self._table.commit(self._place)
            done += granted
            self._next_position = 0 if ended[done - 1] else int(positions[done - 1]) + 1

    def end_trajectory(self) -> None:
        """End the open episode, if there is one, as truncated: the next transition begins another."""
        with self._lock:
            if self._next_position:
                self._table.mark(self._place, LAST | TRUNCATED)
                self._next_position = 0

    def close(self) -> None:
        """End the open episode as truncated, and leave. Idempotent."""
        with self._lock:
            if not self._closed:
                self._closed = True
                with contextlib.suppress(ConnectionClosed):  # the buffer was closed before, and ended all its writers
                    self._table.forget(self._place)

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()
