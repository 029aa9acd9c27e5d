"""RLDSLogger: transitions as they come, in an RLDS data set that tensorflow-datasets reads."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from threading import RLock
from types import TracebackType
from typing import Any, Final, Self

from edgeml_ipc.data.columns import Columns, DataShape
from edgeml_ipc.data.data_store import DataStoreBase
from edgeml_ipc.data.replay_buffer import SharedBuffer
from edgeml_ipc.data.schema import Schema
from edgeml_ipc.data.transitions import Preparation, transition_schema
from edgeml_ipc.datasets.attachment import Attachment
from edgeml_ipc.datasets.following import Follower
from edgeml_ipc.datasets.recorder import Recorder
from edgeml_ipc.datasets.rlds_features import features_of
from edgeml_ipc.datasets.rlds_folder import RLDSFolder
from edgeml_ipc.datasets.tf_example import check_installed
from edgeml_ipc.errors import ConnectionClosed

_EPISODES_PER_FILE: Final = 1000


class RLDSLogger:
    """Records transitions as an RLDS data set, which `tfds.builder_from_directory(directory)` reads at any moment.

    Each episode of T transitions becomes T + 1 steps with `observation`, `action`, `reward`, `discount`, `is_first`, `is_last`
    and `is_terminal`: the action, reward and discount of a step are what followed on its observation, and the last step has the
    final observation, and zeros. An episode that was terminated ends with `is_terminal`, a truncated one without. Nothing is
    lost in storing: images `uint8 (height, width, 1 | 3 | 4)` are PNG, and rewards float64.

    An episode is in the data set when it has ended, also if the process is killed right after; who opens the directory again
    goes on. An episode that is not over is kept in memory; of one that takes 512 MiB, what is there is recorded as truncated,
    and the rest as another. So is a transition that does not begin with the observation the one before ended with.

    Writing needs google-crc32c, of `edgeml_ipc[rlds]`, and not TensorFlow.

    Threads and processes: any thread may call. One logger at a time, of any process, adds to a directory.

    Example:
        >>> import tempfile
        >>> import gymnasium
        >>> import numpy as np
        >>> box = gymnasium.spaces.Box(-1, 1, (3,))
        >>> step = {"observations": np.zeros(3), "actions": np.ones(3), "rewards": 0.5, "masks": 1.0}
        >>> with tempfile.TemporaryDirectory() as folder, RLDSLogger(box, box, "walks", folder) as log:
        ...     log.record(step)
        ...     log.record({**step, "next_observations": np.ones(3)}, end_of_trajectory=True)
        ...     log.stats()["episodes"]
        1
    """

    def __init__(
        self,
        observation_space: Any,
        action_space: Any,
        dataset_name: str,
        directory: str | os.PathLike[str],
        max_episodes_per_file: int = _EPISODES_PER_FILE,
        *,
        extra_columns: Sequence[DataShape] = (),
    ) -> None:
        """Begin a data set, or go on with the one that is there.

        Args:
            observation_space, action_space: as for `ReplayBuffer`.
            dataset_name: a letter, then letters, digits and '_'.
            directory: made if it is not there.
            max_episodes_per_file: a file that has so many, or 256 MiB, is full.
            extra_columns: fields that each transition has beside the standard ones; they become features of the steps.
        Raises:
            ImportError: google-crc32c is missing.
            TypeError: a space that has no fixed shape, or a dtype that a data set cannot hold.
            ValueError: a name that is none, no episodes per file, or two fields of one name.
            DatasetError: another logger adds to the directory, it has another data set, or it cannot be written.
        """
        check_installed()
        schema = transition_schema(observation_space, action_space, extra_columns)
        columns = tuple(
            replace(column, field=replace(column.field, dtype="float64")) if column.field.name == "rewards" else column
            for column in schema.columns
        )
        self._schema = Schema(schema.face, columns)
        self._prepare = Preparation(self._schema, Columns(self._schema.fields, {}))
        self._features = features_of([column.field for column in columns])
        self._lock = RLock()
        self._folder = RLDSFolder(os.fspath(directory), dataset_name, self._features, max_episodes_per_file)
        self._counts = {"transitions": 0, "dropped": 0, "cut": 0}
        self._recorders: list[Recorder] = []
        self._attachments: list[Attachment] = []
        self._followed: list[tuple[Follower, Recorder]] = []
        self._closed = False
        self._default = self.writer()

    def writer(self) -> Recorder:
        """Return a stream of transitions of its own, for one environment of several.

        Raises:
            ConnectionClosed: the logger is closed.
        """
        with self._lock:
            if self._closed:
                raise ConnectionClosed("the logger was closed")
            return self._new_recorder()

    def _new_recorder(self) -> Recorder:
        with self._lock:
            recorder = Recorder(self._prepare, self._schema, self._features, self._folder.add, self._count, self._lock)
            self._recorders.append(recorder)
            return recorder

    def record(self, data: Mapping[str, Any], end_of_trajectory: bool = False) -> None:
        """Record a transition.

        Args:
            data: the transition, as `ReplayBuffer.insert` takes it; not kept.
            end_of_trajectory: the episode ended here; the same as `dones` in `data`.
        Raises:
            ValueError, TypeError: a field is missing, unknown or does not fit; nothing was recorded.
            DatasetError: the episode that ended could not be written; it is lost, and the ones before are as they were.
            ConnectionClosed: the logger is closed.
        """
        self._default.record(data, end_of_trajectory)

    def batch_record(self, batch: Iterable[Mapping[str, Any]] | Mapping[str, Any]) -> None:
        """Record transitions in order, a list or one dict of stacked arrays; raises as `record`."""
        self._default.batch_record(batch)

    def end_trajectory(self) -> None:
        """End the open episode of `record`, if there is one, as truncated. Raises DatasetError: as `record`."""
        self._default.end_trajectory()

    def attach(self, store: DataStoreBase) -> None:
        """Record every transition that is inserted into a store from now on, until either is closed.

        What is inserted through this object is recorded within the call, after it is in the store. Of a `ReplayBuffer` or
        `TrajectoryBuffer` the rows of its other writers, in this process and in others, are read by a thread as they come;
        rows that were overwritten before are counted as missed. Close the logger before the buffer.

        In a store of any other kind the transitions of several actors would be mixed: attach to each actor's own queue.

        Raises:
            ConnectionClosed: the logger is closed. ValueError: a buffer without the fields that this logger records.
        """
        with self._lock:
            recorder = self.writer()
            if isinstance(store, SharedBuffer):
                self._followed.append((Follower(store, self._features, self._new_recorder), recorder))
            self._attachments.append(Attachment(store, recorder))

    def close(self) -> None:
        """Record the open episodes as truncated, detach from all stores, and put the files in order. Idempotent.

        Raises:
            DatasetError: an episode, or the data set, could not be written.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
        with ExitStack() as stack:  # each is closed, whatever the ones before it raise
            stack.callback(self._folder.close)
            stack.callback(self._close_recorders)
            for follower, _ in self._followed:
                stack.callback(follower.close)
            for attachment in self._attachments:
                stack.callback(attachment.close)

    def _close_recorders(self) -> None:
        with self._lock, ExitStack() as stack:
            for recorder in reversed(self._recorders):
                stack.callback(recorder.close)

    def stats(self) -> dict[str, int]:
        """Return counters.

        `episodes` in the data set; `transitions` that were recorded; `dropped`, those that are in no episode, because the
        observation that follows never came or the episode could not be written; `cut`, how often an episode was recorded in
        parts; `missed`, rows of other writers that were overwritten before they were read, or never committed.
        """
        with self._lock:
            missed = sum(
                max(0, follower.inserted - follower.recorded - recorder.transitions) for follower, recorder in self._followed
            )
            return {"episodes": self._folder.episodes, **self._counts, "missed": missed}

    def _count(self, **more: int) -> None:
        with self._lock:
            for name, number in more.items():
                self._counts[name] += number

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()
