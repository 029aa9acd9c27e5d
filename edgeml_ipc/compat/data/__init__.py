"""Data stores under edgeml's and agentlace's names."""

from edgeml_ipc.compat.data.data_store import DataStoreBase, QueuedDataStore
from edgeml_ipc.compat.data.sampler import FutureSampler, LatestSampler, PrioritySampler, Sampler, SequenceSampler
from edgeml_ipc.compat.data.trajectory_buffer import DataShape, TrajectoryBuffer
from edgeml_ipc.data.replay_buffer import ReplayBuffer

__all__ = [
    "DataShape",
    "DataStoreBase",
    "FutureSampler",
    "LatestSampler",
    "PrioritySampler",
    "QueuedDataStore",
    "ReplayBuffer",
    "Sampler",
    "SequenceSampler",
    "TrajectoryBuffer",
]
