"""The trajectory buffer with edgeml's and agentlace's manners, and with the inner names that their users' tests read.

Steps are numbered as they are inserted, and step i is said to lie in row i % capacity. A trajectory that ends before it has
`min_trajectory_length` steps is taken back: its steps are never stored, and their numbers go to the next ones.

    inserted        0 1 2 3 4 E   5 E   5 6 7 8           E: the trajectory ends; min_trajectory_length = 3
    trajectory id   0 0 0 0 0     -     1 1 1 1
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from edgeml_ipc.compat.data.data_store import DataStoreBase
from edgeml_ipc.data import trajectory_buffer
from edgeml_ipc.data.chunks import LAST
from edgeml_ipc.data.columns import DataShape as DataShape
from edgeml_ipc.data.edgeml_files import described
from edgeml_ipc.data.sample_config import Transform
from edgeml_ipc.data.sampler import LatestSampler, Sampler
from edgeml_ipc.data.storage import Storage
from edgeml_ipc.data.transitions import Preparation, rows_of
from edgeml_ipc.data.windows import Windows

DATA_PREFIX: Final = "data/"
METADATA_PREFIX: Final = "metadata/"
_ALL: Final = "all fields"  # of rows, for `dataset`; a name that no config of a user's replaces, since it is registered anew

Array = npt.NDArray[Any]


@dataclass
class Trajectory:
    """The trajectory that is open.

    Attributes:
        begin_idx: number of its first step. id: of the trajectory, from 0.
        min_length: steps below which a trajectory is taken back when it ends, and not sampled; may be set.
    """

    begin_idx: int
    id: int
    min_length: int

    def valid(self, current_idx: int) -> bool:
        """Tell whether it is long enough if the next step has the number `current_idx`."""
        return current_idx - self.begin_idx >= self.min_length

    def to_dict(self) -> dict[str, int]:
        """Return what `from_dict` takes, as a saved buffer has it."""
        return {f"traj/{name}": value for name, value in asdict(self).items()}

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Trajectory:
        """Return the trajectory that `to_dict` described."""
        return Trajectory(int(data["traj/begin_idx"]), int(data["traj/id"]), int(data["traj/min_length"]))


@dataclass(frozen=True)
class _Config:
    """What was registered."""

    samplers: Mapping[str, Sampler]
    sample_range: tuple[int, int]
    transform: Transform | None


class TrajectoryBuffer(trajectory_buffer.TrajectoryBuffer, DataStoreBase):
    """See `edgeml_ipc.TrajectoryBuffer`, on which it stands; `seed` is 0 where none is given.

    The numbers are those of the steps that `insert` of this object stored. Where others write too (actors that upload into it)
    they say less: such steps have numbers as well, and short trajectories among them are kept, but never sampled.

    Args:
        device: of the JAX arrays that `sample` returns if `use_jax`; else it returns numpy arrays.
    """

    _device: Any = None
    _use_jax = False

    def __init__(
        self,
        capacity: int,
        data_shapes: Sequence[DataShape],
        seed: int | None = 0,
        min_trajectory_length: int = 2,
        device: Any = None,
        use_jax: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(capacity, data_shapes, min_trajectory_length, seed=seed, **options)
        self._device, self._use_jax = device, use_jax

    def _begin(self, storage: Storage, seed: int | None, min_trajectory_length: int, flow_timeout: float = 60.0) -> None:
        super()._begin(storage, seed, min_trajectory_length, flow_timeout)
        self._trajectory = Trajectory(self.latest_data_id() + 1, 0, min_trajectory_length)
        self._seed, self._windows_min_length = seed, min_trajectory_length
        self._configs: dict[str, _Config] = {}
        self._prepare = Preparation(storage.schema, storage.columns)
        self._inserting = threading.RLock()  # of what follows, and of the trajectory
        self._pending: list[dict[str, Any]] = []  # the first steps of a trajectory that is too short so far
        self._steps = 0  # of the open trajectory

    # ---- writing

    def insert(self, data: Mapping[str, Any], end_of_trajectory: bool = False) -> None:
        """Copy one step in; see `edgeml_ipc.TrajectoryBuffer.insert`."""
        ends = _ends(data, end_of_trajectory)
        with self._inserting:
            if self._steps + 1 < self._trajectory.min_length:
                self._prepare.one(data, bool(end_of_trajectory))  # raises what `insert` would
                self._pending.append(_copied(data))
            else:
                while self._pending:
                    super().insert(self._pending[0])
                    del self._pending[0]
                super().insert(data, end_of_trajectory)
            self._steps += 1
            if ends:
                self._close_trajectory()

    def batch_insert(self, batch: Iterable[Mapping[str, Any]] | Mapping[str, Any]) -> None:
        """Copy many steps in: a list of steps, or one dict of stacked arrays."""
        with self._inserting:
            for data in _unstacked(batch) if isinstance(batch, Mapping) else batch:
                self.insert(data)

    def end_trajectory(self) -> None:
        """End the open trajectory; one that is too short is taken back."""
        with self._inserting:
            if not self._pending:
                super().end_trajectory()
            self._close_trajectory()

    def _close_trajectory(self) -> None:
        """Note that the open trajectory ended."""
        if self._steps and not self._pending:
            self._trajectory.begin_idx = self._insert_idx
            self._trajectory.id += 1
        self._pending.clear()
        self._steps = 0

    # ---- sampling

    def register_sample_config(
        self,
        name: str,
        samplers: Mapping[str, Sampler],
        sample_range: tuple[int, int] = (0, 1),
        transform: Transform | None = None,
        **limits: Any,
    ) -> None:
        """Say what `sample(name, ...)` returns; see `edgeml_ipc.ReplayBuffer.register_sample_config`."""
        super().register_sample_config(name, samplers, sample_range, transform, **limits)
        self._configs[name] = _Config(samplers, sample_range, transform)

    def sample(  # type: ignore[override]
        self, sampler_name: str, batch_size: int, force_indices: Any = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Draw a batch as a sample config says; see `edgeml_ipc.TrajectoryBuffer.sample`.

        Args:
            force_indices: numbers of the steps to be the anchors, as many as the batch then has.
        """
        self._follow_min_length()
        if force_indices is None:
            data, mask = super().sample(sampler_name, batch_size)
        else:
            rows = self._rows_of(np.asarray(force_indices))
            data, mask = super().sample(sampler_name, len(rows), rows)
        if not self._use_jax:
            return data, mask
        import jax

        return jax.tree.map(lambda array: jax.device_put(np.array(array), self._device), (data, mask))  # type: ignore[no-any-return]

    def _follow_min_length(self) -> None:
        """Take over a shortest length that was set."""
        wanted = self._trajectory.min_length
        if wanted != self._windows_min_length:
            self._windows.close()
            self._windows, self._windows_min_length = Windows(self._storage, self._seed, wanted), wanted
            for name, config in self._configs.items():
                self.register_sample_config(name, config.samplers, config.sample_range, config.transform)

    def _rows_of(self, indices: Array) -> npt.NDArray[np.int64]:
        held, rows = self._held()
        places = np.searchsorted(held, indices)
        found = held[np.minimum(places, len(held) - 1)] == indices if len(held) else np.zeros(len(indices), np.bool_)
        if not found.all():
            raise ValueError(
                f"force_indices names the step {indices[~found][0]}; held are {self._sample_begin_idx} to "
                f"{self._sample_end_idx - 1}"
            )
        return rows[places]

    # ---- inner names

    def _held(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return the numbers of the steps that are held, ascending, and their rows."""
        rows = self.rows()
        numbers = self.about["sequence"][rows]
        order = np.argsort(numbers, kind="stable")
        return numbers[order], rows[order]

    @property
    def dataset(self) -> dict[str, Any]:
        """Each field, `(capacity, *shape)`, step i in row i % capacity; rows that hold nothing are zeros.

        Read-only views where the steps lie so in the memory, else copies.
        """
        numbers, rows = self._held()
        fields = {shape.name: shape for shape in self.data_shapes}
        if (rows == numbers % self.capacity).all() and all(name in self.columns for name in fields):
            return {name: self.columns[name] for name in fields}
        values: dict[str, Any] = {}
        if len(rows):
            super().register_sample_config(_ALL, {name: LatestSampler() for name in fields})
            values, _ = super().sample(_ALL, len(rows), rows)
        return {name: self._by_number(numbers, values.get(name), shape) for name, shape in fields.items()}

    def _by_number(self, numbers: Array, values: Array | None, shape: DataShape) -> Array:
        field = np.zeros((self.capacity, *shape.shape), shape.dtype)
        if values is not None:
            field[numbers % self.capacity] = values
        return field

    @property
    def metadata(self) -> dict[str, Array]:
        """What is known of each step, `(capacity,)`, step i in row i % capacity; a copy.

        `seq_id`: its number. `ep_begin`: number of the first step of its trajectory. `ep_end`: one above that of the last; -1
        while it is open. `trajectory_id`: counts trajectories. `trajectory_begin_flag`: it is the first. Rows that hold nothing
        have -1 (`ep_begin`: 0).
        """
        numbers, rows = self._held()
        begins = numbers - self.about["position"][rows]
        ends_here = self.about["flags"][rows] & LAST != 0
        lasts = np.flatnonzero(np.append(np.diff(begins) != 0, True)) if len(rows) else np.empty(0, np.int64)
        lengths = np.diff(lasts, prepend=-1)
        ended = ends_here[lasts]
        ends = np.repeat(np.where(ended, numbers[lasts] + 1, -1), lengths)
        first_id = max(0, self._trajectory.id - int(ended.sum()))
        ids = np.repeat(first_id + np.arange(len(lasts)), lengths)
        known = {"ep_begin": begins, "ep_end": ends, "trajectory_id": ids, "seq_id": numbers}
        found: dict[str, Array] = {"trajectory_begin_flag": np.zeros(self.capacity, np.bool_)}
        found["trajectory_begin_flag"][numbers % self.capacity] = numbers == begins
        for name, values in known.items():
            found[name] = np.full(self.capacity, 0 if name == "ep_begin" else -1, np.int64)
            found[name][numbers % self.capacity] = values
        return found

    @property
    def _insert_idx(self) -> int:
        """Number of the step that is inserted next."""
        return self.latest_data_id() + 1 + len(self._pending)

    @property
    def _sample_begin_idx(self) -> int:
        """Number of the oldest step that can be sampled: enough of its trajectory is held."""
        numbers, rows = self._held()
        begins = numbers - self.about["position"][rows]
        starts = np.flatnonzero(np.diff(begins, prepend=-1) != 0)
        lengths = np.diff(starts, append=len(numbers))
        enough = starts[lengths >= self._trajectory.min_length]
        return int(numbers[enough[0]]) if len(enough) else self._sample_end_idx

    @property
    def _sample_end_idx(self) -> int:
        """One above the number of the newest step that can be sampled."""
        return self.latest_data_id() + 1

    @property
    def size(self) -> int:
        """How many steps are held."""
        return len(self)

    def __len__(self) -> int:
        """Return how many steps are held, with those of a trajectory that may yet be taken back."""
        return min(super().__len__() + len(self._pending), self.capacity)

    # ---- files

    def serialized(self) -> dict[str, Any]:
        """Return the arrays that make up a saved buffer; a trajectory that is too short so far is left out."""
        with self._inserting:
            inserted = self.latest_data_id() + 1
            size = min(inserted, self.capacity)
            begin = self._trajectory.begin_idx
            trajectory = Trajectory(min(begin, inserted), self._trajectory.id, self._trajectory.min_length)
            return {
                **{f"{DATA_PREFIX}{name}": np.asarray(field[:size]) for name, field in self.dataset.items()},
                **{f"{METADATA_PREFIX}{name}": field[:size] for name, field in self.metadata.items()},
                **trajectory.to_dict(),
                **{"size": size, "capacity": self.capacity, "_insert_idx": inserted},
            }

    def save(self, path: str | os.PathLike[str], progress: Any = None) -> None:
        """Write an `.npz` file, which edgeml and agentlace read as well; it is written aside and put in its place when whole.

        Args:
            path: ".npz" is appended where it is missing. progress: not called.
        """
        whole = os.fspath(path) if os.fspath(path).endswith(".npz") else f"{os.fspath(path)}.npz"
        aside = f"{whole}.{os.getpid()}.part"
        try:
            with open(aside, "xb") as file:
                np.savez(file, **self.serialized())
            os.replace(aside, whole)
        except BaseException:
            if os.path.exists(aside):
                os.unlink(aside)
            raise

    @classmethod
    def load(  # type: ignore[override]
        cls, path: str | os.PathLike[str], device: Any = None, use_jax: bool = False
    ) -> Self:
        """Make a buffer of what `save`, edgeml or agentlace wrote. Sample configs are not saved; nothing is unpickled.

        Raises:
            SegmentError: the file is missing, damaged, or another kind of file.
        """
        shapes, numbers = described(os.fspath(path))
        trajectory = Trajectory.from_dict(numbers)
        buffer = cls.__new__(cls)
        TrajectoryBuffer.__init__(buffer, numbers["capacity"], shapes, 0, trajectory.min_length, device, use_jax)
        trajectory_buffer.TrajectoryBuffer.load(buffer, path)
        buffer._trajectory = Trajectory(buffer._insert_idx, trajectory.id, trajectory.min_length)
        return buffer

    @classmethod
    def from_file(cls, path: str | os.PathLike[str], **options: Any) -> Self:
        """Make a buffer of what `save` wrote; the same as `load`."""
        return cls.load(path, **options)

    @classmethod
    def deserialize(cls, loaded_data: Mapping[str, Any], device: Any = None, use_jax: bool = False) -> Self:
        """Make a buffer of what `serialized` returned."""
        with tempfile.NamedTemporaryFile(suffix=".npz") as file:
            np.savez(file, **dict(loaded_data))
            file.flush()
            return cls.load(file.name, device, use_jax)


def _ends(data: Mapping[str, Any], said: bool) -> bool:
    """Tell whether a trajectory ends with this step, by the rules of `edgeml_ipc.TrajectoryBuffer`."""
    flags = [data[name] for name in ("dones", "end_of_trajectory") if name in data]
    if said or flags:
        return bool(said or any(flags))
    return "masks" in data and not np.all(data["masks"])


def _unstacked(batch: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    for number in range(rows_of(batch)):
        yield _step(batch, number)


def _step(batch: Mapping[str, Any], number: int) -> dict[str, Any]:
    return {name: _step(leaf, number) if isinstance(leaf, Mapping) else leaf[number] for name, leaf in batch.items()}


def _copied(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a step, whose owner may change its arrays."""
    return {name: _copied(leaf) if isinstance(leaf, Mapping) else np.array(leaf) for name, leaf in tree.items()}
