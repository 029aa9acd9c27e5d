"""Buffers that are data stores, as agentlace makes them of jaxrl's; here all buffers are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from edgeml_ipc.compat.data.data_store import DataStoreBase
from edgeml_ipc.compat.data.trajectory_buffer import DataShape, TrajectoryBuffer
from edgeml_ipc.data import replay_buffer
from edgeml_ipc.data.sampler import LatestSampler
from edgeml_ipc.data.trajectory_buffer import default_shapes

_ROWS = "rows that were asked for"


class TrajectoryBufferDataStore(TrajectoryBuffer):
    """See `edgeml_ipc.compat.data.trajectory_buffer.TrajectoryBuffer`.

    Args:
        device: accepted; batches are numpy arrays.
        rlds_logger: an `edgeml_ipc.datasets.RLDSLogger`, which records what is inserted; close it before the buffer.
    """

    def __init__(
        self,
        capacity: int,
        data_shapes: Sequence[DataShape],
        device: Any = None,
        seed: int | None = 0,
        min_trajectory_length: int = 2,
        rlds_logger: Any = None,
        **options: Any,
    ) -> None:
        super().__init__(capacity, data_shapes, seed, min_trajectory_length, device, **options)
        if rlds_logger is not None:
            rlds_logger.attach(self)


class ReplayBufferDataStore(replay_buffer.ReplayBuffer, DataStoreBase):
    """See `edgeml_ipc.ReplayBuffer`; `sample` returns a FrozenDict of flax, as jaxrl's does.

    Args:
        rlds_logger: an `edgeml_ipc.datasets.RLDSLogger`, which records what is inserted; close it before the buffer.
    Raises:
        ImportError: `sample` and `get_iterator` need flax: pip install 'edgeml_ipc[rl]'.
    """

    def __init__(
        self, observation_space: Any, action_space: Any, capacity: int, rlds_logger: Any = None, **options: Any
    ) -> None:
        super().__init__(observation_space, action_space, capacity, **options)
        if rlds_logger is not None:
            rlds_logger.attach(self)

    def sample(self, batch_size: int, keys: Sequence[str] | None = None, indx: Any = None) -> Any:  # type: ignore[override]
        """Draw rows uniformly.

        Args:
            keys: fields of the batch; None: all.
            indx: which rows to return instead, counted from the oldest that is held: `(batch_size,)`.
        """
        if indx is None:
            batch = super().sample(batch_size)
        else:
            names = {shape.name.split(".")[0] for shape in self.data_shapes}
            self.register_sample_config(_ROWS, {name: LatestSampler() for name in names})
            rows = self.rows()[np.asarray(indx)]
            batch, _ = super().sample(_ROWS, len(rows), rows)
        return _frozen({name: batch[name] for name in batch if keys is None or name in keys})

    def get_iterator(
        self, queue_size: int = 2, sample_args: Mapping[str, Any] | None = None, device: Any = None
    ) -> Iterator[Any]:
        """Yield batches on a JAX device without end, `queue_size` of them ready.

        Args:
            sample_args: `batch_size`.
        """
        with self.prefetch(size=queue_size, device=device, **(sample_args or {})) as batches:
            for batch in batches:
                yield _frozen(batch)

    @property
    def _insert_seq_id(self) -> int:
        """How many transitions were inserted."""
        return self.latest_data_id() + 1


def _frozen(batch: dict[str, Any]) -> Any:
    try:
        from flax.core import freeze
    except ImportError as error:
        raise ImportError("batches of ReplayBufferDataStore are FrozenDicts: pip install 'edgeml_ipc[rl]'") from error
    return freeze(batch)


def make_default_trajectory_buffer(
    observation_space: Any, action_space: Any, capacity: int, device: Any = None, rlds_logger: Any = None
) -> TrajectoryBufferDataStore:
    """Make a buffer of transitions with the sample config "training"; see `edgeml_ipc.make_default_trajectory_buffer`."""
    shapes = default_shapes(observation_space, action_space)
    buffer = TrajectoryBufferDataStore(capacity, shapes, device, rlds_logger=rlds_logger)
    buffer.register_sample_config("training", {shape.name.split(".")[0]: LatestSampler() for shape in shapes})
    return buffer
