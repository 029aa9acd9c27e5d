"""The suites that every data store passes, yours too: derive from one and say how a store is made.

`StoreConformance` is for all stores, `ReplayConformance` for those that are sampled by named configs, and
`SavedReplayConformance` and `SharedReplayConformance` for those of them that have `save` and `load`, or that several processes
write; a store that is both derives from both.

Example:
    class TestMyStore(StoreConformance):
        def make_store(self, capacity: int) -> DataStoreBase:
            return MyStore(capacity)
"""

from __future__ import annotations

from edgeml_ipc.testing._replay_processes import SharedReplayTests
from edgeml_ipc.testing._replay_sampling import SamplingTests
from edgeml_ipc.testing._replay_saving import SavingTests
from edgeml_ipc.testing._replay_windows import WindowTests
from edgeml_ipc.testing._store_contents import ContentTests
from edgeml_ipc.testing._store_threads import ThreadTests
from edgeml_ipc.testing._store_uploads import UploadTests

__all__ = ["ReplayConformance", "SavedReplayConformance", "SharedReplayConformance", "StoreConformance"]


class StoreConformance(ContentTests, ThreadTests, UploadTests):
    """Tests of the contract of `DataStoreBase`, found by pytest in a subclass whose name starts with `Test`.

    `make_store` is required. A store that takes only certain items overrides `make_item` and `value_of`, and `make_bad_item`
    for one that it refuses.

    Attributes:
        drops_oldest: False for a store without a bound, whose capacity is nominal.
        copies: True for a store that promises that neither what was inserted nor what it gives out is its own memory.
    """


class ReplayConformance(SamplingTests, WindowTests, StoreConformance):
    """Tests of a store that is sampled, as `ReplayBuffer` is: `register_sample_config`, `sample(name, ...)`, `end_trajectory`.

    `make_replay`, `make_item` and `value_of` are required. Items are inserted by `insert(item, end_of_trajectory=...)`, and
    the values of an episode's items rise by one.

    Attributes:
        value_field: the stored field of one number from which a step's value can be read, as `value_of` reads it from an item.
    """

    copies = True


class SavedReplayConformance(SavingTests, ReplayConformance):
    """The same, and tests of `save(path)` and `load(path)`."""


class SharedReplayConformance(SharedReplayTests, ReplayConformance):
    """The same, and tests of a store that several processes write, some of which are killed. `make_shared` is required too."""
