"""Data stores: queues to upload from, and replay buffers to learn from."""

from edgeml_ipc.data.data_store import DataStoreBase, QueuedDataStore
from edgeml_ipc.data.replay_buffer import ReplayBuffer
from edgeml_ipc.data.sampler import FutureSampler, LatestSampler, PrioritySampler, Sampler, SequenceSampler
from edgeml_ipc.data.storage import DataShape
from edgeml_ipc.errors import BufferEmpty

__all__ = [
    "BufferEmpty",
    "DataShape",
    "DataStoreBase",
    "FutureSampler",
    "LatestSampler",
    "PrioritySampler",
    "QueuedDataStore",
    "ReplayBuffer",
    "Sampler",
    "SequenceSampler",
]
