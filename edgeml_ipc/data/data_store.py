"""Data stores: what an actor fills, what is uploaded from it, and what a learner reads.

Every item has an id: the k-th item inserted into a store has id k, the first has 0. Ids go on counting when old items are
dropped, so that "everything after id i" has one meaning for as long as the store lives.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable
from threading import Lock
from typing import Any

from edgeml_ipc.errors import EdgeMLError

_READ_ATTEMPTS = 1000


class DataStoreBase(ABC):
    """What a store must offer to be uploaded from, or to be registered with a server.

    A subclass needs `insert`, `latest_data_id`, `get_latest_data` and `__len__`; the rest has defaults. Where one thread
    inserts while another uploads, `insert` must make an item and its id visible together (under one lock, say).

    An empty store is falsy, as any sized container: test for its presence with `is None`.

    Example:
        >>> class ListStore(DataStoreBase):
        ...     def __init__(self) -> None:
        ...         super().__init__(capacity=1000)
        ...         self.items: list[object] = []
        ...     def insert(self, data: object) -> None:
        ...         self.items.append(data)
        ...     def latest_data_id(self) -> int:
        ...         return len(self.items) - 1
        ...     def get_latest_data(self, from_id: int) -> list[object]:
        ...         return self.items[from_id + 1 :]
        ...     def __len__(self) -> int:
        ...         return len(self.items)
        >>> store = ListStore()
        >>> store.batch_insert(["a", "b", "c"])
        >>> store.read_since(0)
        (1, ['b', 'c'], 0)
    """

    capacity: int

    def __init__(self, capacity: int) -> None:
        """Remember `capacity`, the number of items that the store holds at most."""
        if capacity < 1:
            raise ValueError(f"capacity must be at least 1 item, got {capacity}")
        self.capacity = capacity

    @abstractmethod
    def insert(self, data: Any) -> None:
        """Add one item; the oldest may be dropped to make room."""

    @abstractmethod
    def latest_data_id(self) -> int:
        """Return the id of the newest item, or -1 if nothing was ever inserted."""

    @abstractmethod
    def get_latest_data(self, from_id: int) -> list[Any]:
        """Return the items that are still held and whose id is above `from_id`, oldest first."""

    @abstractmethod
    def __len__(self) -> int:
        """Return how many items are held now."""

    def batch_insert(self, batch: Iterable[Any]) -> None:
        """Add the items of `batch` in order."""
        for data in batch:
            self.insert(data)

    @property
    def incarnation(self) -> bytes:
        """16 random bytes that name this object's sequence of ids: a new store counts from 0 under another name."""
        made: bytes = self.__dict__.setdefault("_incarnation", os.urandom(16))
        return made

    def read_since(self, from_id: int, limit: int | None = None) -> tuple[int, list[Any], int]:
        """Read what came after `from_id`, with ids that are certain.

        The default asks for the newest id, the items, and the newest id again, until both ids agree: then the items end at
        that id. A store with a lock of its own should override it with one read under the lock.

        Args:
            from_id: the last id already known, -1 for none.
            limit: return at most so many items, the oldest first; None means all.
        Returns:
            (first_id, items, evicted): the id of items[0], or of the item that would come next if `items` is empty; the
            items with consecutive ids; how many ids above `from_id` were dropped before they could be read.
        Raises:
            EdgeMLError: the store breaks its contract on ids, or was written to during each of many attempts.
        """
        check_read(from_id, limit)
        latest = self.latest_data_id()
        items: list[Any] = []
        for _ in range(_READ_ATTEMPTS):
            before = latest
            items = list(self.get_latest_data(from_id))
            latest = self.latest_data_id()
            # More items than ids: `insert` was caught between adding the item and counting it.
            if latest == before and len(items) <= max(0, latest - from_id):
                first_id = max(latest, from_id) + 1 - len(items)
                return first_id, items[:limit], first_id - from_id - 1
        raise EdgeMLError(
            f"{type(self).__name__}.get_latest_data({from_id}) returned {len(items)} items while latest_data_id() is {latest}, "
            f"in the last of {_READ_ATTEMPTS} attempts; ids must rise by one per item, and a store that is written to without "
            "pause must override read_since with one read under its lock"
        )

    def stats(self) -> dict[str, int]:
        """Return plain counters of the store."""
        return {"occupancy": len(self), "inserted": self.latest_data_id() + 1}


