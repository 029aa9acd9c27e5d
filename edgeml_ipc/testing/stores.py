"""The suite that every data store passes, yours too: derive from `StoreConformance` and say how a store is made.

Example:
    class TestMyStore(StoreConformance):
        def make_store(self, capacity: int) -> DataStoreBase:
            return MyStore(capacity)
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from typing import Any

from edgeml_ipc.data.data_store import DataStoreBase

_CAPACITY = 16


class StoreConformance(ABC):
    """Tests of the contract of `DataStoreBase`, found by pytest in a subclass whose name starts with `Test`.

    `make_store` is required. A store that takes only certain items overrides `make_item` and `value_of` too.
    """

    drops_oldest = True  # False for a store without a bound, whose capacity is nominal

    @abstractmethod
    def make_store(self, capacity: int) -> DataStoreBase:
        """Return an empty store that holds at most `capacity` items."""

    def make_item(self, value: int) -> Any:
        """Return an item that stands for `value`, 0..100,000."""
        return value

    def value_of(self, item: Any) -> int:
        """Return the value that an item read from the store stands for."""
        assert isinstance(item, int)
        return item

    def filled(self, count: int) -> DataStoreBase:
        """Return a store into which items 0..count-1 were inserted one by one."""
        store = self.make_store(_CAPACITY)
        for value in range(count):
            store.insert(self.make_item(value))
        return store

    def values(self, items: list[Any]) -> list[int]:
        """Return the values that items stand for."""
        return [self.value_of(item) for item in items]

    def test_is_empty_at_first(self) -> None:
        store = self.make_store(_CAPACITY)
        assert store.latest_data_id() == -1
        assert len(store) == 0
        assert list(store.get_latest_data(-1)) == []
        assert store.read_since(-1) == (0, [], 0)

    def test_knows_its_capacity(self) -> None:
        assert self.make_store(_CAPACITY).capacity == _CAPACITY

    def test_ids_count_from_zero(self) -> None:
        store = self.make_store(_CAPACITY)
        for value in range(5):
            store.insert(self.make_item(value))
            assert store.latest_data_id() == value
        assert len(store) == 5

    def test_get_latest_data_gives_what_came_after(self) -> None:
        store = self.filled(5)
        for from_id in range(-1, 5):
            assert self.values(store.get_latest_data(from_id)) == list(range(from_id + 1, 5))

    def test_read_since_gives_first_id_and_items(self) -> None:
        store = self.filled(5)
        for from_id in range(-1, 5):
            first_id, items, evicted = store.read_since(from_id)
            assert (first_id, self.values(items), evicted) == (from_id + 1, list(range(from_id + 1, 5)), 0)

    def test_read_since_after_the_newest_id_is_empty(self) -> None:
        store = self.filled(5)
        assert store.read_since(4) == (5, [], 0)

    def test_read_since_keeps_the_limit_and_gives_the_oldest_first(self) -> None:
        store = self.filled(10)
        first_id, items, evicted = store.read_since(2, limit=3)
        assert (first_id, self.values(items), evicted) == (3, [3, 4, 5], 0)
        assert store.read_since(2, limit=0) == (3, [], 0)

    def test_ids_go_on_when_old_items_are_dropped(self) -> None:
        store = self.filled(3 * _CAPACITY + 1)
        newest = 3 * _CAPACITY
        assert store.latest_data_id() == newest
        if self.drops_oldest:
            assert len(store) == _CAPACITY
        held = list(range(newest + 1 - len(store), newest + 1))
        assert self.values(store.get_latest_data(-1)) == held
        assert self.values(store.get_latest_data(newest - 1)) == [newest]

    def test_read_since_counts_what_was_dropped_unread(self) -> None:
        store = self.filled(3 * _CAPACITY)
        oldest = 3 * _CAPACITY - len(store)
        for from_id in (-1, 0, oldest - 2, oldest - 1, oldest):
            from_id = max(-1, from_id)
            first_id, items, evicted = store.read_since(from_id, limit=2)
            assert first_id == max(from_id + 1, oldest)
            assert evicted == first_id - from_id - 1
            assert self.values(items) == [first_id, first_id + 1]

    def test_batch_insert_keeps_order_and_ids(self) -> None:
        store = self.filled(2)
        store.batch_insert([self.make_item(value) for value in range(2, 7)])
        store.batch_insert([])
        assert store.latest_data_id() == 6
        assert self.values(store.get_latest_data(-1)) == list(range(7))

    def test_batch_insert_of_more_than_fits(self) -> None:
        store = self.filled(1)
        store.batch_insert([self.make_item(value) for value in range(1, 2 * _CAPACITY + 3)])
        assert store.latest_data_id() == 2 * _CAPACITY + 2
        first_id, items, _ = store.read_since(-1)
        assert self.values(items) == list(range(first_id, 2 * _CAPACITY + 3))

    def test_incarnation_names_the_object(self) -> None:
        one, other = self.make_store(_CAPACITY), self.make_store(_CAPACITY)
        assert len(one.incarnation) == 16
        assert one.incarnation == one.incarnation
        assert one.incarnation != other.incarnation

    def test_reading_while_a_thread_inserts_loses_and_repeats_nothing(self) -> None:
        total = 3000
        store = self.make_store(total)
        done = threading.Event()

        def insert() -> None:
            for value in range(total):
                store.insert(self.make_item(value))
            done.set()

        thread = threading.Thread(target=insert)
        thread.start()
        got: list[int] = []
        while True:
            finished = done.is_set()
            first_id, items, evicted = store.read_since(len(got) - 1)
            assert (first_id, evicted) == (len(got), 0)
            got += self.values(items)
            if finished:
                break
        thread.join()
        assert got == list(range(total))
