"""What goes in comes out: ids, order, limits, drops, errors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from edgeml_ipc.testing._store_base import CAPACITY, StoreTests, spoil


class ContentTests(StoreTests):
    """One thread, one process."""

    def test_is_empty_at_first(self) -> None:
        store = self.make_store(CAPACITY)
        assert store.latest_data_id() == -1
        assert len(store) == 0
        assert list(store.get_latest_data(-1)) == []
        assert store.read_since(-1) == (0, [], 0)

    def test_is_false_while_it_is_empty(self) -> None:
        store = self.make_store(CAPACITY)
        assert not store
        store.insert(self.make_item(0))
        assert store

    def test_knows_its_capacity(self) -> None:
        assert self.make_store(CAPACITY).capacity == CAPACITY

    def test_ids_count_from_zero(self) -> None:
        store = self.make_store(CAPACITY)
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

    @pytest.mark.parametrize("from_id", [4, 5, 1000])
    def test_there_is_nothing_after_the_newest_id(self, from_id: int) -> None:
        store = self.filled(5)
        assert list(store.get_latest_data(from_id)) == []
        assert store.read_since(from_id) == (from_id + 1, [], 0)

    def test_reading_takes_nothing_out(self) -> None:
        store = self.filled(5)
        for _ in range(2):
            assert self.content(store) == list(range(5))
        store.get_latest_data(-1).clear()  # the list is the caller's
        assert self.content(store) == list(range(5))
        assert (len(store), store.latest_data_id()) == (5, 4)

    def test_read_since_keeps_the_limit_and_gives_the_oldest_first(self) -> None:
        store = self.filled(10)
        for limit, expected in ((0, []), (1, [3]), (3, [3, 4, 5]), (7, list(range(3, 10))), (1000, list(range(3, 10)))):
            first_id, items, evicted = store.read_since(2, limit=limit)
            assert (first_id, self.values(items), evicted) == (3, expected, 0)

    def test_a_store_is_read_in_pieces(self) -> None:
        """As an upload does: each read goes on where the one before ended."""
        store = self.filled(CAPACITY)
        got: list[int] = []
        while items := store.read_since(len(got) - 1, limit=5)[1]:
            got += self.values(items)
        assert got == list(range(CAPACITY))

    @pytest.mark.parametrize(("from_id", "limit"), [(-2, None), (-1, -1), (3, -5)])
    def test_read_since_refuses_what_is_out_of_range(self, from_id: int, limit: int | None) -> None:
        with pytest.raises(ValueError, match=str(from_id) if from_id < -1 else str(limit)):
            self.filled(5).read_since(from_id, limit)

    @pytest.mark.parametrize("inserted", [CAPACITY, CAPACITY + 1, 3 * CAPACITY + 1])
    def test_ids_go_on_when_old_items_are_dropped(self, inserted: int) -> None:
        store = self.filled(inserted)
        newest = inserted - 1
        assert store.latest_data_id() == newest
        if self.drops_oldest:
            assert len(store) == CAPACITY
        held = list(range(newest + 1 - len(store), newest + 1))
        assert self.content(store) == held
        assert self.values(store.get_latest_data(newest - 1)) == [newest]

    def test_a_store_of_one_item_holds_the_newest(self) -> None:
        store = self.make_store(1)
        for value in range(3):
            store.insert(self.make_item(value))
            assert self.content(store)[-1] == value
            assert store.latest_data_id() == value

    def test_read_since_counts_what_was_dropped_unread(self) -> None:
        store = self.filled(3 * CAPACITY)
        oldest = 3 * CAPACITY - len(store)
        for from_id in (-1, 0, oldest - 2, oldest - 1, oldest):
            from_id = max(-1, from_id)
            first_id, items, evicted = store.read_since(from_id, limit=2)
            assert first_id == max(from_id + 1, oldest)
            assert evicted == first_id - from_id - 1
            assert self.values(items) == [first_id, first_id + 1]

    def test_batch_insert_keeps_order_and_ids(self) -> None:
        store = self.filled(2)
        store.batch_insert(self.items(range(2, 7)))
        store.batch_insert([])
        store.batch_insert(item for item in self.items(range(7, 9)))
        assert store.latest_data_id() == 8
        assert self.content(store) == list(range(9))

    def test_batch_insert_of_more_than_fits(self) -> None:
        store = self.filled(1)
        store.batch_insert(self.items(range(1, 2 * CAPACITY + 3)))
        assert store.latest_data_id() == 2 * CAPACITY + 2
        first_id, items, _ = store.read_since(-1)
        assert self.values(items) == list(range(first_id, 2 * CAPACITY + 3))

    def test_a_batch_that_breaks_off_leaves_ids_and_items_agreed(self) -> None:
        """All of it or its beginning is inserted: an upload that is repeated relies on the ids to know which."""

        def breaks_off() -> Iterator[Any]:
            yield from self.items(range(2, 5))
            raise RuntimeError("the source of the items broke")

        store = self.filled(2)
        with pytest.raises(RuntimeError, match="the source of the items broke"):
            store.batch_insert(breaks_off())
        inserted = store.latest_data_id() + 1
        assert 2 <= inserted <= 5
        assert self.content(store) == list(range(inserted))

    def test_what_is_refused_leaves_no_trace(self) -> None:
        bad = self.make_bad_item()
        store = self.filled(2)
        with pytest.raises((ValueError, TypeError)):
            store.insert(bad)
        assert (store.latest_data_id(), self.content(store)) == (1, [0, 1])
        with pytest.raises((ValueError, TypeError)):
            store.batch_insert([self.make_item(2), bad])
        inserted = store.latest_data_id() + 1
        assert self.content(store) == list(range(inserted))
        store.insert(self.make_item(inserted))
        assert self.content(store) == list(range(inserted + 1))

    def test_what_is_taken_and_given_are_copies(self) -> None:
        store = self.make_store(CAPACITY)
        items = self.items(range(4))
        store.insert(items[0])
        store.batch_insert(items[1:])
        assert all(spoil(item) for item in items)
        assert self.content(store) == list(range(4))
        for given in (store.get_latest_data(-1), store.read_since(-1)[1]):
            assert all(spoil(item) for item in given)
            assert self.content(store) == list(range(4))

    def test_what_was_read_stays_when_the_store_goes_on(self) -> None:
        store = self.filled(CAPACITY)
        items = list(store.get_latest_data(-1))
        store.batch_insert(self.items(range(CAPACITY, 3 * CAPACITY)))
        assert self.values(items) == list(range(CAPACITY))

    def test_incarnation_names_the_object(self) -> None:
        one, other = self.make_store(CAPACITY), self.make_store(CAPACITY)
        assert len(one.incarnation) == 16
        assert one.incarnation == one.incarnation
        assert one.incarnation != other.incarnation

    @pytest.mark.parametrize("inserted", [0, 5, 3 * CAPACITY])
    def test_stats_count(self, inserted: int) -> None:
        store = self.filled(inserted)
        stats = store.stats()
        assert all(type(key) is str and type(count) is int for key, count in stats.items())
        assert (stats["inserted"], stats["occupancy"]) == (inserted, len(store))
        assert stats.get("evicted", inserted - len(store)) == inserted - len(store)