class QueuedDataStore(DataStoreBase):
    """A bounded queue in memory: what an actor inserts into and `TrainerClient.update` uploads from.

    Items are kept as they are, not copied: do not change them after `insert`.

    Threads and processes: any thread may call any method; each method is one atomic step. Private to its process.

    Example:
        >>> queue = QueuedDataStore(capacity=2)
        >>> queue.batch_insert(["a", "b", "c"])
        >>> queue.latest_data_id(), queue.get_latest_data(1)
        (2, ['c'])
        >>> queue.read_since(-1)
        (1, ['b', 'c'], 1)
    """

    def __init__(self, capacity: int) -> None:
        """Make an empty queue of at most `capacity` items, past which the oldest is dropped and counted."""
        super().__init__(capacity)
        self._lock = Lock()
        self._ring: list[Any] = []  # the item with id k lies at k % capacity
        self._inserted = 0

    def insert(self, data: Any) -> None:
        """Add one item; if the queue is full the oldest is dropped and counted."""
        with self._lock:
            if self._inserted < self.capacity:
                self._ring.append(data)
            else:
                self._ring[self._inserted % self.capacity] = data
            self._inserted += 1

    def batch_insert(self, batch: Iterable[Any]) -> None:
        """Add the items of `batch` in order, with consecutive ids."""
        items = list(batch)
        with self._lock:
            self._inserted += len(items)
            room = self.capacity - len(self._ring)
            self._ring += items[:room]
            others = items[room:][-self.capacity :]
            at = (self._inserted - len(others)) % self.capacity
            before_end = others[: self.capacity - at]
            self._ring[at : at + len(before_end)] = before_end
            self._ring[: len(others) - len(before_end)] = others[len(before_end) :]

    def latest_data_id(self) -> int:
        """Return the id of the newest item, or -1 if nothing was ever inserted."""
        with self._lock:
            return self._inserted - 1

    def get_latest_data(self, from_id: int) -> list[Any]:
        """Return the items that are still held and whose id is above `from_id`, oldest first."""
        return self.read_since(from_id)[1]

    def read_since(self, from_id: int, limit: int | None = None) -> tuple[int, list[Any], int]:
        """Read what came after `from_id` in one atomic step; see `DataStoreBase.read_since`."""
        check_read(from_id, limit)
        with self._lock:
            first_id = max(from_id + 1, self._inserted - len(self._ring))
            end_id = max(self._inserted, first_id)
            if limit is not None:
                end_id = min(end_id, first_id + limit)
            at, count = first_id % self.capacity, end_id - first_id
            items = self._ring[at : at + count]
            items += self._ring[: count - len(items)]
        return first_id, items, first_id - from_id - 1

    def __len__(self) -> int:
        """Return how many items are held now."""
        with self._lock:
            return len(self._ring)

    def stats(self) -> dict[str, int]:
        """Return counters: items inserted, evicted (dropped to make room), and held now (occupancy)."""
        with self._lock:
            held = len(self._ring)
            return {"inserted": self._inserted, "evicted": self._inserted - held, "occupancy": held, "capacity": self.capacity}


def check_read(from_id: int, limit: int | None) -> None:
    """Raise `ValueError` unless the arguments of `read_since` are in range."""
    if from_id < -1:
        raise ValueError(f"from_id must be an id, or -1 for 'from the beginning', got {from_id}")
    if limit is not None and limit < 0:
        raise ValueError(f"limit must be None or a number of items from 0, got {limit}")
