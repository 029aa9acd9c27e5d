"""Import of an RLDS data set: a store is filled from it, each transition as it was.

Step t of an episode has the observation and what the action taken there led to; step t + 1 has the observation that followed,
and says whether the episode ended with it. So transition t is made of steps t and t + 1, and T + 1 steps make T transitions.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from edgeml_ipc.data.data_store import DataStoreBase, QueuedDataStore
from edgeml_ipc.data.replay_buffer import ReplayBuffer, SharedBuffer
from edgeml_ipc.data.trajectory_buffer import make_default_trajectory_buffer
from edgeml_ipc.datasets.needs import needed
from edgeml_ipc.errors import DatasetError

Transform = Callable[[dict[str, Any], dict[str, Any]], dict[str, Any] | None]
Tree = Any  # nested dict of arrays

_STANDARD: Final = frozenset({"observation", "action", "reward", "is_terminal", "is_last"})
_STEPS_AT_ONCE: Final = 256
_STORES: Final = ("replay_buffer", "trajectory_buffer", "queued_datastore")
_TYPES: Final = (None, *_STORES, "with_dones")


class _Space(NamedTuple):
    """A space as far as a buffer asks of it."""

    shape: tuple[int, ...]
    dtype: npt.DTypeLike


class _DictSpace(NamedTuple):
    spaces: dict[str, Any]


def make_datastore(
    dataset_dir: str | os.PathLike[str],
    capacity: int,
    type: str = "replay_buffer",
    data_transform: Transform | None = None,
) -> DataStoreBase:
    """Make a store and fill it from an RLDS data set, in the order of its files.

    Args:
        dataset_dir: directory of the data set, with its features.json.
        capacity: of the store; if there are more transitions, the last ones stay.
        type: "replay_buffer", "trajectory_buffer" (by `make_default_trajectory_buffer`) or "queued_datastore". The buffers have
            the observation and the action of the data set, without what is text.
        data_transform: as for `populate_datastore`.
    Raises:
        ImportError: tensorflow-datasets or tensorflow is missing.
        DatasetError: there is no data set, or none that can be read. ValueError: another type, or no RLDS data set.

    Example:
        buffer = make_datastore("/data/walks", capacity=100_000)
        batch = buffer.sample(256)
    """
    check_store_type(type)
    dataset = open_dataset(dataset_dir)
    store: DataStoreBase
    if type == "queued_datastore":
        store = QueuedDataStore(capacity)
    else:
        make = ReplayBuffer if type == "replay_buffer" else make_default_trajectory_buffer
        store = make(*spaces_of(dataset), capacity)
    try:
        return populate_datastore(store, dataset, type, data_transform)
    except BaseException:
        if isinstance(store, SharedBuffer):
            store.close()
        raise


def check_store_type(type: str) -> None:
    """Raise `ValueError` unless `make_datastore` can make a store of that type."""
    if type not in _STORES:
        raise ValueError(f"type must be one of {list(_STORES)}, got {type!r}")


def open_dataset(dataset_dir: str | os.PathLike[str]) -> Any:
    """Return a data set as a `tf.data.Dataset` of episodes, in the order of its files. Raises as `make_datastore`."""
    tfds = needed("tensorflow_datasets", "rlds")
    tensorflow = needed("tensorflow", "rlds")
    try:
        builder = tfds.builder_from_directory(os.fspath(dataset_dir))
        order = tfds.ReadConfig(interleave_cycle_length=1)
        return builder.as_dataset(split="all", read_config=order, shuffle_files=False)
    except (OSError, ValueError, tensorflow.errors.OpError) as error:
        raise DatasetError(f"the data set in {os.fspath(dataset_dir)!r} cannot be read: {error}") from error


def spaces_of(dataset: Any) -> tuple[Any, Any]:
    """Return the spaces of a data set's observation and action, as far as a buffer asks of them, without what is text."""
    spec = _step_spec(dataset)
    return _space(spec["observation"], "observation"), _space(spec["action"], "action")


