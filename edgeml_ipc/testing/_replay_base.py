"""What the parts of the replay suite share: episodes whose values tell where a step belongs."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edgeml_ipc.data.data_store import DataStoreBase
from edgeml_ipc.data.sampler import LatestSampler, SequenceSampler
from edgeml_ipc.testing._store_base import StoreTests

Values = npt.NDArray[np.int64]

EPISODE: Final = 100  # step p of episode e has the value e * EPISODE + p
LENGTHS: Final = (3, 9, 1, 5, 2, 7, 1, 4)
STEPS: Final = sum(LENGTHS)


class ReplayTests(StoreTests):
    """The hooks of the replay suite. A subclass overrides `make_replay`, `make_item` and `value_of`.

    Attributes:
        value_field: the stored field of one number from which a step's value can be read, as `value_of` reads it from an item.
    """

    value_field = "rewards"

    @abstractmethod
    def make_replay(self, capacity: int, seed: int | None = None) -> Any:
        """Return an empty store that holds at most `capacity` steps and samples by `seed`."""

    def make_store(self, capacity: int) -> DataStoreBase:
        """Return an empty store for the suite of all stores."""
        store: DataStoreBase = self.make_replay(capacity)
        return store

    def add_episodes(self, store: Any, lengths: Iterable[int], first: int = 1) -> None:
        """Insert whole episodes of these lengths, numbered from `first`."""
        for episode, length in enumerate(lengths, first):
            for position in range(length):
                store.insert(self.make_item(episode * EPISODE + position), end_of_trajectory=position == length - 1)

    def with_episodes(self, capacity: int = 2 * STEPS, seed: int | None = 0) -> Any:
        """Return a store with episodes of `LENGTHS`, whose steps can be sampled by three configs.

        `step`: one step. `around`: three before it to four after it, where there are. `ahead`: whole windows of three steps.
        """
        store = self.make_replay(capacity, seed)
        self.register(store)
        self.add_episodes(store, LENGTHS)
        return store

    def register(self, store: Any) -> None:
        """Register the configs of `with_episodes`."""
        one, around = LatestSampler(self.value_field), SequenceSampler(begin=-3, end=5, source=self.value_field)
        store.register_sample_config("step", {"value": one})
        store.register_sample_config("around", {"value": one, "around": around})
        ahead = SequenceSampler(begin=0, end=3, source=self.value_field)
        store.register_sample_config("ahead", {"ahead": ahead}, sample_range=(0, 3))

    def check_around(self, batch: tuple[dict[str, Any], dict[str, Any]], held: Iterable[int]) -> None:
        """Check windows of the config `around`: each step that is held and of one episode, zeros elsewhere."""
        data, mask = batch
        there = set(held)
        anchors = data["value"].astype(int)
        wanted = anchors[:, None] + np.arange(-3, 5)
        inside = (wanted // EPISODE == anchors[:, None] // EPISODE) & np.isin(wanted, list(there))
        np.testing.assert_array_equal(mask["around"], inside)
        np.testing.assert_array_equal(data["around"], np.where(inside, wanted, 0))


def check_even(drawn: Any, expected: Iterable[int]) -> None:
    """Check that these values were drawn, no others, and each about equally often: within 6 standard deviations."""
    values, counts = np.unique(np.asarray(drawn, np.int64), return_counts=True)
    np.testing.assert_array_equal(values, np.sort(np.fromiter(expected, np.int64)))
    share = 1 / len(values)
    deviation = np.sqrt(counts.sum() * share * (1 - share))
    assert np.abs(counts - counts.sum() * share).max() <= 6 * deviation, dict(
        zip(values.tolist(), counts.tolist(), strict=True)
    )
