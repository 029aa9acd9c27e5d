"""TrajectoryBuffer: trajectories of any fields, in a ring that several processes fill and sample."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final, Self

from edgeml_ipc.data.columns import DataShape, dtype_of, shapes_of_space
from edgeml_ipc.data.replay_buffer import SharedBuffer
from edgeml_ipc.data.sampler import LatestSampler
from edgeml_ipc.data.schema import NEXT, OBSERVATIONS, Schema, Stored, stored_once

_SHORTEST: Final = 2  # steps of a trajectory that is sampled, where nothing else is said
_RESERVED_NAMES: Final = frozenset({"about", "policy_version"})


class TrajectoryBuffer(SharedBuffer):
    """A ring of trajectories whose steps have any fields, in memory that several processes share.

    A step is a dict with the fields that `data_shapes` says. A trajectory ends with `insert(step, end_of_trajectory=True)`,
    with a step in which `end_of_trajectory` or `dones` is true (whether or not it is a field), with one whose `masks` are 0 and
    that has neither, or with `end_trajectory()`. Batches are drawn by `register_sample_config` and `sample(name, batch_size)`.

    All else is as with `ReplayBuffer`: names, writers, processes that die, saving and loading. Where `next_observations` has
    the fields of `observations`, each observation is stored once, and it may be left out where a trajectory goes on.

    Threads and processes: as `ReplayBuffer`.

    Example:
        >>> from edgeml_ipc.data import SequenceSampler
        >>> shapes = [DataShape("joints", (7,)), DataShape("gripper", dtype="bool")]
        >>> with TrajectoryBuffer(capacity=100, data_shapes=shapes, seed=0) as buffer:
        ...     for step in range(5):
        ...         buffer.insert({"joints": [step] * 7, "gripper": step > 2}, end_of_trajectory=step == 4)
        ...     buffer.register_sample_config("pairs", {"gripper": SequenceSampler(begin=0, end=2)}, sample_range=(0, 2))
        ...     data, mask = buffer.sample("pairs", 64)
        >>> data["gripper"].shape
        (64, 2)
    """

    def __init__(
        self,
        capacity: int,
        data_shapes: Sequence[DataShape],
        min_trajectory_length: int = _SHORTEST,
        *,
        name: str | None = None,
        seed: int | None = None,
        chunk_rows: int | None = None,
        max_writers: int = 64,
        reattach: bool = False,
        samples_per_insert: float | None = None,
        min_rows: int = 1,
        slack_samples: float | None = None,
        flow_timeout: float = 60.0,
        n_stack: int = 1,
        stack_axis: int = -1,
    ) -> None:
        """Reserve the memory; nothing is stored yet.

        Args:
            capacity: steps held at most; then the oldest is overwritten.
            data_shapes: the fields of a step.
            min_trajectory_length: trajectories of which fewer steps are held are not sampled.
            name, seed, chunk_rows, max_writers, reattach: as for `ReplayBuffer`.
            samples_per_insert, min_rows, slack_samples, flow_timeout: as for `ReplayBuffer`; of a batch its anchors count.
            n_stack, stack_axis: of observations that are stored once, as for `ReplayBuffer`.
        Raises:
            TypeError: a dtype that cannot be stored. ValueError: a number below 1, no fields, two of one name, or a name that
                has a meaning already.
            SegmentError: memory is short (then nothing was written), the name is taken, or the buffer of that name is another.
        """
        self._make(
            _trajectory_schema(data_shapes, n_stack, stack_axis),
            capacity,
            name=name,
            seed=seed,
            chunk_rows=chunk_rows,
            max_writers=max_writers,
            reattach=reattach,
            min_trajectory_length=min_trajectory_length,
            samples_per_insert=samples_per_insert,
            min_rows=min_rows,
            slack_samples=slack_samples,
            flow_timeout=flow_timeout,
        )

    @classmethod
    def attach(
        cls,
        name: str | int,
        *,
        seed: int | None = None,
        min_trajectory_length: int = _SHORTEST,
        flow_timeout: float = 60.0,
    ) -> Self:
        """Use a buffer that another process made; see `ReplayBuffer.attach`."""
        return super().attach(name, seed=seed, min_trajectory_length=min_trajectory_length, flow_timeout=flow_timeout)

    @classmethod
    def connect(cls, address: str, *, min_trajectory_length: int = _SHORTEST, **options: Any) -> Any:
        """Use a buffer that a `TrainerServer` anywhere has registered; see `ReplayBuffer.connect`."""
        return super().connect(address, min_trajectory_length=min_trajectory_length, **options)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str], *, min_trajectory_length: int = _SHORTEST, **options: Any) -> Self:
        """Make a buffer of what `save` wrote; see `ReplayBuffer.from_file`, which has the same options."""
        return super().from_file(path, min_trajectory_length=min_trajectory_length, **options)

    def sample(  # type: ignore[override]
        self, name: str, batch_size: int, force_indices: Any = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Draw a batch as a sample config says; see `ReplayBuffer.sample`.

        Raises:
            BufferEmpty: nothing was inserted yet, or no window fits. ValueError: `batch_size` is below 1, there is no such
                config, or no such row.
        """
        data, mask = super().sample(name, batch_size, force_indices)
        return data, mask


