"""Stores as edgeml's users know them: their own ones need no more than `insert`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from edgeml_ipc.data import data_store


class DataStoreBase(data_store.DataStoreBase):
    """See `edgeml_ipc.DataStoreBase`. A learner's store needs `insert`; one that is uploaded from, the other methods too."""

    def insert(self, data: Any) -> None:
        """Add one item."""
        raise NotImplementedError(f"{type(self).__name__} does not define insert")

    def batch_insert(self, batch_data: Iterable[Any]) -> None:
        """Add the items of `batch_data` in order, by `insert`."""
        for data in batch_data:
            self.insert(data)

    def latest_data_id(self) -> int:
        """Return the id of the newest item."""
        raise NotImplementedError(f"{type(self).__name__} does not define latest_data_id, so nothing can be uploaded from it")

    def get_latest_data(self, from_id: int) -> list[Any]:
        """Return the items after `from_id`."""
        raise NotImplementedError(f"{type(self).__name__} does not define get_latest_data, so nothing can be uploaded from it")

    def __len__(self) -> int:
        raise NotImplementedError(f"{type(self).__name__} does not define __len__")


class QueuedDataStore(data_store.QueuedDataStore, DataStoreBase):
    """See `edgeml_ipc.QueuedDataStore`."""

    @property
    def latest_seq_id(self) -> int:
        """The id of the newest item, or -1."""
        return self.latest_data_id()

    @property
    def _data_queue(self) -> list[Any]:
        """The items that are held, oldest first; a copy."""
        return self.get_latest_data(-1)

    @property
    def _seq_id_queue(self) -> list[int]:
        """The ids of the items that are held, oldest first; a copy."""
        first_id, items, _ = self.read_since(-1)
        return list(range(first_id, first_id + len(items)))
