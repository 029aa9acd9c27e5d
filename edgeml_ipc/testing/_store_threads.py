"""One thread inserts while another reads: no item is lost, repeated, or seen without its id."""

from __future__ import annotations

import threading

from edgeml_ipc.testing._store_base import CAPACITY, StoreTests
from edgeml_ipc.testing._workers import Background

_ITEMS = 2000


class ThreadTests(StoreTests):
    """Several threads of one process."""

    def test_reading_while_a_thread_inserts_loses_and_repeats_nothing(self) -> None:
        store = self.make_store(_ITEMS)
        done = threading.Event()

        def insert() -> None:
            for value in range(_ITEMS):
                store.insert(self.make_item(value))
            done.set()

        with Background(insert) as inserting:
            got: list[int] = []
            finished = False
            while not finished and inserting.error is None:
                finished = done.is_set()
                first_id, items, evicted = store.read_since(len(got) - 1)
                assert (first_id, evicted) == (len(got), 0)
                got += self.values(items)
        inserting.get()
        assert got == list(range(_ITEMS))

    def test_a_slow_reader_is_told_what_it_missed(self) -> None:
        """The store wraps all the time; each item that is read still has its own id, and the rest is counted."""
        store = self.make_store(CAPACITY)
        done = threading.Event()

        def insert() -> None:
            for value in range(0, _ITEMS, 4):
                store.insert(self.make_item(value))
                store.batch_insert(self.items(range(value + 1, value + 4)))
            done.set()

        with Background(insert) as inserting:
            read = missed = 0
            finished = False
            while not finished and inserting.error is None:
                finished = done.is_set()
                first_id, items, evicted = store.read_since(read + missed - 1)
                assert first_id == read + missed + evicted
                assert self.values(items) == list(range(first_id, first_id + len(items)))
                if self.drops_oldest:
                    assert max(len(items), len(store)) <= CAPACITY
                read, missed = read + len(items), missed + evicted
        inserting.get()
        assert read + missed == _ITEMS
        assert read >= len(store)

    def test_threads_that_insert_keep_their_own_order(self) -> None:
        threads, each = 4, 250
        store = self.make_store(threads * each)

        def insert(thread: int) -> None:
            for value in range(thread * each, (thread + 1) * each, 2):
                store.insert(self.make_item(value))
                store.batch_insert([self.make_item(value + 1)])

        with Background(insert, 0) as a, Background(insert, 1) as b, Background(insert, 2) as c, Background(insert, 3) as d:
            pass
        for inserting in (a, b, c, d):
            inserting.get()
        assert store.latest_data_id() == threads * each - 1
        values = self.content(store)
        for thread in range(threads):
            mine = range(thread * each, (thread + 1) * each)
            assert [value for value in values if value in mine] == list(mine)