def make_default_trajectory_buffer(
    observation_space: Any, action_space: Any, capacity: int, **options: Any
) -> TrajectoryBuffer:
    """Make a buffer of transitions with the sample config "training", which draws one step at a time.

    A step has `observations`, `next_observations`, `actions`, `rewards`, `masks` and `end_of_trajectory`; so has a batch. The
    last step of a trajectory is drawn as often as any other.

    Args:
        observation_space, action_space: gymnasium spaces with a shape and a dtype, or (nested) Dict spaces of such.
        capacity: steps held at most.
        options: as for `TrajectoryBuffer`.

    Example:
        >>> import gymnasium
        >>> import numpy as np
        >>> box = gymnasium.spaces.Box(-1, 1, (2,))
        >>> with make_default_trajectory_buffer(box, box, capacity=100) as buffer:
        ...     step = {"observations": np.zeros(2), "actions": np.zeros(2), "rewards": 1.0, "masks": 1.0}
        ...     buffer.insert(step)
        ...     buffer.insert({**step, "masks": 0.0, "next_observations": np.ones(2)}, end_of_trajectory=True)
        ...     data, mask = buffer.sample("training", 8)
        >>> data["next_observations"].shape
        (8, 2)
    """
    shapes = default_shapes(observation_space, action_space)
    buffer = TrajectoryBuffer(capacity, shapes, **options)
    buffer.register_sample_config("training", {shape.name.split(".")[0]: LatestSampler() for shape in shapes})
    return buffer


def default_shapes(observation_space: Any, action_space: Any) -> list[DataShape]:
    """Return the fields of a step of `make_default_trajectory_buffer`."""
    return [
        *shapes_of_space(OBSERVATIONS, observation_space),
        *shapes_of_space(NEXT + OBSERVATIONS, observation_space),
        *shapes_of_space("actions", action_space),
        DataShape("rewards", dtype="float64"),
        DataShape("masks", dtype="float64"),
        DataShape("end_of_trajectory", dtype="bool"),
    ]


def _trajectory_schema(data_shapes: Sequence[DataShape], n_stack: int, stack_axis: int) -> Schema:
    """Return the schema of a step with these fields; observations are stored once where `next_observations` are like them."""
    shapes = [DataShape(shape.name, tuple(shape.shape), dtype_of(shape.dtype).name) for shape in data_shapes]
    names = [shape.name for shape in shapes]
    if not names or len(set(names)) != len(names):
        raise ValueError(f"data_shapes must name at least one field, each once, got {names}")
    if taken := _RESERVED_NAMES & {name.split(".")[0] for name in names}:
        raise ValueError(f"data_shapes cannot have fields called {sorted(taken)}: these names have a meaning of their own")
    observations = [shape for shape in shapes if shape.name.split(".")[0] == OBSERVATIONS]
    following = [shape for shape in shapes if shape.name.split(".")[0] == NEXT + OBSERVATIONS]
    if not following or {replace(shape, name=NEXT + shape.name) for shape in observations} != set(following):
        if n_stack != 1:
            raise ValueError(f"n_stack is {n_stack}: frames are stored once only where next_observations are like observations")
        return Schema("TrajectoryBuffer", tuple(Stored(shape) for shape in shapes))
    others = [shape for shape in shapes if shape not in observations and shape not in following]
    columns = (*stored_once(observations, n_stack, stack_axis), *(Stored(shape) for shape in others))
    return Schema("TrajectoryBuffer", columns, n_stack)
