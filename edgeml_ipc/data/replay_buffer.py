"""ReplayBuffer: transitions in a ring that several processes fill and sample.

This file is longer than 400 lines because it is the contract that users read: the methods are thin, their docstrings are not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from threading import Event, Lock
from types import TracebackType
from typing import Any, Final, Self, overload

import numpy as np
import numpy.typing as npt

from edgeml_ipc import _connector
from edgeml_ipc.data import segment as segments
from edgeml_ipc.data.batches import Batches
from edgeml_ipc.data.chunks import snapshot
from edgeml_ipc.data.columns import DataShape
from edgeml_ipc.data.data_store import DataStoreBase, check_read
from edgeml_ipc.data.flow import Flow, check_timeout
from edgeml_ipc.data.history import History
from edgeml_ipc.data.limiter import Limits, RateLimiter
from edgeml_ipc.data.news import News
from edgeml_ipc.data.prefetch import Prefetcher, prefetch
from edgeml_ipc.data.recent import Recency
from edgeml_ipc.data.sample_config import Transform
from edgeml_ipc.data.sampler import Sampler
from edgeml_ipc.data.saveable import Saveable
from edgeml_ipc.data.schema import Schema
from edgeml_ipc.data.storage import Storage
from edgeml_ipc.data.transitions import transition_schema
from edgeml_ipc.data.uploads import Uploads
from edgeml_ipc.data.windows import Windows, check_min_length
from edgeml_ipc.data.writer import Writer
from edgeml_ipc.errors import SegmentError

_CHUNKS_AT_LEAST: Final = 64  # where the capacity allows it, so that several writers find room and eviction is fine-grained
_CHUNK_ROWS_AT_MOST: Final = 4096


class SharedBuffer(Saveable):
    """What the buffers on shared memory have in common; see `ReplayBuffer` and `TrajectoryBuffer`."""

    def _make(
        self,
        schema: Schema,
        capacity: int,
        *,
        name: str | None,
        seed: int | None,
        chunk_rows: int | None,
        max_writers: int,
        reattach: bool,
        min_trajectory_length: int,
        samples_per_insert: float | None = None,
        min_rows: int = 1,
        slack_samples: float | None = None,
        flow_timeout: float = 60.0,
    ) -> None:
        """Reserve the memory, or find it; see the constructors."""
        DataStoreBase.__init__(self, capacity)
        if chunk_rows is None:
            chunk_rows = max(1, min(_CHUNK_ROWS_AT_MOST, capacity // _CHUNKS_AT_LEAST))
        if not 1 <= chunk_rows <= capacity:
            raise ValueError(f"chunk_rows must be from 1 to the capacity, {capacity}, got {chunk_rows}")
        if max_writers < 1:
            raise ValueError(f"max_writers must be at least 1, got {max_writers}")
        check_min_length(min_trajectory_length)
        check_timeout("flow_timeout", flow_timeout)
        limits: Limits | None = RateLimiter(samples_per_insert, min_rows=min_rows, slack_samples=slack_samples).limits
        if samples_per_insert is None and min_rows == 1:
            limits = None
        storage = None
        if reattach:
            storage = _found(name, schema, capacity, chunk_rows, limits)
        storage = storage or Storage.create(schema, capacity, chunk_rows, max_writers, name, limits)
        self._begin(storage, seed, min_trajectory_length, flow_timeout)

    @classmethod
    def attach(
        cls, name: str | int, *, seed: int | None = None, min_trajectory_length: int = 1, flow_timeout: float = 60.0
    ) -> Self:
        """Use a buffer that another process made.

        Args:
            name: its name, or a file descriptor of it that this process inherited or was sent (which stays the caller's).
            seed, min_trajectory_length: of the sampling in this process.
            flow_timeout: of the waiting in this process, in seconds; the rest of the rate limiter is as the buffer was made.
        Raises:
            SegmentError: there is none, it is not ready yet, or it is damaged, foreign or of another version.
        """
        check_min_length(min_trajectory_length)
        check_timeout("flow_timeout", flow_timeout)
        storage = Storage.attach(name)
        if storage.schema.face not in {kind.__name__ for kind in cls.__mro__}:
            storage.close()
            raise SegmentError(f"{storage.label} is a {storage.schema.face}, not a {cls.__name__}")
        buffer = cls.__new__(cls)
        DataStoreBase.__init__(buffer, storage.capacity)
        buffer._begin(storage, seed, min_trajectory_length, flow_timeout)
        return buffer

    @classmethod
    def connect(cls, address: str, **options: Any) -> Any:
        """Use a buffer that a `TrainerServer` anywhere has registered: by attaching where it is near, else by messages.

        Args:
            address: of the server, with the name of the store: `"10.0.0.5:5555/name"`, `"tcp://10.0.0.5:5555/name"`,
                `"shm://learner/name"`.
            options: see `edgeml_ipc.connect_buffer.connect`.
        Returns:
            An object of this class, on the memory itself, if the connection proves that it is on this machine; else a
            `RemoteBuffer`, which has the same methods.
        Raises:
            ConnectionRefused, TimeoutError, AuthenticationError, IncompatiblePeer: no server of buffers is reached.
            ValueError: an address that names no store, or a store that is not there.
        """
        return _connector.connect(cls, address, **options)

    def _begin(self, storage: Storage, seed: int | None, min_trajectory_length: int, flow_timeout: float = 60.0) -> None:
        self._storage = storage
        self._table = storage.table
        self._flow = Flow(storage, flow_timeout)
        self._lock = Lock()  # of `close` and of those that must not meet it
        self._batches = Batches(storage, seed)
        self._windows = Windows(storage, seed, min_trajectory_length)
        self._writer_lock = Lock()
        self._default_writer: Writer | None = None
        self._try_insert: Callable[[Mapping[str, Any], bool], bool] = lambda data, end_of_trajectory: False
        self._history = History(storage)
        self.uploads = Uploads(storage, self._flow)

    # ---- writing

    def writer(self) -> Writer:
        """Return a new stream of transitions, for one environment of several in this process.

        Raises:
            BufferFull: `max_writers` write already.
        """
        return Writer(self._storage, self._flow)

    def insert(self, data: Mapping[str, Any], end_of_trajectory: bool = False) -> None:
        """Copy one transition in; the oldest row is overwritten if the buffer is full.

        Args:
            data: the transition; not kept.
            end_of_trajectory: the episode ended here; the same as `dones` in `data`.
        Raises:
            ValueError: a field is missing, unknown or of another shape. TypeError: a field of another kind of dtype.
                In both cases nothing was inserted. BufferFull: live writers hold every chunk. TimeoutError: there is a rate
                limiter, and the learner did not sample enough within `flow_timeout`. ConnectionClosed: closed while it waited.
        """
        try_insert = self._try_insert  # else Python looks for a method of this name first
        if not try_insert(data, end_of_trajectory):  # one call for most: each takes a tenth of an insert's time
            self._own_writer().insert(data, end_of_trajectory)

    def batch_insert(self, batch: Iterable[Mapping[str, Any]] | Mapping[str, Any]) -> None:
        """Copy many transitions in, all or none.

        Args:
            batch: transitions in order, or one dict of stacked arrays `(n, *shape)`.
        Raises:
            ValueError, TypeError, BufferFull, TimeoutError, ConnectionClosed: as `insert`; nothing was inserted. ValueError
                also if there is a rate limiter and so many rows at once are more than its slack ever allows.
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
                self._try_insert = self._default_writer.try_insert
            return self._default_writer

    # ---- sampling

    @overload
    def sample(self, batch_size: int, *, about: bool = False, timeout: float | None = None) -> dict[str, Any]: ...
    @overload
    def sample(
        self, name: str, batch_size: int, force_indices: Any = None, *, timeout: float | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]: ...
    def sample(self, *args: Any, timeout: float | None = None, **kwargs: Any) -> Any:
        """Draw rows uniformly, with replacement; or what a sample config says.

        Args:
            batch_size: rows, or elements of the batch.
            about: add the key `about`: a dict of each row's `sequence` number, `position` in its episode, `writer`,
                `policy_version` (-1: not given) and `flags` (1 first, 2 last, 4 terminal, 8 truncated).
            name: of a config that was registered; then the result is (data, mask).
            force_indices: `(batch_size,)` rows of `columns` to be the anchors, instead of drawing them.
            timeout: seconds to wait until there is a row, or a window that fits, and the rate limiter allows it, if there is
                one; None: no waiting, but for the rate limiter `flow_timeout`.
        Returns:
            A nested dict of arrays `(batch_size, *shape)`: copies that belong to the caller. With a config: a dict with an
            array, or nested dict of arrays, for each field, `(batch_size, *shape)` or `(batch_size, time, *shape)`; and for
            each field its mask, `(batch_size,)` or `(batch_size, time)`, False where the episode has no
            such step: there are zeros.
        Raises:
            BufferEmpty: nothing was inserted yet, or no window fits, and there is no waiting. TimeoutError: nor was there in
                time. ConnectionClosed: closed while it waited. ValueError: `batch_size` is below 1, there is no such config,
                or no such row.
        """
        by_name = "name" in kwargs or bool(args and isinstance(args[0], str))
        sample: Callable[..., Any] = self._windows.sample if by_name else self._batches.sample
        if timeout is None and self._flow.limiter is None:
            return sample(*args, **kwargs)
        draw = partial(sample, *args, **kwargs)
        batch_size = kwargs["batch_size"] if "batch_size" in kwargs else args[by_name and "name" not in kwargs]
        return self._flow.sample(draw, batch_size, timeout, self._windows.missing if by_name else self._batches.missing)

    def register_sample_config(
        self,
        name: str,
        samplers: Mapping[str, Sampler],
        sample_range: tuple[int, int] = (0, 1),
        transform: Transform | None = None,
        *,
        max_age_rows: int | None = None,
        max_staleness: int | None = None,
        half_life_rows: float | None = None,
    ) -> None:
        """Say what `sample(name, ...)` returns, in this process; a config of that name is replaced.

        An anchor is a row drawn uniformly from all whose window is held and lies in one episode, last steps included; or by
        priority, where a field has a `PrioritySampler`; or the first step of an episode, where one has a `TrajectorySampler`.
        Each config draws by a generator of its own, and has priorities of its own, in this process.

        Args:
            samplers: for each field of the batch the sampler that takes it, relative to the anchor, from the stored field
                `source`, or of the same name; a name such as "observations" stands for all that is within it.
            sample_range: the window [begin, end) around the anchor, in steps, that must be there, as must the anchor.
            transform: called with (data, mask), which are its own; what it returns is returned.
            max_age_rows: anchors are among the newest so many rows: fewer were inserted after them, by any writer.
            max_staleness: anchors have a `policy_version` of at least the greatest that is held, less this.
            half_life_rows: an anchor is half as likely as one that was inserted so many rows later.
        Raises:
            ValueError: an empty range, no samplers, an unknown field, a limit out of range, or two ways to draw anchors.
        """
        recency = Recency(max_age_rows, max_staleness, half_life_rows)
        self._windows.register(name, samplers, sample_range, transform, recency)

    def update_priorities(self, name: str, indices: Any, errors: Any) -> int:
        """Set the priorities of rows that were drawn by a config with a `PrioritySampler`.

        Args:
            name: of the config.
            indices: `(n,)` int64, as its batches had them. Rows that were overwritten meanwhile are left out and counted, see
                `stats`. Of a row that is named twice the last error counts.
            errors: `(n,)` (temporal-difference errors, say), of either sign.
        Returns:
            How many of the rows are still held.
        Raises:
            ValueError: no such config, or one without a `PrioritySampler`; an error that is not finite. IndexError: an index
                below 0, which no batch has. Nothing was changed.
        """
        return self._windows.update_priorities(name, indices, errors)

    def prefetch(
        self, batch_size: int, size: int = 2, device: Any = None, timeout: float = 60.0, *, name: str | None = None
    ) -> Prefetcher:
        """Sample ahead of a JAX learner: a thread keeps batches ready on its device.

        Args:
            batch_size: rows in each.
            size: batches that are kept ready.
            device: a JAX device or sharding; None: JAX's default.
            timeout: seconds to wait for each batch's rows, and for the rate limiter; see `sample`.
            name: of a sample config; None: rows, as `sample(batch_size)` draws them.
        Returns:
            An iterator over trees of JAX arrays, which never change; with a config, over pairs (data, mask) of such. The
            `indices` of a `PrioritySampler` stay numpy arrays, since JAX would cut them to 32 bits. Close it before the buffer,
            or use it in a `with` block.
        Raises:
            ImportError: there is no jax. ValueError: `batch_size` or `size` is below 1, or there is no such config. The
                iterator raises what `sample` does.
        """
        check_timeout("timeout", timeout)
        stopped = Event()
        flow = self._flow
        on_host: set[tuple[str | int, ...]] = set()
        draw: Callable[[int], Any] = self._batches.sample
        missing = self._batches.missing
        if name is not None:
            on_host = {(0, *path) for path in self._windows.on_host(name)}
            draw, missing = partial(self._windows.sample, name), self._windows.missing

        def sample(count: int) -> Any:
            return flow.sample(partial(draw, count), count, timeout, missing, stopped.is_set)

        def stop() -> None:
            stopped.set()
            flow.wake()

        return prefetch(sample, batch_size, size, device, on_host=on_host, stop=stop)

    # ---- reading in order

    @property
    def columns(self) -> dict[str, Any]:
        """The storage: a nested dict of read-only views `(capacity, *shape)`. Where one writer alone inserts, and no chunk was
        closed early, the item with id k lies in row k % capacity.

        Observations that are stored once lie in frames, `(frames, *shape)`, not in rows; `about["frame"]` tells which. Views
        show later inserts, also half-done ones; rows never written are zeros. They stay valid after `close`.
        """
        return self._storage.columns.views()

    @property
    def data_shapes(self) -> list[DataShape]:
        """The fields of an item, with those that are derived and have no column."""
        return list(self._storage.columns.shapes.values())

    def rows(self) -> npt.NDArray[np.int64]:
        """Return which rows of `columns` and `about` hold something now, oldest first: `(held,)`, a copy."""
        spans, used = snapshot(self._table)
        total = int(spans[used - 1, 0]) if used else 0
        rows, stamps = np.empty(total, np.int64), np.empty(total, np.int64)
        self._table.resolve(spans, used, np.arange(total), rows, stamps)
        return rows

    @property
    def about(self) -> dict[str, Any]:
        """What is known of each row, as `sample` gives it with `about=True`: read-only views `(capacity,)`."""
        return self._storage.about.views()

    @property
    def name(self) -> str | None:
        """The name by which other processes attach; None: it has none."""
        return None if self._storage.segment is None else self._storage.segment.name

    @property
    def incarnation(self) -> bytes:
        """16 random bytes that name this buffer, in whatever process it is attached."""
        return self._storage.incarnation

    def latest_data_id(self) -> int:
        """Return the id (sequence number) of the newest transition, or -1 if nothing was ever inserted."""
        return min(self._table.counts()[2], self._table.horizon() - 1)

    def get_latest_data(self, from_id: int) -> list[dict[str, Any]]:
        """Return copies of the transitions that are still held and whose id is above `from_id`, oldest first."""
        items: list[dict[str, Any]] = []
        while True:  # until nothing comes any more: a read ends where ids are missing
            first_id, found, _ = self.read_since(from_id)
            if not found:
                return items
            items += found
            from_id = first_id + len(found) - 1

    def read_since(self, from_id: int, limit: int | None = None) -> tuple[int, list[dict[str, Any]], int]:
        """Read copies of what came after `from_id` in one atomic step; see `DataStoreBase.read_since`.

        Rows whose ids are above that of one that a live writer has begun come when that one is committed. Nobody waits for a
        writer that died: the ids of rows that it had begun and not committed count as evicted.
        """
        check_read(from_id, limit)
        return self._history.read_since(from_id, limit)

    def news(self) -> News:
        """Return what tells, writer by writer, which rows were committed from now on, each once."""
        return News(self._storage, self._history)

    def __len__(self) -> int:
        """Return how many rows are held now."""
        return self._table.counts()[1]

    def stats(self) -> dict[str, int]:
        """Return counters of the buffer, of all its processes since it was made.

        Rows inserted, evicted (overwritten), sampled, redrawn (overwritten while they were copied into a sample), and held
        now (occupancy); writers now. Where there is a rate limiter, also the rows that it granted to inserts and to samples.
        Of this process: priorities that were updated, and that came too late for their rows (stale); inserts and samples that
        waited for the rate limiter, that gave up, and microseconds waited.
        """
        inserted, held, _, sampled, redrawn, writers = self._table.counts()
        return {
            "inserted": inserted,
            "evicted": inserted - held,
            "sampled": sampled,
            "redrawn": redrawn,
            "occupancy": held,
            "capacity": self.capacity,
            "writers": writers,
            **self._windows.stats(),
            **self._flow.stats(),
        }

    # ---- life

    def recover(self) -> int:
        """End the writers whose processes died: their open episodes end as truncated. Return how many those were.

        Who attaches does it, and who needs a chunk that a dead writer holds.
        """
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
        """End the open episodes of this process as truncated and let go of the memory; a name stays. Idempotent.

        Inserts and samples of this process that wait end with `ConnectionClosed`.
        """
        self._flow.close()
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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()


class ReplayBuffer(SharedBuffer):
    """A ring of transitions for off-policy learning, in memory that several processes share.

    A transition is a dict with `observations`, `actions`, `rewards`, `masks` (0 where the episode terminated, else 1),
    `next_observations`, and optionally `dones` (or `end_of_trajectory`: the episode ended here, terminated or truncated; where
    not given, it is true where the mask is 0) and `policy_version` (of the policy that acted, an int from 0). Observations
    follow the observation space, nested dicts for Dict spaces.

    Each observation is stored once: as the next one of a row and as the next row's own. `next_observations` may be left out
    where the episode goes on; the transition is then there, to be sampled, when the next one is inserted. Where they differ
    from the next row's observations they are kept beside, and a full buffer may then hold less than `capacity` rows, as it
    does with many short episodes: see `store_next_observations`.

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
        samples_per_insert: float | None = None,
        min_rows: int = 1,
        slack_samples: float | None = None,
        flow_timeout: float = 60.0,
        n_stack: int = 1,
        stack_axis: int = -1,
        store_next_observations: bool = False,
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
            reattach: if there is a buffer of that name, of the same fields, capacity, chunk_rows and rate, use it with all its
                rows, as a learner does that is started again.
            min_trajectory_length: episodes of which fewer steps are held are left out by `sample(name, ...)`.
            samples_per_insert: rows sampled for each row inserted, on average, counted over all processes: inserts and samples
                wait for each other; None: they do not.
            min_rows: that must be inserted before anything is sampled.
            slack_samples: how far the rows sampled may be from the rate, to both sides; None: see `RateLimiter`.
            flow_timeout: seconds that one of this process waits so.
            n_stack: frames in an observation; those that one observation shares with the one before are stored once.
            stack_axis: of the observations, along which frames are stacked, oldest first; observations of another size there
                are stored whole.
            store_next_observations: give `next_observations` columns of their own, row by row as all others: for those that
                are seldom the next row's observations.
        Raises:
            TypeError: a space that has no fixed shape. ValueError: a number below 1, or two fields of one name.
            SegmentError: memory is short (then nothing was written), the name is taken, or the buffer of that name is another.
        """
        schema = transition_schema(
            observation_space,
            action_space,
            extra_columns,
            n_stack=n_stack,
            stack_axis=stack_axis,
            store_next_observations=store_next_observations,
        )
        self._make(
            schema,
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


def _found(name: str | None, schema: Schema, capacity: int, chunk_rows: int, limits: Limits | None) -> Storage | None:
    """Attach to a buffer of that name if there is one; raise `SegmentError` if it is another than is wanted."""
    if name is None:
        raise ValueError("reattach needs a name")
    if not segments.exists(name):
        return None
    storage = Storage.attach(name)
    there = (storage.schema, storage.capacity, storage.chunk_rows, storage.limits)
    if there != (schema, capacity, chunk_rows, limits):
        storage.close()
        raise SegmentError(
            f"the buffer {name!r} that is there has capacity {there[1]}, chunk_rows {there[2]}, the rate {there[3]} and the "
            f"schema {there[0]}; wanted are capacity {capacity}, chunk_rows {chunk_rows}, the rate {limits} and the schema "
            f"{schema}"
        )
    return storage