def populate_datastore(
    datastore: DataStoreBase,
    dataset: Any,
    type: str | None = None,
    data_transform: Transform | None = None,
) -> DataStoreBase:
    """Insert the transitions of an RLDS data set into a store.

    A transition has `observations`, `next_observations`, `actions`, `rewards` (0 where there are none) and `masks`. Where the
    episode ended, terminated or truncated, is said by `end_of_trajectory` for the type "trajectory_buffer"; by `dones` for
    "with_dones" and "queued_datastore", and for any `ReplayBuffer` or `TrajectoryBuffer`. These two also get what the steps
    have for their further fields, by name.

    Args:
        datastore: that is filled, and returned.
        dataset: a `tf.data.Dataset` of episodes, as `builder.as_dataset` gives.
        type: None, or one of those named above or for `make_datastore`.
        data_transform: called with (transition, metadata), which are its own; what it returns is inserted. None leaves the
            transition out, and the trajectory ends before it. The metadata are the other features of the step, `step` (from 0)
            and `step_size` (the number of steps).
    Raises:
        ValueError: another type, or the data set is not RLDS. DatasetError: it cannot be read.
        Whatever `insert` or `data_transform` raise.
    """
    if type not in _TYPES:
        raise ValueError(f"type must be one of {list(_TYPES)}, got {type!r}")
    spec = _step_spec(dataset)
    shapes = {shape.name for shape in datastore.data_shapes} if isinstance(datastore, SharedBuffer) else None
    further = {name.split(".")[0] for name in shapes or ()} & (set(spec) - _STANDARD)
    end = "end_of_trajectory" if type == "trajectory_buffer" else "dones"
    says_end = type in ("trajectory_buffer", "with_dones", "queued_datastore") or shapes is not None
    for steps in _episodes(dataset):
        count = len(steps["is_last"])
        for t in range(count - 1):
            data = _transition(steps, t)
            if says_end:
                data[end] = bool(steps["is_last"][t + 1] or steps["is_terminal"][t + 1])
            data |= {name: _at(steps[name], t) for name in further}
            if shapes is not None:
                data = {name: _kept(name, value, shapes) for name, value in data.items()}
            if data_transform is not None:
                metadata = {name: _at(value, t) for name, value in steps.items() if name not in _STANDARD}
                changed = data_transform(data, {"step": t, "step_size": count, **metadata})
                if changed is None:
                    _end_trajectory(datastore)
                    continue
                data = changed
            datastore.insert(data)
        _end_trajectory(datastore)
    return datastore


def _transition(steps: Mapping[str, Tree], t: int) -> dict[str, Any]:
    reward = steps["reward"][t] if "reward" in steps else np.float32(0)
    return {
        "observations": _at(steps["observation"], t),
        "next_observations": _at(steps["observation"], t + 1),
        "actions": _at(steps["action"], t),
        "rewards": reward,
        "masks": np.float32(not steps["is_terminal"][t + 1]),
    }


def _end_trajectory(datastore: DataStoreBase) -> None:
    if isinstance(datastore, SharedBuffer):
        datastore.end_trajectory()


def _step_spec(dataset: Any) -> Mapping[str, Any]:
    try:
        spec: Mapping[str, Any] = dataset.element_spec["steps"].element_spec
        missing = {"observation", "action", "is_terminal", "is_last"} - set(spec)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"dataset must be RLDS, a tf.data.Dataset of episodes that have 'steps', got {dataset!r}") from error
    if missing:
        raise ValueError(f"the steps of the data set have the features {sorted(spec)}; {sorted(missing)} are missing")
    return spec


def _episodes(dataset: Any) -> Iterator[Mapping[str, Tree]]:
    """Read one episode after the other: for each feature of its steps an array, or nested dict of arrays, `(steps, ...)`."""
    tensorflow = needed("tensorflow", "rlds")
    try:
        for episode in dataset:
            parts = list(episode["steps"].batch(_STEPS_AT_ONCE).as_numpy_iterator())
            if parts:
                yield _joined(parts)
    except tensorflow.errors.OpError as error:
        raise DatasetError(f"the data set cannot be read: {error}") from error


def _joined(parts: list[Tree]) -> Tree:
    if isinstance(parts[0], Mapping):
        return {name: _joined([part[name] for part in parts]) for name in parts[0]}
    return np.concatenate(parts)


def _at(tree: Tree, t: int) -> Tree:
    """Return one step's value, text as str."""
    if isinstance(tree, Mapping):
        return {name: _at(value, t) for name, value in tree.items()}
    value = tree[t]
    return value.decode() if isinstance(value, bytes) else value


def _kept(name: str, value: Tree, shapes: set[str]) -> Tree:
    """Leave out what a buffer has no field for."""
    if not isinstance(value, Mapping):
        return value
    return {
        key: _kept(f"{name}.{key}", child, shapes)
        for key, child in value.items()
        if any(shape == f"{name}.{key}" or shape.startswith(f"{name}.{key}.") for shape in shapes)
    }


def _space(spec: Any, name: str) -> Any:
    """Return the space of a feature.

    Raises:
        ValueError: its shape is not fixed, or it is text.
    """
    if isinstance(spec, Mapping):
        spaces = {key: _space(child, f"{name}/{key}") for key, child in spec.items() if not _is_text(child)}
        return _DictSpace(spaces)
    if _is_text(spec) or not spec.shape.is_fully_defined():
        raise ValueError(f"the feature {name!r} is {spec}; a buffer needs numbers of a fixed shape")
    return _Space(tuple(spec.shape.as_list()), spec.dtype.as_numpy_dtype)


def _is_text(spec: Any) -> bool:
    return not isinstance(spec, Mapping) and spec.dtype.name == "string"
