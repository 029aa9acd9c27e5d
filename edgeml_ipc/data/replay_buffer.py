"""ReplayBuffer: transitions in a ring that several processes fill and sample."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from threading import Lock
from types import TracebackType
from typing import Any, Final, overload

from edgeml_ipc.data import segment as segments
from edgeml_ipc.data.batches import Batches
from edgeml_ipc.data.columns import DataShape
from edgeml_ipc.data.data_store import DataStoreBase, check_read
from edgeml_ipc.data.history import History
from edgeml_ipc.data.prefetch import Prefetcher, prefetch
from edgeml_ipc.data.sampler import Sampler
from edgeml_ipc.data.storage import Storage
from edgeml_ipc.data.transitions import transition_shapes
from edgeml_ipc.data.windows import Transform, Windows, check_min_length
from edgeml_ipc.data.writer import Writer
from edgeml_ipc.errors import SegmentError

_CHUNKS_AT_LEAST: Final = 128  # where the capacity allows it, so that several writers find room and eviction is fine-grained
_CHUNK_ROWS_AT_MOST: Final = 4096


class ReplayBuffer(DataStoreBase):
    """A ring of transitions for off-policy learning, in memory that several processes share.

    A transition is a dict with `observations`, `actions`, `rewards`, `masks` (0 where the episode terminated, else 1),
    `next_observations`, and optionally `dones` (or `end_of_trajectory`: the episode ended here, terminated or truncated; where
    not given, it is true where the mask is 0) and `policy_version` (of the policy that acted, an int from 0). Observations
    follow the observation space, nested dicts for Dict spaces.

    With a name, other processes reach the same rows by `attach`. Each process that inserts is a writer, and each `writer()`
    another: no other writer's rows come between those of an episode, and old rows are overwritten oldest chunk first. One
    writer alone sees an exact ring of `capacity` rows. The rows of a writer that died stay; its open episode ends as
    truncated. A named buffer outlives all its processes, until `unlink`.

    Threads and processes: any thread of any attached process may call any method; a sample never shows a row that is not
    whole. In a forked child, sample only, or attach anew. Where the C half of the package was not built, a buffer is private
    to its process and has no name.

    Example:
        >>> import gymnasium
        >>> import numpy as np
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
        name: str | None = None,
        seed: int | None = None,
        extra_columns: Sequence[DataShape] = (),
        chunk_rows: int | None = None,
        max_writers: int = 64,
        reattach: bool = False,
        min_trajectory_length: int = 1,
    ) -> None:
        """Reserve the memory; nothing is stored yet.

        Args:
            observation_space, action_space: gymnasium spaces with a shape and a dtype, or (nested) Dict spaces of such.
            capacity: rows held at most; then the oldest is overwritten.
            name: by which other processes attach: letters, digits, '.', '_', '-'. None: this process only, and those that are
                handed `fileno`.
            seed: of the sampling; the same seed and the same inserts give the same batches. None: different ones each time.
            extra_columns: fields that each transition has beside the standard ones.
            chunk_rows: rows that a writer takes at once, and that are evicted together where several write; None: chosen.
            max_writers: that may write at the same time.
            reattach: if there is a buffer of that name, of the same fields, capacity and chunk_rows, use it with all its
                rows, as a learner does that is started again.
            min_trajectory_length: episodes of which fewer steps are held are left out by `sample(name, ...)`.
        Raises:
            TypeError: a space that has no fixed shape. ValueError: a number below 1, or two fields of one name.
            SegmentError: memory is short (then nothing was written), the name is taken, or the buffer of that name is another.
        """
        super().__init__(capacity)
        shapes = transition_shapes(observation_space, action_space, extra_columns)
        if chunk_rows is None:
            chunk_rows = max(1, min(_CHUNK_ROWS_AT_MOST, capacity // _CHUNKS_AT_LEAST))
        if not 1 <= chunk_rows <= capacity:
            raise ValueError(f"chunk_rows must be from 1 to the capacity, {capacity}, got {chunk_rows}")
        if max_writers < 1:
            raise ValueError(f"max_writers must be at least 1, got {max_writers}")
        check_min_length(min_trajectory_length)
        storage = None
        if reattach:
            storage = _found(name, shapes, capacity, chunk_rows)
        self._begin(storage or Storage.create(shapes, capacity, chunk_rows, max_writers, name), seed, min_trajectory_length)

    @classmethod
    def attach(cls, name: str | int, *, seed: int | None = None, min_trajectory_length: int = 1) -> ReplayBuffer:
        """Use a buffer that another process made.

        Args:
            name: its name, or a file descriptor of it that this process inherited or was sent (which stays the caller's).
            seed, min_trajectory_length: of the sampling in this process.
        Raises:
            SegmentError: there is none, it is not ready yet, or it is damaged, foreign or of another version.
        """
        check_min_length(min_trajectory_length)
        storage = Storage.attach(name)
        buffer = cls.__new__(cls)
        DataStoreBase.__init__(buffer, storage.capacity)
        buffer._begin(storage, seed, min_trajectory_length)
        return buffer

    def _begin(self, storage: Storage, seed: int | None, min_trajectory_length: int) -> None:
        self._storage = storage
        self._table = storage.table
        self._lock = Lock()  # inserts of this process, and reads that are to be one step with them
        self._batches = Batches(storage, seed)
        self._windows = Windows(storage, seed, min_trajectory_length)
        self._writer_lock = Lock()
        self._default_writer: Writer | None = None
        self._history = History(storage)

    # ---- writing

    def writer(self) -> Writer:
        """Return a new stream of transitions, for one environment of several in this process.

        Raises:
            BufferFull: `max_writers` write already.
        """
        return Writer(self._storage, self._lock)

    def insert(self, data: Mapping[str, Any], end_of_trajectory: bool = False) -> None:
        """Copy one transition in; the oldest row is overwritten if the buffer is full.

        Args:
            data: the transition; not kept.
            end_of_trajectory: the episode ended here; the same as `dones` in `data`.
        Raises:
            ValueError: a field is missing, unknown or of another shape. TypeError: a field of another kind of dtype.
                In both cases nothing was inserted. BufferFull: live writers hold every chunk.
        """
        (self._default_writer or self._own_writer()).insert(data, end_of_trajectory)

    def batch_insert(self, batch: Iterable[Mapping[str, Any]] | Mapping[str, Any]) -> None:
        """Copy many transitions in, all or none.

        Args:
            batch: transitions in order, or one dict of stacked arrays `(n, *shape)`.
        Raises:
            ValueError, TypeError, BufferFull: as `insert`; nothing was inserted.
        """
        self._own_writer().batch_insert(batch)

    def end_trajectory(self) -> None:
        """End the open episode of `insert`, if there is one, as truncated: the next transition begins another."""
        if self._default_writer is not None:
            self._default_writer.end_trajectory()

    def _own_writer(self) -> Writer:
        with self._writer_lock:
            if self._default_writer is None:
                self._default_writer = self.writer()
            return self._default_writer

    # ---- sampling

    @overload
    def sample(self, batch_size: int, *, about: bool = False) -> dict[str, Any]: ...
    @overload
    def sample(self, name: str, batch_size: int, force_indices: Any = None) -> tuple[dict[str, Any], dict[str, Any]]: ...
    def sample(self, *args: Any, **kwargs: Any) -> Any:
        """Draw rows uniformly, with replacement; or what a sample config says.

        Args:
            batch_size: rows, or elements of the batch.
            about: add the key `about`: a dict of each row's `sequence` number, `position` in its episode, `writer`,
                `policy_version` (-1: not given) and `flags` (1 first, 2 last, 4 terminal, 8 truncated).
            name: of a config that was registered; then the result is (data, mask).
            force_indices: `(batch_size,)` rows of `columns` to be the anchors, instead of drawing them.
        Returns:
            A nested dict of arrays `(batch_size, *shape)`: copies that belong to the caller. With a config: a dict with an
            array, or nested dict of arrays, for each field, `(batch_size, *shape)` or `(batch_size, time, *shape)`; and for
            each field its mask, `(batch_size,)` or `(batch_size, time)`, False where the episode has no
            such step: there are zeros.
        Raises:
            BufferEmpty: nothing was inserted yet, or no window fits. ValueError: `batch_size` is below 1, there is no such
                config, or no such row.
        """
        by_name = "name" in kwargs or bool(args and isinstance(args[0], str))
        return self._windows.sample(*args, **kwargs) if by_name else self._batches.sample(*args, **kwargs)

    def register_sample_config(
        self,
        name: str,
        samplers: Mapping[str, Sampler],
        sample_range: tuple[int, int] = (0, 1),
        transform: Transform | None = None,
    ) -> None:
        """Say what `sample(name, ...)` returns, in this process; a config of that name is replaced.

        An anchor is a row drawn uniformly from all whose window is held and lies in one episode, last steps included.

        Args:
            samplers: for each field of the batch the sampler that takes it, relative to the anchor, from the stored field
                `source`, or of the same name; a name such as "observations" stands for all that is within it.
            sample_range: the window [begin, end) around the anchor, in steps, that must be there, as must the anchor.
            transform: called with (data, mask), which are its own; what it returns is returned.
        Raises:
            ValueError: an empty range, no samplers, an unknown field, or a `PrioritySampler`.
        """
        self._windows.register(name, samplers, sample_range, transform)

    def prefetch(self, batch_size: int, size: int = 2, device: Any = None) -> Prefetcher:
        """Sample ahead of a JAX learner: a thread keeps batches ready on its device.

        Args:
            batch_size: rows in each.
            size: batches that are kept ready.
            device: a JAX device or sharding; None: JAX's default.
        Returns:
            An iterator over trees of JAX arrays, which never change. Close it before the buffer, or use it in a `with` block.
        Raises:
            ImportError: there is no jax. ValueError: `batch_size` or `size` is below 1. The iterator raises what `sample` does.
        """
        return prefetch(self.sample, batch_size, size, device)

    # ---- reading in order

    @property
    def columns(self) -> dict[str, Any]:
        """The storage: a nested dict of read-only views `(capacity, *shape)`. Where one writer alone inserts, the item with
        id k lies in row k % capacity.

        Views show later inserts, also half-done ones; rows never written are zeros. They stay valid after `close`.
        """
        return self._storage.columns.views()

    @property
    def about(self) -> dict[str, Any]:
        """What is known of each row, as `sample` gives it with `about=True`: read-only views `(capacity,)`."""
        return self._storage.about.views()

    @property
    def incarnation(self) -> bytes:
        """16 random bytes that name this buffer, in whatever process it is attached."""
        return self._storage.incarnation

    def latest_data_id(self) -> int:
        """Return the id (sequence number) of the newest transition, or -1 if nothing was ever inserted."""
        with self._lock:
            return self._table.counts()[2]

    def get_latest_data(self, from_id: int) -> list[dict[str, Any]]:
        """Return copies of the transitions that are still held and whose id is above `from_id`, oldest first."""
        return self.read_since(from_id)[1]

    def read_since(self, from_id: int, limit: int | None = None) -> tuple[int, list[dict[str, Any]], int]:
        """Read copies of what came after `from_id` in one atomic step; see `DataStoreBase.read_since`.

        Ids are complete where one process inserts. Where several do, one's rows can appear below ids that were read before;
        and the ids of rows that a killed writer had begun count as evicted.
        """
        check_read(from_id, limit)
        with self._lock:
            return self._history.read_since(from_id, limit)

    def __len__(self) -> int:
        """Return how many rows are held now."""
        return self._table.counts()[1]

    def stats(self) -> dict[str, int]:
        """Return counters of the buffer, of all its processes since it was made.

        Rows inserted, evicted (overwritten), sampled, redrawn (overwritten while they were copied into a sample), and held
        now (occupancy); writers now.
        """
        with self._lock:
            inserted, held, _, sampled, redrawn, writers = self._table.counts()
        return {
            "inserted": inserted,
            "evicted": inserted - held,
            "sampled": sampled,
            "redrawn": redrawn,
            "occupancy": held,
            "capacity": self.capacity,
            "writers": writers,
        }

    # ---- life

    def recover(self) -> int:
        """End the writers whose processes died: their open episodes end as truncated. Return how many those were.

        Who attaches does it, and who needs a chunk that a dead writer holds.
        """
        with self._lock:
            return self._table.recover()

    def fileno(self) -> int:
        """Return the file descriptor by which a process that inherits or receives it can `attach`. It stays the buffer's.

        Raises:
            SegmentError: the memory is private: the C half of the package was not built.
        """
        if self._storage.segment is None:
            raise SegmentError("this buffer is private to its process: the C half of the package was not built here")
        return self._storage.segment.fileno()

    def close(self) -> None:
        """End the open episodes of this process as truncated and let go of the memory; a name stays. Idempotent."""
        with self._lock:
            self._batches.close()
            self._windows.close()
            self._storage.close()

    def unlink(self) -> None:
        """Remove the name: nobody can attach any more, and the memory goes with the last that uses it. Idempotent."""
        self._storage.unlink()

    @staticmethod
    def remove(name: str) -> None:
        """Remove the name of a buffer that this process is not attached to, if there is one."""
        segments.unlink(name)

    def __enter__(self) -> ReplayBuffer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()


def _found(name: str | None, shapes: list[DataShape], capacity: int, chunk_rows: int) -> Storage | None:
    """Attach to a buffer of that name if there is one; raise `SegmentError` if it is another than is wanted."""
    if name is None:
        raise ValueError("reattach needs a name")
    if not segments.exists(name):
        return None
    storage = Storage.attach(name)
    there = (list(storage.columns.shapes.values()), storage.capacity, storage.chunk_rows)
    if there != (shapes, capacity, chunk_rows):
        storage.close()
        raise SegmentError(
            f"the buffer {name!r} that is there has capacity {there[1]}, chunk_rows {there[2]} and the fields {there[0]}; "
            f"wanted are capacity {capacity}, chunk_rows {chunk_rows} and the fields {shapes}"
        )
    return storage
