"""Tests of edgeml_ipc.data.data_store."""

import threading
from collections import deque
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeml_ipc.data import DataStoreBase, QueuedDataStore
from edgeml_ipc.errors import EdgeMLError
from edgeml_ipc.testing.stores import StoreConformance


class UserStore(DataStoreBase):
    """What users of edgeml write: the four methods, and no call of the base's constructor."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.items: deque[Any] = deque(maxlen=capacity)
        self.count = 0
        self.lock = threading.Lock()

    def insert(self, data: Any) -> None:
        with self.lock:
            self.items.append(data)
            self.count += 1

    def latest_data_id(self) -> int:
        with self.lock:
            return self.count - 1

    def get_latest_data(self, from_id: int) -> list[Any]:
        with self.lock:
            first_id = self.count - len(self.items)
            return list(self.items)[max(0, from_id + 1 - first_id) :]

    def __len__(self) -> int:
        return len(self.items)


class TestQueuedDataStore(StoreConformance):
    def make_store(self, capacity: int) -> DataStoreBase:
        return QueuedDataStore(capacity)


class TestUserStore(StoreConformance):
    def make_store(self, capacity: int) -> DataStoreBase:
        return UserStore(capacity)


class InterferingStore(UserStore):
    """Inserts of its own accord at the worst moments: between the calls that the default `read_since` makes."""

    def __init__(self, capacity: int, interruptions: int) -> None:
        super().__init__(capacity)
        self.interruptions = interruptions

    def _interrupt(self) -> None:
        if self.interruptions:
            self.interruptions -= 1
            self.insert(self.count)

    def latest_data_id(self) -> int:
        latest = super().latest_data_id()
        self._interrupt()
        return latest

    def get_latest_data(self, from_id: int) -> list[Any]:
        items = super().get_latest_data(from_id)
        self._interrupt()
        return items


@pytest.mark.parametrize("capacity", [4, 100])
@pytest.mark.parametrize("interruptions", [1, 2, 3, 4, 5])
def test_default_read_since_survives_inserts_between_its_calls(capacity: int, interruptions: int) -> None:
    store = InterferingStore(capacity, interruptions)
    for _ in range(3):
        store.insert(store.count)
    first_id, items, evicted = store.read_since(0)
    assert items == list(range(first_id, first_id + len(items)))
    assert evicted == first_id - 1
    assert first_id == max(1, store.count - capacity)


def test_default_read_since_gives_up_on_a_store_that_never_rests() -> None:
    store = InterferingStore(10, interruptions=10**9)
    with pytest.raises(EdgeMLError, match=r"InterferingStore.get_latest_data\(-1\).*override read_since"):
        store.read_since(-1)


def test_default_read_since_refuses_more_items_than_ids() -> None:
    class Miscounting(UserStore):
        def latest_data_id(self) -> int:
            return min(1, super().latest_data_id())

    store = Miscounting(10)
    store.batch_insert(range(5))
    with pytest.raises(EdgeMLError, match="returned 5 items while latest_data_id"):
        store.read_since(-1)


def test_queue_counts_what_it_drops() -> None:
    queue = QueuedDataStore(4)
    queue.batch_insert(range(3))
    assert queue.stats() == {"inserted": 3, "evicted": 0, "occupancy": 3, "capacity": 4}
    queue.batch_insert(range(3, 10))
    assert queue.stats() == {"inserted": 10, "evicted": 6, "occupancy": 4, "capacity": 4}


@given(
    st.integers(1, 8), st.lists(st.integers(0, 25) | st.none(), max_size=12), st.integers(-1, 60), st.none() | st.integers(0, 4)
)
def test_queue_holds_the_newest(capacity: int, batches: list[int | None], from_id: int, limit: int | None) -> None:
    queue, model, count = QueuedDataStore(capacity), deque[int](maxlen=capacity), 0
    for size in batches:  # None: one item by itself
        items = range(count, count + (1 if size is None else size))
        if size is None:
            queue.insert(count)
        else:
            queue.batch_insert(items)
        model.extend(items)
        count = items.stop
    held = [item for item in model if item > from_id]
    first_id = held[0] if held else max(from_id + 1, count)
    assert queue.read_since(from_id, limit) == (first_id, held[:limit], first_id - from_id - 1)
    assert (len(queue), queue.latest_data_id()) == (len(model), count - 1)


def test_queue_lets_dropped_items_go() -> None:
    class Item:
        alive = 0

        def __init__(self) -> None:
            Item.alive += 1

        def __del__(self) -> None:
            Item.alive -= 1

    queue = QueuedDataStore(3)
    for _ in range(20):
        queue.insert(Item())
    assert Item.alive == 3


@pytest.mark.parametrize("capacity", [0, -3])
def test_capacity_below_one_is_refused(capacity: int) -> None:
    with pytest.raises(ValueError, match=f"at least 1 item, got {capacity}"):
        QueuedDataStore(capacity)
