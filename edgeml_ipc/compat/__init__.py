"""For programs that were written for edgeml or agentlace: the same names, and their manners.

Change `edgeml` or `agentlace` to `edgeml_ipc.compat` in the import lines. Calls return None where those libraries returned
None, and `{"success": False, ...}` where they returned that; arrays are writable copies. docs/migration.md names what differs.
"""

from edgeml_ipc.compat.action import ActionClient, ActionConfig, ActionServer
from edgeml_ipc.compat.data.data_store import DataStoreBase, QueuedDataStore
from edgeml_ipc.compat.inference import InferenceClient, InferenceServer
from edgeml_ipc.compat.trainer import TrainerClient, TrainerConfig, TrainerServer, TrainerSMInterface, TrainerTunnel

__all__ = [
    "ActionClient",
    "ActionConfig",
    "ActionServer",
    "DataStoreBase",
    "InferenceClient",
    "InferenceServer",
    "QueuedDataStore",
    "TrainerClient",
    "TrainerConfig",
    "TrainerSMInterface",
    "TrainerServer",
    "TrainerTunnel",
]
