"""Saving and loading as the methods that a buffer has. What they are made of is imported when one is first called."""

from __future__ import annotations

import os
from collections.abc import Mapping
from threading import Lock
from typing import TYPE_CHECKING, Any, Final, Self

from edgeml_ipc.data.batches import Batches
from edgeml_ipc.data.data_store import DataStoreBase
from edgeml_ipc.data.storage import Storage
from edgeml_ipc.data.windows import Windows, check_min_length
from edgeml_ipc.errors import SegmentError

if TYPE_CHECKING:
    from edgeml_ipc.data.saving import Progress

_ROWS: Final = "rows"
_CONFIG: Final = "config:"  # of a generator of a sample config


class Saveable(DataStoreBase):
    """A buffer that goes into a file and comes out of it."""

    _storage: Storage
    _batches: Batches
    _windows: Windows
    _lock: Lock

    @classmethod
    def from_file(
        cls,
        path: str | os.PathLike[str],
        *,
        name: str | None = None,
        capacity: int | None = None,
        chunk_rows: int | None = None,
        max_writers: int = 64,
        min_trajectory_length: int = 1,
        progress: Progress | None = None,
    ) -> Self:
        """Make a buffer of what `save` wrote: its fields, its rows, its sampling.

        Args:
            name, max_writers, min_trajectory_length: as for a new buffer.
            capacity, chunk_rows: as for a new buffer; None: those of the one that was saved.
            progress: as for `load`.
        Raises:
            SegmentError: as for `load`, or as for a new buffer.
        """
        from edgeml_ipc.data import saved_rows

        schema, saved = saved_rows.described(os.fspath(path))
        if schema.face not in {kind.__name__ for kind in cls.__mro__}:
            raise SegmentError(f"{os.fspath(path)!r} cannot be loaded: it is a {schema.face}, not a {cls.__name__}")
        rows = saved.capacity if capacity is None else capacity
        if chunk_rows is None:
            chunk_rows = min(saved.chunk_rows, rows)
        check_min_length(min_trajectory_length)
        buffer = cls.__new__(cls)
        DataStoreBase.__init__(buffer, rows)
        buffer._begin(Storage.create(schema, rows, chunk_rows, max_writers, name), None, min_trajectory_length)
        try:
            buffer.load(path, progress)
        except BaseException:
            buffer.unlink()
            buffer.close()
            raise
        return buffer

    def _begin(self, storage: Storage, seed: int | None, min_trajectory_length: int) -> None:
        raise NotImplementedError

    def unlink(self) -> None:
        """Remove the name under which others attach."""
        raise NotImplementedError

    def close(self) -> None:
        """Let go of the memory."""
        raise NotImplementedError

    def save(self, path: str | os.PathLike[str], progress: Progress | None = None) -> None:
        """Write all rows, and what the next samples depend on, to a file of mode 0600.

        It is written aside and put in its place when the disk has all of it: who is killed meanwhile leaves the old file.
        Others may write and sample meanwhile; rows that they overwrite before they were copied, the oldest ones, are left out.
        Sample configs are not saved. Nothing is pickled.

        Args:
            path: of the file; replaced if it is there.
            progress: called with (rows done, rows in all) now and then.
        Raises:
            SegmentError: the disk is full, or the folder cannot be written; then the old file is as it was.
        """
        from edgeml_ipc.data import saving

        states = {_ROWS: self._batches.generator_state()}
        states |= {_CONFIG + name: state for name, state in self._windows.generator_states().items()}
        saving.save(self._storage, states, os.fspath(path), progress)

    def load(self, path: str | os.PathLike[str], progress: Progress | None = None) -> None:
        """Fill this buffer, which must be empty, from a file that `save` wrote, or an `.npz` of edgeml, agentlace or jaxrl.

        Rows keep their order by age, sequence number, episodes, policy versions and flags, and their writers get new numbers;
        an episode that was open ends as truncated. In a buffer of the same capacity and `chunk_rows`, with the same sample
        configs, `sample` goes on as it would have in the one that was saved; in others too, if one writer alone had inserted
        or there is room to spare. Else rows of the same writer are brought together, and what does not fit is left out, the
        oldest rows first. Insert nothing meanwhile, in no process.

        Args:
            path: of the file. All of it is checked before anything is done.
            progress: called with (rows done, rows in all) now and then.
        Raises:
            SegmentError: the file is missing, foreign, damaged, of another version or of other fields; or the buffer is not
                empty, or has writers. The buffer is as it was.
        """
        from edgeml_ipc.data import loading

        def accept(states: Mapping[str, Any]) -> None:
            if _ROWS in states:
                self._batches.set_generator_state(states[_ROWS])
            configs = {key.removeprefix(_CONFIG): state for key, state in states.items() if key.startswith(_CONFIG)}
            self._windows.set_generator_states(configs)

        with self._lock:
            loading.load(self._storage, os.fspath(path), accept, progress)
