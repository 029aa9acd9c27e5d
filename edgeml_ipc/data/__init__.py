"""Data stores: queues to upload from, and replay buffers to learn from."""

from edgeml_ipc.data.data_store import DataStoreBase, QueuedDataStore
from edgeml_ipc.data.replay_buffer import ReplayBuffer
from edgeml_ipc.data.storage import DataShape
from edgeml_ipc.errors import BufferEmpty

__all__ = ["BufferEmpty", "DataShape", "DataStoreBase", "QueuedDataStore", "ReplayBuffer"]
