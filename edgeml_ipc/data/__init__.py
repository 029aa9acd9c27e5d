"""Data stores: queues to upload from, and replay buffers to learn from."""

from edgeml_ipc.data.data_store import DataStoreBase, QueuedDataStore
from edgeml_ipc.data.replay_buffer import BufferEmpty, ReplayBuffer
from edgeml_ipc.data.storage import DataShape

__all__ = ["BufferEmpty", "DataShape", "DataStoreBase", "QueuedDataStore", "ReplayBuffer"]
