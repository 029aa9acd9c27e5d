"""Connect actors, learners and robots: one API over shared memory, tcp and threads.

A table of contents: the services are in `action`, `inference` and `trainer`, the stores in `data`, the errors in `errors`. Each
name is imported from its module when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from edgeml_ipc import _connector

if TYPE_CHECKING:
    from edgeml_ipc.action import ActionClient as ActionClient
    from edgeml_ipc.action import ActionConfig as ActionConfig
    from edgeml_ipc.action import ActionServer as ActionServer
    from edgeml_ipc.data.columns import DataShape as DataShape
    from edgeml_ipc.data.data_store import DataStoreBase as DataStoreBase
    from edgeml_ipc.data.data_store import QueuedDataStore as QueuedDataStore
    from edgeml_ipc.data.n_step import NStepSampler as NStepSampler
    from edgeml_ipc.data.replay_buffer import ReplayBuffer as ReplayBuffer
    from edgeml_ipc.data.sampler import FutureSampler as FutureSampler
    from edgeml_ipc.data.sampler import LatestSampler as LatestSampler
    from edgeml_ipc.data.sampler import PrioritySampler as PrioritySampler
    from edgeml_ipc.data.sampler import Sampler as Sampler
    from edgeml_ipc.data.sampler import SequenceSampler as SequenceSampler
    from edgeml_ipc.data.sampler import TrajectorySampler as TrajectorySampler
    from edgeml_ipc.data.trajectory_buffer import TrajectoryBuffer as TrajectoryBuffer
    from edgeml_ipc.data.trajectory_buffer import make_default_trajectory_buffer as make_default_trajectory_buffer
    from edgeml_ipc.datasets.lerobot_export import export_lerobot as export_lerobot
    from edgeml_ipc.datasets.minari_export import export_minari as export_minari
    from edgeml_ipc.datasets.rlds_export import export_rlds as export_rlds
    from edgeml_ipc.datasets.rlds_import import make_datastore as make_datastore
    from edgeml_ipc.datasets.rlds_import import populate_datastore as populate_datastore
    from edgeml_ipc.datasets.rlds_logger import RLDSLogger as RLDSLogger
    from edgeml_ipc.errors import AddressInUse as AddressInUse
    from edgeml_ipc.errors import AuthenticationError as AuthenticationError
    from edgeml_ipc.errors import BufferEmpty as BufferEmpty
    from edgeml_ipc.errors import BufferFull as BufferFull
    from edgeml_ipc.errors import CodecError as CodecError
    from edgeml_ipc.errors import ConfigMismatch as ConfigMismatch
    from edgeml_ipc.errors import ConnectionClosed as ConnectionClosed
    from edgeml_ipc.errors import ConnectionRefused as ConnectionRefused
    from edgeml_ipc.errors import DatasetError as DatasetError
    from edgeml_ipc.errors import EdgeMLError as EdgeMLError
    from edgeml_ipc.errors import IncompatiblePeer as IncompatiblePeer
    from edgeml_ipc.errors import MessageTooLarge as MessageTooLarge
    from edgeml_ipc.errors import PeerDied as PeerDied
    from edgeml_ipc.errors import RateLimited as RateLimited
    from edgeml_ipc.errors import RemoteError as RemoteError
    from edgeml_ipc.errors import SegmentError as SegmentError
    from edgeml_ipc.errors import TimeoutError as TimeoutError
    from edgeml_ipc.errors import TransportUnavailable as TransportUnavailable
    from edgeml_ipc.gym_env import EnvServer as EnvServer
    from edgeml_ipc.gym_env import RemoteEnv as RemoteEnv
    from edgeml_ipc.gym_env import RemoteVectorEnv as RemoteVectorEnv
    from edgeml_ipc.inference import InferenceClient as InferenceClient
    from edgeml_ipc.inference import InferenceServer as InferenceServer
    from edgeml_ipc.remote_buffer import RemoteBuffer as RemoteBuffer
    from edgeml_ipc.remote_writer import RemoteWriter as RemoteWriter
    from edgeml_ipc.trainer import TrainerClient as TrainerClient
    from edgeml_ipc.trainer import TrainerConfig as TrainerConfig
    from edgeml_ipc.trainer import TrainerServer as TrainerServer
    from edgeml_ipc.trainer import TrainerTunnel as TrainerTunnel
    from edgeml_ipc.trainer import UpdateResult as UpdateResult

_connector.lend(lambda: import_module("edgeml_ipc.connect_buffer").connect)

__version__ = "0.1.0"

_CONTENTS = {
    "action": "ActionClient ActionConfig ActionServer",
    "data.columns": "DataShape",
    "data.data_store": "DataStoreBase QueuedDataStore",
    "data.n_step": "NStepSampler",
    "data.replay_buffer": "ReplayBuffer",
    "data.sampler": "FutureSampler LatestSampler PrioritySampler Sampler SequenceSampler TrajectorySampler",
    "data.trajectory_buffer": "TrajectoryBuffer make_default_trajectory_buffer",
    "datasets.lerobot_export": "export_lerobot",
    "datasets.minari_export": "export_minari",
    "datasets.rlds_export": "export_rlds",
    "datasets.rlds_import": "make_datastore populate_datastore",
    "datasets.rlds_logger": "RLDSLogger",
    "errors": (
        "AddressInUse AuthenticationError BufferEmpty BufferFull CodecError ConfigMismatch ConnectionClosed "
        "ConnectionRefused DatasetError EdgeMLError IncompatiblePeer MessageTooLarge PeerDied RateLimited RemoteError "
        "SegmentError TimeoutError TransportUnavailable"
    ),
    "inference": "InferenceClient InferenceServer",
    "remote_buffer": "RemoteBuffer",
    "remote_writer": "RemoteWriter",
    "trainer": "TrainerClient TrainerConfig TrainerServer TrainerTunnel UpdateResult",
}
# What needs an extra, which `from edgeml_ipc import *` must not import.
_WITH_EXTRAS = {"gym_env": "EnvServer RemoteEnv RemoteVectorEnv"}
_MODULES = {name: f"edgeml_ipc.{module}" for module, names in {**_CONTENTS, **_WITH_EXTRAS}.items() for name in names.split()}

__all__ = sorted(["__version__", *" ".join(_CONTENTS.values()).split()])


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
