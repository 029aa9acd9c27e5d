"""ReplayBuffer: transitions in a ring that several processes fill and sample."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from threading import Lock
from types import TracebackType
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edgeml_ipc.data import segment as segments
from edgeml_ipc.data.batches import ATTEMPTS, Batches
from edgeml_ipc.data.chunks import snapshot
from edgeml_ipc.data.columns import Array, DataShape, gather
from edgeml_ipc.data.data_store import DataStoreBase, check_read
from edgeml_ipc.data.prefetch import Prefetcher, prefetch
from edgeml_ipc.data.storage import Storage
from edgeml_ipc.data.transitions import UNKNOWN_VERSION, transition_shapes
from edgeml_ipc.data.writer import Writer
from edgeml_ipc.errors import EdgeMLError, SegmentError

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
        Raises:
            TypeError: a space that has no fixed shape. ValueError: a capacity below 1, or two fields of one name.
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
        storage = None
        if reattach:
            storage = _found(name, shapes, capacity, chunk_rows)
        self._begin(storage or Storage.create(shapes, capacity, chunk_rows, max_writers, name), seed)

    @classmethod
    def attach(cls, name: str | int, *, seed: int | None = None) -> ReplayBuffer:
        """Use a buffer that another process made.

        Args:
            name: its name, or a file descriptor of it that this process inherited or was sent (which stays the caller's).
            seed: of the sampling in this process.
        Raises:
            SegmentError: there is none, it is not ready yet, or it is damaged, foreign or of another version.
        """
        storage = Storage.attach(name)
        buffer = cls.__new__(cls)
        DataStoreBase.__init__(buffer, storage.capacity)
        buffer._begin(storage, seed)
        return buffer

    def _begin(self, storage: Storage, seed: int | None) -> None:
        self._storage = storage
        self._table = storage.table
        self._lock = Lock()  # inserts of this process, and reads that are to be one step with them
        self._batches = Batches(storage, seed)
        self._writer_lock = Lock()
        self._default_writer: Writer | None = None
        self._about_names = list(storage.about.shapes)
        self._leaves = [*storage.columns.leaves(), *storage.about.leaves()]
        self._data_leaves = len(storage.columns.shapes)

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

    def sample(self, batch_size: int, *, about: bool = False) -> dict[str, Any]:
        """Draw rows uniformly, with replacement.

        Args:
            about: add the key `about`: a dict of each row's `sequence` number, `position` in its episode, `writer`,
                `policy_version` (-1: not given) and `flags` (1 first, 2 last, 4 terminal, 8 truncated).
        Returns:
            A nested dict of arrays `(batch_size, *shape)`: copies that belong to the caller.
        Raises:
            BufferEmpty: nothing was inserted yet. ValueError: `batch_size` is below 1.
        """
        return self._batches.sample(batch_size, about)

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
            for _ in range(ATTEMPTS):
                rows, stamps = self._rows_since(from_id, limit)
                sequences = self._storage.about.arrays["sequence"][rows]
                batch = gather(self._leaves, rows[: None if limit is None else limit])
                if self._table.intact(rows, stamps, np.empty(len(rows), np.bool_)) == 0:
                    break
            else:
                raise EdgeMLError(f"rows after {from_id} were overwritten in each of {ATTEMPTS} attempts to read them")
        first_id = int(sequences[0]) if len(sequences) else from_id + 1
        return first_id, self._items(batch), first_id - from_id - 1

    def _rows_since(self, from_id: int, limit: int | None) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return the rows after `from_id` with ids that rise by one: some more than `limit`, and at least one, if there are."""
        spans, used = snapshot(self._table)
        sequence = self._storage.about.arrays["sequence"]
        counts = np.diff(spans[:used, 0], prepend=0)
        newer = np.flatnonzero(sequence[spans[:used, 1] + counts - 1] > from_id)
        firsts = sequence[spans[newer, 1]]
        ids: list[Array] = [np.empty(0, np.int64)]
        rows: list[Array] = [np.empty(0, np.int64)]
        stamps: list[Array] = [np.empty(0, np.int64)]
        found, highest = 0, -1
        for first, span in sorted(zip(firsts.tolist(), newer.tolist(), strict=True)):
            if limit is not None and found >= max(1, limit) and first > highest:
                break
            offsets = np.arange(counts[span])
            here = sequence[spans[span, 1] + offsets]
            offsets = offsets[here > from_id]
            ids.append(here[here > from_id])
            rows.append(spans[span, 1] + offsets)
            stamps.append(spans[span, 2] + offsets)
            found += len(offsets)
            highest = max(highest, int(here[-1]))
        all_ids = np.concatenate(ids)
        order = np.argsort(all_ids, kind="stable")
        if limit is not None:
            order = order[: max(1, limit)]
        if len(order):
            gaps = np.flatnonzero(np.diff(all_ids[order]) != 1)
            order = order[: gaps[0] + 1] if len(gaps) else order
        return np.concatenate(rows)[order], np.concatenate(stamps)[order]

    def _items(self, batch: list[Array]) -> list[dict[str, Any]]:
        """Return one nested dict for each row of a batch of all leaves."""
        data = batch[: self._data_leaves]
        versions = batch[self._data_leaves + self._about_names.index("policy_version")]
        items = []
        for i, version in enumerate(versions.tolist()):
            item = self._storage.columns.tree(leaf[i] for leaf in data)
            if version != UNKNOWN_VERSION:
                item["policy_version"] = version
            items.append(item)
        return items

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
