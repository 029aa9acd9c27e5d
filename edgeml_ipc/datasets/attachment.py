"""Attachment: a recorder hears of every item that is inserted through a store's object."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from threading import RLock
from typing import Any, Final

from edgeml_ipc.data.data_store import DataStoreBase
from edgeml_ipc.datasets.recorder import Recorder

_METHODS: Final = ("insert", "batch_insert", "end_trajectory")


class Attachment:
    """Stands before the methods of one store by which items come in, until it is closed.

    Threads and processes: any thread may call the store; an item is inserted and recorded in one step.
    """

    def __init__(self, store: DataStoreBase, recorder: Recorder) -> None:
        """Stand before `store`, before which others may stand already."""
        self._store, self._open = store, True
        self._lock, self._depth = RLock(), 0  # a batch_insert may call insert
        tell: dict[str, Callable[..., None]] = {
            "insert": recorder.record,
            "batch_insert": recorder.batch_record,
            "end_trajectory": recorder.end_trajectory,
        }
        names = [name for name in _METHODS if hasattr(store, name)]
        self._stand_ins = {name: self._standing_before(getattr(store, name), tell[name], name) for name in names}
        for name, stand_in in self._stand_ins.items():
            setattr(store, name, stand_in)

    def _standing_before(self, method: Callable[..., Any], tell: Callable[..., None], name: str) -> Callable[..., Any]:
        def stand_in(*args: Any, **kwargs: Any) -> Any:
            if name == "batch_insert" and args and not isinstance(args[0], Mapping):
                args = (list(args[0]), *args[1:])  # an iterator can be gone through once only
            with self._lock:
                self._depth += 1
                try:
                    result = method(*args, **kwargs)
                finally:
                    self._depth -= 1
                if self._open and not self._depth:
                    tell(*args, **kwargs)
            return result

        return stand_in

    def close(self) -> None:
        """Stand back. Idempotent."""
        with self._lock:
            self._open = False
        for name, stand_in in self._stand_ins.items():
            if vars(self._store).get(name) is stand_in:  # else another stands before it, which calls it
                delattr(self._store, name)
