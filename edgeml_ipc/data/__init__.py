"""Data stores: queues to upload from, and replay buffers to learn from."""

from edgeml_ipc.data.data_store import DataStoreBase, QueuedDataStore
from edgeml_ipc.data.n_step import NStepSampler
from edgeml_ipc.data.replay_buffer import ReplayBuffer
from edgeml_ipc.data.sampler import (
    FutureSampler,
    LatestSampler,
    PrioritySampler,
    Sampler,
    SequenceSampler,
    TrajectorySampler,
)
from edgeml_ipc.data.storage import DataShape
from edgeml_ipc.data.trajectory_buffer import TrajectoryBuffer, make_default_trajectory_buffer
from edgeml_ipc.errors import BufferEmpty

__all__ = [
    "BufferEmpty",
    "DataShape",
    "DataStoreBase",
    "FutureSampler",
    "LatestSampler",
    "NStepSampler",
    "PrioritySampler",
    "QueuedDataStore",
    "ReplayBuffer",
    "Sampler",
    "SequenceSampler",
    "TrajectoryBuffer",
    "TrajectorySampler",
    "make_default_trajectory_buffer",
]
