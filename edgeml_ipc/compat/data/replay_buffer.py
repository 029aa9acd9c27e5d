"""The trajectory buffer under the names that it had in early versions of edgeml."""

from edgeml_ipc.compat.data.trajectory_buffer import DATA_PREFIX, METADATA_PREFIX, DataShape, Trajectory, TrajectoryBuffer

ReplayBuffer = TrajectoryBuffer
EfficientReplayBuffer = TrajectoryBuffer

__all__ = [
    "DATA_PREFIX",
    "METADATA_PREFIX",
    "DataShape",
    "EfficientReplayBuffer",
    "ReplayBuffer",
    "Trajectory",
    "TrajectoryBuffer",
]
