"""Export of a buffer as a Minari data set."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from edgeml_ipc.data.columns import Array, DataShape, dtype_of
from edgeml_ipc.data.replay_buffer import SharedBuffer
from edgeml_ipc.datasets.episodes import check_fields, episodes
from edgeml_ipc.datasets.needs import needed
from edgeml_ipc.errors import DatasetError


def export_minari(
    buffer: SharedBuffer, dataset_id: str, observation_space: Any = None, action_space: Any = None, **about: Any
) -> Any:
    """Write the episodes that a buffer holds as a Minari data set, which `minari.load_dataset(dataset_id)` loads.

    See `episodes` for what an episode is. An episode of T transitions has T + 1 observations, and T actions, rewards,
    terminations and truncations. Fields that are neither standard nor derived are not written.

    Args:
        buffer: a `ReplayBuffer`, or a `TrajectoryBuffer` of transitions. Others may write and sample meanwhile.
        dataset_id: such as "walker/mine-v0". Where it lies, the variable MINARI_DATASETS_PATH says.
        observation_space, action_space: gymnasium spaces of the data set; None: boxes without bounds.
        about: further arguments of `minari.create_dataset_from_buffers`, such as `env` and `author`. Images are stored without
            loss unless `jpeg_encoding` is given as True.
    Returns:
        the `minari.MinariDataset`.
    Raises:
        ImportError: minari is missing. ValueError: the buffer has no transitions, or there is a data set of that name.
        DatasetError: the buffer is empty, or the data set cannot be written. Then nothing was written.

    Example:
        dataset = export_minari(buffer, "walker/mine-v0", author="me")
    """
    minari = needed("minari", "minari")
    check_fields(buffer)
    if not len(buffer):
        raise DatasetError("the buffer is empty, and Minari has no data sets without episodes")
    if dataset_id in minari.list_local_datasets():
        raise ValueError(f"there is a Minari data set {dataset_id!r} already; choose another dataset_id or version")
    shapes = buffer.data_shapes
    about = {
        "jpeg_encoding": False,
        "observation_space": observation_space or _space(shapes, "observations"),
        "action_space": action_space or _space(shapes, "actions"),
        **about,
    }
    try:
        return minari.create_dataset_from_buffers(dataset_id, _buffers(buffer, minari), **about)
    except BaseException as error:
        if dataset_id in minari.list_local_datasets():
            minari.delete_dataset(dataset_id)
        if isinstance(error, OSError):
            raise DatasetError(f"the Minari data set {dataset_id!r} cannot be written: {error}") from error
        raise


def _buffers(buffer: SharedBuffer, minari: Any) -> Iterator[Any]:
    for episode in episodes(buffer):
        count = len(episode)
        terminations, truncations = np.zeros(count, bool), np.zeros(count, bool)
        terminations[-1], truncations[-1] = episode.terminated, episode.truncated
        actions = {name: array for name, array in episode.values.items() if name.split(".")[0] == "actions"}
        yield minari.data_collector.EpisodeBuffer(
            observations=_tree(episode.observations()),
            actions=_tree(actions),
            rewards=episode.values["rewards"],
            terminations=terminations,
            truncations=truncations,
        )


def _tree(fields: dict[str, Array]) -> Any:
    """Return the array of the only field, or a nested dict by what comes after the first dot of the names."""
    root: dict[str, Any] = {}
    for name, array in fields.items():
        _, *parents_and_last = name.split(".")
        if not parents_and_last:
            return array
        *parents, last = parents_and_last
        node = root
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = array
    return root


def _space(shapes: list[DataShape], root: str) -> Any:
    spaces = needed("gymnasium", "minari").spaces

    def space_of(node: Any) -> Any:
        if isinstance(node, dict):
            return spaces.Dict({key: space_of(child) for key, child in node.items()})
        dtype = dtype_of(node.dtype)
        low, high = (-math.inf, math.inf) if dtype.kind == "f" else _range(dtype)
        return spaces.Box(low, high, node.shape, dtype.type)

    found: Any = {shape.name: shape for shape in shapes if shape.name.split(".")[0] == root}
    return space_of(_tree(found))


def _range(dtype: np.dtype[Any]) -> tuple[int, int]:
    return (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
