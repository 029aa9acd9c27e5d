"""A replay buffer on another machine: the methods of a local one, by messages to the trainer server that has registered it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from threading import Event, Lock
from types import TracebackType
from typing import Any, Final, NamedTuple, overload

import numpy as np

from edgeml_ipc._ahead import Ahead
from edgeml_ipc._buffer_messages import MAX_REPLY_BYTES, describe, error_in, plain
from edgeml_ipc._deadline import Deadline
from edgeml_ipc.data import DataStoreBase, PrioritySampler, Sampler
from edgeml_ipc.data.data_store import check_read
from edgeml_ipc.data.flow import check_timeout
from edgeml_ipc.data.prefetch import Prefetcher, prefetch
from edgeml_ipc.data.sample_config import Transform
from edgeml_ipc.errors import EdgeMLError, PeerDied, TimeoutError
from edgeml_ipc.remote_writer import RemoteWriter
from edgeml_ipc.service import Client

_LEAVE_SECONDS: Final = 1.0
_MAX_VISITS: Final = 4  # in one call, before it is given up
_SLICE_SECONDS: Final = 0.5
_PIECE_BYTES: Final = MAX_REPLY_BYTES // 16


class Drawing(NamedTuple):
    """How a client draws; see `edgeml_ipc.connect_buffer.connect`."""

    seed: int | None
    min_trajectory_length: int
    ahead: int


class RemoteBuffer(DataStoreBase):
    """A `ReplayBuffer` that is reached by messages; made by `ReplayBuffer.connect`.

    Each call is one round trip, and raises what the buffer's own method would. What this client inserts is one writer's, and
    each `writer()` another's; when the client is closed, or gone for some seconds, their open episodes end as truncated.
    Received arrays are read-only, if not asked otherwise. Not here: views on the memory (`columns`,
    `about`, `rows`), and what its owner does with it (`save`, `load`, `unlink`).

    When the server is started again, the calls in between raise `PeerDied`; then the client goes on with the buffer that has
    the name there, as new writers, and draws from a new seed.

    Threads and processes: any thread may call; calls go one after the other. Not for use in a forked child.

    Example:
        >>> import gymnasium, numpy as np
        >>> from edgeml_ipc import ReplayBuffer, TrainerConfig, TrainerServer
        >>> box = gymnasium.spaces.Box(-1, 1, (3,))
        >>> server = TrainerServer(TrainerConfig(port_number=0), host="tcp://127.0.0.1")
        >>> server.register_data_store("demos", ReplayBuffer(box, box, capacity=100))
        >>> server.start(threaded=True)
        >>> step = {"observations": np.zeros(3), "actions": np.zeros(3), "rewards": 1.0, "masks": 1.0}
        >>> with ReplayBuffer.connect(f"{server.address}/demos") as buffer:
        ...     buffer.insert({**step, "next_observations": np.ones(3)})
        ...     buffer.sample(2)["rewards"]
        array([1., 1.], dtype=float32)
        >>> server.stop()
    """

    def __init__(self, client: Client, store: str, drawing: Drawing, *, flow_timeout: float) -> None:
        """Begin a visit over a client, which is taken over. `flow_timeout`: seconds to wait for a rate limiter."""
        self._drawing, self._flow_timeout = drawing, flow_timeout
        self._client, self._store = client, store
        self._place = f"{client.address}/{store}"
        self._ahead = Ahead(drawing.ahead)
        self._opening = Lock()
        self._visit = 0  # how many there were
        self._configs: dict[str, dict[str, Any]] = {}
        self._samplers: dict[str, dict[str, Sampler]] = {}
        self._transforms: dict[str, Transform | None] = {}
        self._facts: dict[str, Any] = {}
        self._closed = False
        self._open(0, drawing.seed)
        super().__init__(self._facts["capacity"])
        self._own = RemoteWriter(self, 0)

    # ---- writing

    def writer(self) -> RemoteWriter:
        """Return a new stream of transitions; see `ReplayBuffer.writer`."""
        made = RemoteWriter(self)
        made._begin()
        return made

    def insert(self, data: Mapping[str, Any], end_of_trajectory: bool = False) -> None:
        """Copy one transition in; see `ReplayBuffer.insert`."""
        self._own.insert(data, end_of_trajectory)

    def batch_insert(self, batch: Iterable[Mapping[str, Any]] | Mapping[str, Any]) -> None:
        """Copy many transitions in, all or none; see `ReplayBuffer.batch_insert`."""
        self._own.batch_insert(batch)

    def end_trajectory(self) -> None:
        """End the open episode of `insert`, if there is one, as truncated."""
        self._own.end_trajectory()

    # ---- sampling

    @overload
    def sample(self, batch_size: int, *, about: bool = False, timeout: float | None = None) -> dict[str, Any]: ...
    @overload
    def sample(
        self, name: str, batch_size: int, force_indices: Any = None, *, timeout: float | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]: ...
    def sample(self, *args: Any, **kwargs: Any) -> Any:
        """Draw rows, or what a sample config says; see `ReplayBuffer.sample`. Arrays are views on what was received.

        Args:
            timeout: seconds to wait until there are rows, or a window that fits; None: no waiting for rows.
        """
        by_name = "name" in kwargs or bool(args and isinstance(args[0], str))
        return self._sample_config(*args, **kwargs) if by_name else self._sample_rows(*args, **kwargs)

    def _sample_rows(self, batch_size: int, *, about: bool = False, timeout: float | None = None) -> Any:
        return self._drawn("sample", {"batch_size": int(batch_size), "about": bool(about)}, timeout)

    def _sample_config(self, name: str, batch_size: int, force_indices: Any = None, *, timeout: float | None = None) -> Any:
        samplers = self._samplers.get(name, {})
        betas = {field: float(it.beta) for field, it in samplers.items() if isinstance(it, PrioritySampler)}
        arguments = {"name": name, "batch_size": int(batch_size), "force_indices": force_indices, "betas": betas}
        if force_indices is None:
            data, mask = self._drawn("sample_config", arguments, timeout)
        else:
            data, mask = self._ask("sample_config", arguments, timeout)
        transform = self._transforms.get(name)
        return (data, mask) if transform is None else transform(data, mask)

    def _drawn(self, method: str, arguments: dict[str, Any], timeout: float | None) -> Any:
        """Return a batch, of those on their way if there are."""
        if not self._ahead.depth:
            return self._ask(method, arguments, timeout)
        kind = (method, arguments.get("name"), arguments["batch_size"], arguments.get("about"))
        for _ in range(_MAX_VISITS):
            visit = self._visit
            try:
                answer = self._ahead.next(kind, partial(self._client.submit, method, arguments)).result()
            except EdgeMLError:
                self._ahead.forget(kind)
                raise
            if "result" in answer:
                return answer["result"]
            self._ahead.forget(kind)  # those behind it say the same
            if "error" in answer:
                return self._ask(method, arguments, timeout)  # which says it anew, or waits
            self._open(visit, None)
        raise self._lost()

    def register_sample_config(
        self,
        name: str,
        samplers: Mapping[str, Sampler],
        sample_range: tuple[int, int] = (0, 1),
        transform: Transform | None = None,
        **options: Any,
    ) -> None:
        """Say what `sample(name, ...)` returns to this client; see `ReplayBuffer.register_sample_config`.

        Args:
            samplers: of this package's own kinds, which travel as data. transform: runs on this side.
            options: what else that method takes: numbers, strings and None.
        Raises:
            TypeError: a sampler of a class of one's own. Others as there.
        """
        described = {"samplers": describe(samplers), "sample_range": list(sample_range), "options": plain("options", options)}
        config = {"name": name, **described}
        self._ask("register", config)
        self._configs[name], self._samplers[name], self._transforms[name] = config, dict(samplers), transform
        self._ahead.forget()

    def update_priorities(self, name: str, indices: Any, errors: Any) -> int:
        """Set the priorities of rows that were drawn; see `ReplayBuffer.update_priorities`.

        They are kept for this client on the server. Batches that are on their way were drawn before.
        """
        arguments = {"name": name, "indices": np.asarray(indices), "errors": np.asarray(errors)}
        return int(self._ask("update_priorities", arguments))

    def prefetch(
        self, batch_size: int, size: int = 2, device: Any = None, timeout: float = 60.0, *, name: str | None = None
    ) -> Prefetcher:
        """Sample ahead of a JAX learner; see `ReplayBuffer.prefetch`."""
        check_timeout("timeout", timeout)
        stopped = Event()
        draw: Callable[..., Any] = self.sample
        on_host: set[tuple[str | int, ...]] = set()
        if name is not None:
            if name not in self._samplers:
                raise ValueError(f"no sample config is called {name!r}; registered are {sorted(self._samplers)}")
            fields = self._samplers[name].items()
            on_host = {(0, field, "indices") for field, sampler in fields if isinstance(sampler, PrioritySampler)}
            draw = partial(self.sample, name)

        def sample(count: int) -> Any:
            deadline = Deadline(timeout)
            while True:  # piece by piece, so that closing need not wait for rows
                left = deadline.remaining() or 0.0
                try:
                    return draw(count, timeout=min(left, _SLICE_SECONDS))
                except TimeoutError:
                    if left <= _SLICE_SECONDS or stopped.is_set():
                        raise

        return prefetch(sample, batch_size, size, device, on_host=on_host, stop=stopped.set)

    # ---- reading in order

    @property
    def incarnation(self) -> bytes:
        """16 random bytes that name the buffer, in whatever process it is reached."""
        return bytes(self._facts["incarnation"])

    @property
    def face(self) -> str:
        """The class of the buffer on the server."""
        return str(self._facts["face"])

    @property
    def transport(self) -> str:
        """What the messages travel by: "shm", "tcp" or "inproc"."""
        return self._client.transport

    def latest_data_id(self) -> int:
        """Return the id of the newest transition, or -1 if nothing was ever inserted."""
        return int(self._ask("latest_data_id", {}))

    def get_latest_data(self, from_id: int) -> list[dict[str, Any]]:
        """Return copies of the transitions that are still held and whose id is above `from_id`, oldest first."""
        return self.read_since(from_id)[1]

    def read_since(self, from_id: int, limit: int | None = None) -> tuple[int, list[dict[str, Any]], int]:
        """Read what came after `from_id`; see `ReplayBuffer.read_since`. In pieces, and up to a gap, if it is much."""
        check_read(from_id, limit)
        end_id = self.latest_data_id() + 1 if limit is None else None
        piece = max(1, _PIECE_BYTES // int(self._facts["row_bytes"]))
        first_id, items, evicted = self._piece(from_id, piece if limit is None else min(piece, limit))
        while items and len(items) != limit and (end_id is None or first_id + len(items) < end_id):
            next_id = first_id + len(items)
            begin, more, _ = self._piece(next_id - 1, piece if limit is None else min(piece, limit - len(items)))
            if not more or begin != next_id:
                break
            items += more
        return first_id, items, evicted

    def _piece(self, from_id: int, limit: int) -> tuple[int, list[dict[str, Any]], int]:
        first_id, items, evicted = self._ask("read_since", {"from_id": int(from_id), "limit": int(limit)})
        return first_id, items, evicted

    def __len__(self) -> int:
        """Return how many rows are held now."""
        return int(self._ask("length", {}))

    def stats(self) -> dict[str, int]:
        """Return the counters of the buffer; see `ReplayBuffer.stats`."""
        return dict(self._ask("stats", {}))

    # ---- life

    def recover(self) -> int:
        """End the writers whose processes died, on the server's machine; see `ReplayBuffer.recover`."""
        return int(self._ask("recover", {}))

    def close(self) -> None:
        """End the open episodes of this client as truncated, and let go of the buffer. Idempotent."""
        if not self._closed:
            self._closed = True
            with contextlib.suppress(EdgeMLError):  # it ends all the same, a little later
                self._client.call("leave", {}, _LEAVE_SECONDS)
        self._client.close()

    def __enter__(self) -> RemoteBuffer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    # ---- calls

    def _ask(self, method: str, arguments: dict[str, Any], timeout: float | None = None) -> Any:
        """Call a method of the visit, beginning another visit if the server does not know it any more."""
        for _ in range(_MAX_VISITS):
            visit = self._visit
            unknown, result = self._call(method, arguments, timeout)
            if unknown is None:
                return result
            self._open(visit, None)
        raise self._lost()

    def _call(self, method: str, arguments: dict[str, Any], timeout: float | None = None) -> tuple[str | None, Any]:
        """Call once; return what the server does not know, or None and the result.

        What has to wait on the server is asked a second time, as a future: other threads' calls go on meanwhile.
        """
        answer = self._client.call(method, arguments)
        seconds = self._flow_timeout if timeout is None else timeout
        waits_for = ("TimeoutError",) if timeout is None else ("TimeoutError", "BufferEmpty")
        if answer.get("error") in waits_for and seconds > 0:
            waiting = {**arguments, "seconds": float(seconds), "rows": timeout is not None}
            answer = self._client.submit(method, waiting, self._client.timeout + seconds).result()
        if "error" in answer:
            raise error_in(answer, self._place)
        return answer.get("unknown"), answer.get("result")

    def _open(self, ended: int, seed: int | None) -> None:
        """Begin a visit in place of one that ended, unless another thread did."""
        with self._opening:
            if self._visit != ended:
                return
            request = {"store": self._store, "seed": seed, "min_trajectory_length": self._drawing.min_trajectory_length}
            _, self._facts = self._call("open", request)
            self._ahead.forget()
            for config in list(self._configs.values()):
                self._call("register", config)
            self._visit += 1

    def _lost(self) -> PeerDied:
        return PeerDied(f"{self._place}: the server forgot this client {_MAX_VISITS} times within one call")
