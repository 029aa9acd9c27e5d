"""What the parts of the store suite share: how a store and its items are made, and what an item stands for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Final

import numpy as np

from edgeml_ipc.data.data_store import DataStoreBase

CAPACITY: Final = 16


class StoreTests(ABC):
    """The hooks of the suite. A subclass overrides `make_store`, and what else does not fit its store.

    Attributes:
        drops_oldest: False for a store without a bound, whose capacity is nominal.
        copies: True for a store that promises that neither what was inserted nor what it gives out is its own memory.
    """

    drops_oldest = True
    copies = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Leave out the tests of what a store does not promise."""
        super().__init_subclass__(**kwargs)
        left_out = []
        if not cls.copies:
            left_out.append("test_what_is_taken_and_given_are_copies")
        if cls.make_bad_item is StoreTests.make_bad_item:
            left_out.append("test_what_is_refused_leaves_no_trace")
        for name in left_out:
            setattr(cls, name, None)

    @abstractmethod
    def make_store(self, capacity: int) -> DataStoreBase:
        """Return an empty store that holds at most `capacity` items."""

    def make_item(self, value: int) -> Any:
        """Return a new item that stands for `value`, 0..100,000."""
        return value

    def make_bad_item(self) -> Any:
        """Return an item that the store refuses with a `ValueError` or `TypeError`; None if it takes everything."""
        return None

    def value_of(self, item: Any) -> int:
        """Return the value that an item read from the store stands for."""
        assert isinstance(item, int)
        return item

    def filled(self, count: int, capacity: int = CAPACITY) -> DataStoreBase:
        """Return a store into which items 0..count-1 were inserted one by one."""
        store = self.make_store(capacity)
        for value in range(count):
            store.insert(self.make_item(value))
        return store

    def items(self, values: range) -> list[Any]:
        """Return a new item for each value."""
        return [self.make_item(value) for value in values]

    def values(self, items: list[Any]) -> list[int]:
        """Return the values that items stand for."""
        return [self.value_of(item) for item in items]

    def content(self, store: DataStoreBase) -> list[int]:
        """Return the values of all that a store holds, oldest first."""
        return self.values(list(store.get_latest_data(-1)))


def spoil(tree: Any) -> int:
    """Overwrite the arrays of a nested dict in place, as a caller may who owns them; return how many those were."""
    if isinstance(tree, dict):
        return sum(spoil(child) for child in tree.values())
    if isinstance(tree, np.ndarray) and tree.flags.writeable:
        tree.fill(99)
        return 1
    return 0
