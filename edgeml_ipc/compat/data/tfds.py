"""RLDS data sets under agentlace's names; see `edgeml_ipc.datasets`. Its stores are those of compat."""

from __future__ import annotations

import os

from edgeml_ipc.compat.data.data_store import QueuedDataStore
from edgeml_ipc.compat.data.jaxrl_data_store import ReplayBufferDataStore, make_default_trajectory_buffer
from edgeml_ipc.data.data_store import DataStoreBase
from edgeml_ipc.datasets.rlds_import import Transform as DataTransformFunction
from edgeml_ipc.datasets.rlds_import import check_store_type, open_dataset, populate_datastore, spaces_of
from edgeml_ipc.datasets.rlds_logger import RLDSLogger

__all__ = ["DataTransformFunction", "RLDSLogger", "make_datastore", "populate_datastore"]


def make_datastore(
    dataset_dir: str | os.PathLike[str],
    capacity: int,
    type: str = "replay_buffer",
    data_transform: DataTransformFunction | None = None,
) -> DataStoreBase:
    """Make a store and fill it from an RLDS data set; see `edgeml_ipc.datasets.make_datastore`.

    A buffer has every transition of the data set, T of an episode of T + 1 steps, each with its own action and reward.
    """
    check_store_type(type)
    dataset = open_dataset(dataset_dir)
    store: DataStoreBase
    if type == "queued_datastore":
        store = QueuedDataStore(capacity)
    else:
        make = ReplayBufferDataStore if type == "replay_buffer" else make_default_trajectory_buffer
        store = make(*spaces_of(dataset), capacity)
    return populate_datastore(store, dataset, type, data_transform)
