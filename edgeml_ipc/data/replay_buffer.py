"""ReplayBuffer: the newest transitions, kept as numpy columns, sampled uniformly."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from threading import Lock
from typing import Any

import numpy as np

from edgeml_ipc.data.data_store import DataStoreBase, check_read
from edgeml_ipc.data.storage import Columns, DataShape, shapes_of_space
from edgeml_ipc.errors import BufferEmpty


class ReplayBuffer(DataStoreBase):
    """A ring of transitions for off-policy learning.

    A transition is a dict with `observations`, `actions`, `rewards`, `masks` (0 where the episode terminated, else 1),
    `next_observations`, and optionally `dones` (or `end_of_trajectory`: the episode ended here, terminated or truncated; where
    not given, it is true where the mask is 0). Observations follow the observation space, nested dicts for Dict spaces.

    Threads and processes: any thread may call any method; each is one atomic step, so a sample never shows half a row.
    Private to its process.

    Example:
        >>> import gymnasium
        >>> box = gymnasium.spaces.Box(-1, 1, (3,))
        >>> buffer = ReplayBuffer(box, gymnasium.spaces.Discrete(2), capacity=100, seed=0)
        >>> seen, then = np.zeros(3), np.ones(3)
        >>> buffer.insert({"observations": seen, "actions": 1, "rewards": 0.5, "masks": 1.0, "next_observations": then})
        >>> buffer.sample(4)["rewards"]
        array([0.5, 0.5, 0.5, 0.5], dtype=float32)
    """

    def __init__(
        self,
        observation_space: Any,
        action_space: Any,
        capacity: int,
        *,
        seed: int | None = None,
        extra_columns: Sequence[DataShape] = (),
    ) -> None:
        """Allocate the columns; nothing is stored yet.

        Args:
            observation_space, action_space: gymnasium spaces with a shape and a dtype, or (nested) Dict spaces of such.
            capacity: rows held at most; then the oldest is overwritten.
            seed: of the sampling; the same seed and the same inserts give the same batches. None: different ones each time.
            extra_columns: fields that each transition has beside the standard ones.
        Raises:
            TypeError: a space that has no fixed shape. ValueError: a capacity below 1, or two fields of one name.
        """
        super().__init__(capacity)
        shapes = [
            *shapes_of_space("observations", observation_space),
            *shapes_of_space("next_observations", observation_space),
            *shapes_of_space("actions", action_space),
            DataShape("rewards"),
            DataShape("masks"),
            DataShape("dones", dtype="bool"),
            *extra_columns,
        ]
        names = [shape.name for shape in shapes]
        if len(set(names)) != len(names):
            raise ValueError(f"field names must differ, got {names}")
        self._columns = Columns(shapes, capacity)
        self._rng = np.random.default_rng(seed)
        self._lock = Lock()
        self._inserted = 0
        self._sampled = 0

    def insert(self, data: Mapping[str, Any], end_of_trajectory: bool = False) -> None:
        """Copy one transition in; the oldest row is overwritten if the buffer is full.

        Args:
            data: the transition; not kept.
            end_of_trajectory: the episode ended here; the same as `dones` in `data`.
        Raises:
            ValueError: a field is missing, unknown or of another shape. TypeError: a field of another kind of dtype.
                In both cases nothing was inserted.
        """
        values = self._columns.check(_completed(data, end_of_trajectory), rows=None)
        with self._lock:
            self._columns.write(self._inserted % self.capacity, values)
            self._inserted += 1

    def batch_insert(self, batch: Iterable[Mapping[str, Any]] | Mapping[str, Any]) -> None:
        """Copy many transitions in, all or none.

        Args:
            batch: transitions in order, or one dict of stacked arrays `(n, *shape)`.
        Raises:
            ValueError, TypeError: as `insert`; nothing was inserted.
        """
        if isinstance(batch, Mapping):
            count = len(np.asarray(batch.get("rewards", ())))
            values = self._columns.check(_completed(batch, False), rows=count)
        else:
            checked = [self._columns.check(_completed(data, False), rows=None) for data in batch]
            count = len(checked)
            values = [np.stack(column) for column in zip(*checked, strict=True)]
        if count == 0:
            return
        kept = min(count, self.capacity)
        with self._lock:
            rows = np.arange(self._inserted + count - kept, self._inserted + count) % self.capacity
            self._columns.write(rows, [value[count - kept :] for value in values])
            self._inserted += count

    def sample(self, batch_size: int) -> dict[str, Any]:
        """Draw rows uniformly, with replacement.

        Returns:
            A nested dict of arrays `(batch_size, *shape)`: copies that belong to the caller.
        Raises:
            BufferEmpty: nothing was inserted yet. ValueError: `batch_size` is below 1.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1 row, got {batch_size}")
        with self._lock:
            held = min(self._inserted, self.capacity)
            if held == 0:
                raise BufferEmpty(f"cannot sample {batch_size} rows: nothing was inserted yet (capacity {self.capacity} rows)")
            # By age, so that the batch depends on what was inserted and not on where it lies.
            rows = (self._rng.integers(0, held, size=batch_size) + (self._inserted - held)) % self.capacity
            self._sampled += batch_size
            return self._columns.gather(rows)

    @property
    def columns(self) -> dict[str, Any]:
        """The storage: a nested dict of read-only views `(capacity, *shape)`. The item with id k lies in row k % capacity.

        Views show later inserts, also half-done ones of other threads; rows never written are zeros.
        """
        return self._columns.views()

    def latest_data_id(self) -> int:
        """Return the id of the newest transition, or -1 if nothing was ever inserted."""
        with self._lock:
            return self._inserted - 1

    def get_latest_data(self, from_id: int) -> list[dict[str, Any]]:
        """Return copies of the transitions that are still held and whose id is above `from_id`, oldest first."""
        return self.read_since(from_id)[1]

    def read_since(self, from_id: int, limit: int | None = None) -> tuple[int, list[dict[str, Any]], int]:
        """Read copies of what came after `from_id` in one atomic step; see `DataStoreBase.read_since`."""
        check_read(from_id, limit)
        with self._lock:
            first_id = max(from_id + 1, self._inserted - self.capacity, 0)
            end_id = max(self._inserted, first_id)
            if limit is not None:
                end_id = min(end_id, first_id + limit)
            items = [self._columns.item(k % self.capacity) for k in range(first_id, end_id)]
        return first_id, items, first_id - from_id - 1

    def __len__(self) -> int:
        """Return how many rows are held now."""
        with self._lock:
            return min(self._inserted, self.capacity)

    def stats(self) -> dict[str, int]:
        """Return counters: rows inserted, evicted (overwritten), sampled, and held now (occupancy)."""
        with self._lock:
            held = min(self._inserted, self.capacity)
            return {
                "inserted": self._inserted,
                "evicted": self._inserted - held,
                "sampled": self._sampled,
                "occupancy": held,
                "capacity": self.capacity,
            }


def _completed(data: Mapping[str, Any], ended: bool) -> dict[str, Any]:
    """Return a shallow copy of a transition in which `dones` is set."""
    if not isinstance(data, Mapping):
        raise TypeError(f"a transition must be a dict, got {type(data).__name__}")
    completed = dict(data)
    given = [completed.pop(key) for key in ("dones", "end_of_trajectory") if key in completed]
    if not given and "masks" in completed:
        given = [np.asarray(completed["masks"]) == 0]
    for flag in given:
        completed["dones"] = np.logical_or(completed.get("dones", ended), np.asarray(flag))
    return completed
