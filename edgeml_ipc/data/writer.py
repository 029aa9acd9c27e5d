"""Writers: one stream of items into a buffer, episode after episode."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any

from edgeml_ipc.data.flow import Flow
from edgeml_ipc.data.storage import Storage
from edgeml_ipc.data.transitions import Preparation, Prepared, rows_of
from edgeml_ipc.errors import ConnectionClosed

logger = logging.getLogger("edgeml_ipc")


def _declined(data: Mapping[str, Any], end_of_trajectory: bool) -> bool:
    return False


class Writer:
    """One stream of items: its episodes are contiguous, and no other writer's rows come between them.

    An environment needs one of its own where one process runs several. Made by `ReplayBuffer.writer`. A context manager.

    Threads and processes: any thread may call; each insert is one atomic step. Of no use in a forked child.

    Attributes:
        number: of this writer, which no other of the buffer ever has; the rows carry it.
        try_insert: `insert` for an item that is just as it is stored, where nothing is waited for; False: do it with `insert`.
    """

    def __init__(self, storage: Storage, flow: Flow | None = None) -> None:
        """Register. `flow`: that inserts keep to; None: none."""
        self._storage = storage
        self._flow = None if flow is None or flow.limiter is None else flow
        self._prepare = Preparation(storage.schema, storage.columns)
        self._stream = storage.stream()
        self.number, self.place = self._stream.number, self._stream.place
        self.try_insert: Callable[[Mapping[str, Any], bool], bool] = self._stream.insert if self._flow is None else _declined

    def insert(self, data: Mapping[str, Any], end_of_trajectory: bool = False) -> None:
        """Copy one item in; see `ReplayBuffer.insert`."""
        if not self.try_insert(data, end_of_trajectory):
            self._insert_in_turn(data, end_of_trajectory)

    def _insert_in_turn(self, data: Mapping[str, Any], end_of_trajectory: bool) -> None:
        if self._flow is None:
            self._insert(data, end_of_trajectory)
        else:
            self._flow.insert(1, self.place, lambda: self._insert(data, end_of_trajectory))

    def _insert(self, data: Mapping[str, Any], end_of_trajectory: bool) -> None:
        if not self._stream.insert(data, end_of_trajectory):
            self._append(self._prepare.one(data, bool(end_of_trajectory)))

    def batch_insert(self, batch: Iterable[Mapping[str, Any]] | Mapping[str, Any]) -> None:
        """Copy many items in; see `ReplayBuffer.batch_insert`."""
        if not isinstance(batch, (dict, Mapping)):
            batch = batch if isinstance(batch, list) else list(batch)
        if self._flow is None:
            self._insert_many(batch)
            return
        items, rows = batch, len(batch) if isinstance(batch, list) else rows_of(batch)
        if rows:
            self._flow.insert(rows, self.place, lambda: self._insert_many(items))

    def _insert_many(self, batch: list[Mapping[str, Any]] | Mapping[str, Any]) -> None:
        if self._stream.insert_many(batch):
            return
        for prepared in self._prepare.listed(batch) if isinstance(batch, list) else [self._prepare.stacked(batch)]:
            self._append(prepared)

    def end_trajectory(self) -> None:
        """End the open episode, if there is one, as truncated: the next item begins another.

        Raises:
            ValueError: the last transition was given without `next_observations`, which it needs where an episode ends.
        """
        self._stream.end()

    def close(self) -> None:
        """End the open episode as truncated, and leave. Idempotent.

        A last transition that was given without `next_observations` is dropped, with a warning: what followed it is not known.
        """
        with contextlib.suppress(ConnectionClosed):  # the buffer was closed before, and ended all its writers
            if self._stream.close():
                logger.warning(
                    "%s: the last transition of writer %d came without next_observations, which are needed where an "
                    "episode ends; it is dropped",
                    self._storage.label,
                    self.number,
                )

    def _append(self, prepared: Prepared) -> None:
        if prepared.rows:
            self._stream.append(*prepared)

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()
