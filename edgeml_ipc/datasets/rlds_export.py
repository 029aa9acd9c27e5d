"""Export of a buffer as an RLDS data set."""

from __future__ import annotations

import os
from typing import Final

from edgeml_ipc.data.replay_buffer import SharedBuffer
from edgeml_ipc.datasets.episodes import check_fields, episodes
from edgeml_ipc.datasets.open_episode import OpenEpisode
from edgeml_ipc.datasets.rlds_features import features_of
from edgeml_ipc.datasets.rlds_folder import RLDSFolder
from edgeml_ipc.datasets.tf_example import check_installed

_EPISODES_PER_FILE: Final = 1000


def export_rlds(
    buffer: SharedBuffer,
    directory: str | os.PathLike[str],
    dataset_name: str,
    max_episodes_per_file: int = _EPISODES_PER_FILE,
) -> int:
    """Write the episodes that a buffer holds as an RLDS data set; add them, if the directory has one.

    See `RLDSLogger` for the steps, and `episodes` for what an episode is. Fields that are neither standard nor derived become
    features of the steps, of their own names. Policy versions are not written.

    Args:
        buffer: a `ReplayBuffer`, or a `TrajectoryBuffer` of transitions. Others may write and sample meanwhile.
        directory, dataset_name, max_episodes_per_file: as for `RLDSLogger`.
    Returns:
        how many episodes were written.
    Raises:
        ImportError, DatasetError, TypeError: as for `RLDSLogger`. ValueError: so, too, or the buffer has no transitions.

    Example:
        >>> import tempfile
        >>> import gymnasium
        >>> import numpy as np
        >>> from edgeml_ipc import ReplayBuffer
        >>> box = gymnasium.spaces.Box(-1, 1, (2,))
        >>> last = {"observations": np.zeros(2), "actions": np.ones(2), "rewards": 1.0, "masks": 0.0}
        >>> with ReplayBuffer(box, box, capacity=10) as buffer, tempfile.TemporaryDirectory() as folder:
        ...     buffer.insert({**last, "next_observations": np.ones(2)})
        ...     export_rlds(buffer, folder, "walks")
        1
    """
    check_installed()
    check_fields(buffer)
    features = features_of(buffer.data_shapes)
    folder = RLDSFolder(os.fspath(directory), dataset_name, features, max_episodes_per_file)
    written = 0
    try:
        for episode in episodes(buffer):
            encoded = OpenEpisode(features)
            encoded.extend(episode.values)
            folder.add(encoded.finish(episode.following, episode.terminated))
            written += 1
    finally:
        folder.close()
    return written
