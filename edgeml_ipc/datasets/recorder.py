"""Recorder: one stream of transitions into an RLDS data set, episode after episode."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from threading import RLock
from typing import Any, Final, Protocol

import numpy as np

from edgeml_ipc.data.columns import Array, dtype_of
from edgeml_ipc.data.schema import Schema
from edgeml_ipc.data.transitions import Preparation, Prepared
from edgeml_ipc.datasets.open_episode import MOST_BYTES, OpenEpisode
from edgeml_ipc.datasets.rlds_features import Feature
from edgeml_ipc.errors import ConnectionClosed

logger = logging.getLogger("edgeml_ipc")

Values = Mapping[str, Array]
_TOO_LARGE: Final = f"it takes more than {MOST_BYTES:,} bytes"
_GOES_ON_ELSEWHERE: Final = "a transition does not begin with the observation that the one before ended with"


class Count(Protocol):
    """Adds to counters."""

    def __call__(self, **more: int) -> None: ...


class Recorder:
    """One environment's stream. Made by `RLDSLogger.writer`.

    Threads and processes: any thread may call; each call is one atomic step.

    Attributes:
        transitions: that were recorded so far; one without the observation that follows waits for the next.
    """

    def __init__(
        self,
        prepare: Preparation,
        schema: Schema,
        features: Sequence[Feature],
        add: Callable[[bytes], None],
        count: Count,
        lock: RLock,
    ) -> None:
        """Record by `prepare`; hand whole episodes to `add`, under `lock`."""
        self._prepare, self._features, self._add, self._count, self._lock = prepare, features, add, count, lock
        self._fields = [column.field for column in schema.columns]
        self._observations = [feature.source for feature in features if feature.is_observation]
        self._episode: OpenEpisode | None = None
        self._last: Values | None = None  # a transition of which it is not known yet what observation followed
        self._following: Values = {}  # the observation that the last transition of the open episode ended with
        self._closed = False
        self.transitions = 0

    def record(self, data: Mapping[str, Any], end_of_trajectory: bool = False) -> None:
        """Record a transition; see `RLDSLogger.record`."""
        self._take([self._prepare.one(data, bool(end_of_trajectory))])

    def batch_record(self, batch: Iterable[Mapping[str, Any]] | Mapping[str, Any]) -> None:
        """Record transitions in order; see `RLDSLogger.batch_record`."""
        self._take([self._prepare.stacked(batch)] if isinstance(batch, Mapping) else self._prepare.listed(batch))

    def end_trajectory(self) -> None:
        """End the open episode as truncated; see `RLDSLogger.end_trajectory`."""
        with self._lock:
            if self._last is not None:  # what followed it will never be known
                self._count(dropped=1)
                self._following = {name: self._last[name] for name in self._observations}
                self._last = None
            self._finish(terminal=False)

    def extend(self, values: Values, following: Values, ended: bool, terminal: bool) -> None:
        """Record transitions that follow on from one another.

        Args:
            values: of each field `(n, *shape)`. following: the observation after the last one, `(1, *shape)` for each field.
            ended: whether the episode ended with the last one. terminal: whether for good.
        Raises:
            DatasetError: as `RLDSLogger.record`.
        """
        with self._lock:
            if self._closed:
                raise ConnectionClosed("the logger was closed")
            if self._last is not None:
                last, self._last = self._last, None
                self._append(last, {name: values[name][:1] for name in self._observations})
            self._append(values, following)
            if ended or terminal:
                self._finish(terminal)

    def close(self) -> None:
        """End the open episode as truncated; nothing more is taken. Idempotent."""
        with self._lock:
            self._closed = True
            self.end_trajectory()

    def _take(self, batches: Sequence[Prepared]) -> None:
        with self._lock:
            if self._closed:
                raise ConnectionClosed("the logger was closed")
            for batch in batches:
                self._take_rows(batch)

    def _take_rows(self, batch: Prepared) -> None:
        values = dict(zip((field.name for field in self._fields), self._unpacked(batch.values, batch.rows), strict=True))
        nexts = None
        if batch.nexts is not None:
            found = zip(self._fields, self._unpacked(batch.nexts, batch.rows), strict=True)
            nexts = {field.name: array for field, array in found if field.name in self._observations}
        for i in range(batch.rows):
            row = {name: array[i : i + 1] for name, array in values.items()}
            ended, terminal = bool(batch.ended[i]), bool(batch.terminal[i])
            if nexts is not None:
                self.extend(row, {name: array[i : i + 1] for name, array in nexts.items()}, ended, terminal)
            else:
                self._wait(row)

    def _wait(self, row: Values) -> None:
        """Keep a transition until the observation that follows it comes."""
        if self._last is not None:
            self._append(self._last, {name: row[name] for name in self._observations})
        self._last = {name: array.copy() for name, array in row.items()}

    def _unpacked(self, columns: Sequence[Array], rows: int) -> list[Array]:
        return [
            column.view(dtype_of(field.dtype)).reshape(rows, *field.shape) if column.size else column
            for field, column in zip(self._fields, columns, strict=True)
        ]

    def _append(self, values: Values, following: Values) -> None:
        """Add transitions to the open episode, or begin another if they do not go on from it, or it has become too large."""
        if self._episode is not None:
            too_large = self._episode.nbytes > MOST_BYTES
            if too_large or any(self._following[name].tobytes() != values[name][:1].tobytes() for name in self._observations):
                logger.warning("an episode is recorded in parts: %s", _TOO_LARGE if too_large else _GOES_ON_ELSEWHERE)
                self._count(cut=1)
                self._finish(terminal=False)
        if self._episode is None:
            self._episode = OpenEpisode(self._features)
        self._episode.extend(values)
        self._following = {name: np.array(following[name]) for name in self._observations}
        count = len(next(iter(values.values())))
        self.transitions += count
        self._count(transitions=count)

    def _finish(self, terminal: bool) -> None:
        episode, self._episode = self._episode, None
        if episode is None:
            return
        try:
            self._add(episode.finish(self._following, terminal))
        except BaseException:
            self._count(dropped=episode.transitions)
            raise
