"""The serving half of remote buffers: each client visits a registered buffer through a handle of its own.

A handle is the buffer attached once more within the server's process. So each client has writers, sample configs and random
numbers of its own, as an attached process would have, and what ends the client's visit ends exactly those.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from edgeml_ipc._attachments import face_of, handle_on, offer_of
from edgeml_ipc._buffer_messages import CONFIG, MAX_REPLY_BYTES, build, carried_error, plain
from edgeml_ipc._parking import Parking
from edgeml_ipc.data import DataShape, DataStoreBase, PrioritySampler, Sampler, SequenceSampler
from edgeml_ipc.data.columns import dtype_of
from edgeml_ipc.data.replay_buffer import SharedBuffer
from edgeml_ipc.data.writer import Writer
from edgeml_ipc.errors import BufferEmpty, ConnectionClosed, EdgeMLError, SegmentError, TimeoutError
from edgeml_ipc.service import LATER, Caller, Guest, Ticket

MAX_VISITS: Final = 1024
MAX_WAIT_SECONDS: Final = 3600.0
MAX_CONFIGS: Final = 256  # of one visit
_BYTES_BESIDE: Final = 64  # of a row or step in a batch: what is known of it, its index and its mask


class Visit:
    """One client's use of one buffer.

    Every public method is a method of the service: its arguments come from the client, so they are checked here where the
    buffer would not.
    """

    def __init__(self, buffer: SharedBuffer, seed: int | None, min_trajectory_length: int) -> None:
        try:
            # It never waits itself, which would hold up the server's loop: who waits is parked.
            options = {"seed": seed, "min_trajectory_length": min_trajectory_length, "flow_timeout": 0.0}
            self._handle = handle_on(buffer, **options)
        except SegmentError as error:
            raise SegmentError(f"the buffer cannot be used from elsewhere: {error}") from error
        self._shapes = {shape.name: shape for shape in self._handle.data_shapes}
        self._row_bytes = sum(map(_item_bytes, self._shapes.values())) + _BYTES_BESIDE
        self._element_bytes: dict[str, int] = {}  # of named configs
        self._samplers: dict[str, dict[str, Sampler]] = {}
        self._writers: dict[int, Writer] = {}

    def facts(self) -> dict[str, Any]:
        """Return what does not change."""
        handle = self._handle
        return {
            "face": face_of(handle).__name__,
            "incarnation": handle.incarnation,
            "capacity": handle.capacity,
            "row_bytes": self._row_bytes,
        }

    def end(self) -> None:
        """End the client's writers. Idempotent."""
        self._handle.close()

    # ---- writing: writer 0 is the handle's own

    def writer(self) -> int:
        made = self._handle.writer()
        self._writers[made.number] = made
        return made.number

    def insert(self, writer: int, data: Any, end_of_trajectory: bool) -> None:
        self._target(writer).insert(data, bool(end_of_trajectory))

    def batch_insert(self, writer: int, batch: list[dict[str, Any]] | dict[str, Any]) -> None:
        self._target(writer).batch_insert(batch)

    def end_trajectory(self, writer: int) -> None:
        self._target(writer).end_trajectory()

    def close_writer(self, writer: int) -> None:
        self._writers.pop(writer).close()

    def knows(self, writer: object) -> bool:
        """Tell whether it is a writer of this visit."""
        return writer == 0 or writer in self._writers

    def _target(self, writer: int) -> Writer | SharedBuffer:
        return self._writers[writer] if writer else self._handle

    # ---- sampling

    def sample(self, batch_size: int, about: bool) -> Any:
        _check_size(batch_size, self._row_bytes)
        return _frozen(self._handle.sample(batch_size, about=bool(about)))

    def sample_config(self, name: str, batch_size: int, force_indices: Any, betas: dict[str, float]) -> Any:
        _check_size(batch_size, self._element_bytes.get(name, 1))
        for field, beta in betas.items():
            sampler = self._samplers[name][field]
            if isinstance(sampler, PrioritySampler) and type(beta) is float and 0 <= beta <= 1:
                sampler.beta = beta
        return _frozen(self._handle.sample(name, batch_size, force_indices))

    def register(self, name: str, samplers: Any, sample_range: Any, options: Any) -> None:
        if not isinstance(name, str):
            raise TypeError(f"the name of a sample config must be a str, got {type(name).__name__}")
        if len(self._element_bytes) >= MAX_CONFIGS and name not in self._element_bytes:
            raise ValueError(f"a remote buffer has at most {MAX_CONFIGS} sample configs, and {name!r} is one more")
        built = build(samplers)
        begin, end = (int(step) for step in sample_range)
        self._handle.register_sample_config(name, built, (begin, end), **plain("options", options))
        self._samplers[name] = built
        self._element_bytes[name] = sum(self._bytes_of(field, sampler) for field, sampler in built.items())

    def update_priorities(self, name: str, indices: Any, errors: Any) -> int:
        return self._handle.update_priorities(name, indices, errors)

    def _bytes_of(self, field: str, sampler: Sampler) -> int:
        source = field if sampler.source is None else sampler.source
        found = [shape for name, shape in self._shapes.items() if name == source or name.startswith(f"{source}.")]
        steps = sampler.end - sampler.begin if isinstance(sampler, SequenceSampler) else int(getattr(sampler, "n", 1))
        return steps * (sum(map(_item_bytes, found)) + _BYTES_BESIDE)

    # ---- reading in order

    def latest_data_id(self) -> int:
        return self._handle.latest_data_id()

    def read_since(self, from_id: int, limit: int) -> tuple[int, list[dict[str, Any]], int]:
        _check_size(max(1, limit), self._row_bytes)
        return self._handle.read_since(from_id, limit)

    def length(self) -> int:
        return len(self._handle)

    def stats(self) -> dict[str, int]:
        return self._handle.stats()

    def recover(self) -> int:
        return self._handle.recover()


_METHODS: Final = [name for name in vars(Visit) if not name.startswith("_") and name not in ("facts", "end", "knows")]


class Visits:
    """The visits of all clients. For the server's loop, but for `close`."""

    def __init__(self, store_named: Callable[[str], DataStoreBase]) -> None:
        """Serve the stores that `store_named` finds; it raises KeyError where there is none."""
        self._store_named = store_named
        self._visits: dict[bytes, Visit] = {}
        self._parking = Parking()

    def guest(self, caller: Callable[[], Caller], ticket: Callable[[], Ticket]) -> Guest:
        """Return the service; `caller` tells who asks, `ticket` lets it wait."""
        self._ticket = ticket
        handlers = {"look": self._look, "open": self._open, "leave": self._leave}
        methods = {name: partial(self._ask, name) for name in _METHODS}
        served = {name: partial(_carrying_errors, handler, caller) for name, handler in (handlers | methods).items()}
        return Guest(CONFIG, served)

    def end(self, client: bytes) -> None:
        """End a client's visit, if it has one."""
        visit = self._visits.pop(client, None)
        if visit is not None:
            visit.end()
            self._parking.end(client, {"unknown": "visit"})

    def tick(self) -> float | None:
        """Try again what waits; return when to come back, or None."""
        return self._parking.tick()

    def close(self) -> None:
        """End all visits. Idempotent."""
        for client in list(self._visits):
            self.end(client)

    def _buffer(self, name: Any) -> SharedBuffer:
        try:
            store = self._store_named(name)
        except KeyError as error:
            raise ValueError(error.args[0]) from error
        if not isinstance(store, SharedBuffer):
            raise ValueError(
                f"the data store {name!r} is a {type(store).__name__}; only a buffer on shared memory can be connected to"
            )
        return store

    def _look(self, caller: Caller, request: dict[str, Any]) -> dict[str, Any]:
        buffer = self._buffer(request["store"])
        near = caller.transport in ("shm", "inproc")
        return {"offer": offer_of(buffer) if near else None}

    def _open(self, caller: Caller, request: dict[str, Any]) -> dict[str, Any]:
        buffer = self._buffer(request["store"])
        self.end(caller.client)
        if len(self._visits) >= MAX_VISITS:
            raise ValueError(f"{MAX_VISITS} clients use buffers of this server already")
        visit = Visit(buffer, request["seed"], request["min_trajectory_length"])
        self._visits[caller.client] = visit
        return visit.facts()

    def _leave(self, caller: Caller, request: dict[str, Any]) -> None:
        self.end(caller.client)

    def _ask(self, method: str, caller: Caller, request: dict[str, Any]) -> Any:
        visit = self._visits.get(caller.client)
        if visit is None:
            return _Unknown("visit")
        if "writer" in request and not visit.knows(request["writer"]):
            return _Unknown("writer")
        seconds, rows = request.pop("seconds", 0), request.pop("rows", False)
        if not seconds:
            return getattr(visit, method)(**request)
        if not isinstance(seconds, int | float) or not 0 < seconds < MAX_WAIT_SECONDS:
            raise ValueError(f"seconds must be above 0 and below {MAX_WAIT_SECONDS:g}, got {seconds!r}")
        attempt = partial(_attempt, partial(getattr(visit, method), **request), bool(rows))
        answer = None if self._parking.holds(caller.client, method) else attempt(False)
        if answer is not None:
            return _Answer(answer)
        self._parking.park(caller.client, method, self._ticket(), attempt, float(seconds))
        return LATER


class _Unknown(str):
    """What a request named that is not there (any more)."""


class _Answer(dict[str, Any]):
    """An answer that is complete."""


def _attempt(ask: Callable[[], Any], rows: bool, last: bool) -> dict[str, Any] | None:
    """Ask once more; None: not yet. `rows`: wait for rows too, and not for the rate limiter only."""
    try:
        return {"result": ask()}
    except TimeoutError as error:
        return carried_error(error) if last else None
    except BufferEmpty as error:
        if not rows:
            return carried_error(error)
        return carried_error(TimeoutError(f"waited in vain: {error}")) if last else None
    except ConnectionClosed as error:
        return carried_error(EdgeMLError(f"the buffer was closed on the server's side: {error}"))
    except (EdgeMLError, ValueError, TypeError, IndexError) as error:
        return carried_error(error)


def _carrying_errors(handler: Callable[[Caller, Any], Any], caller: Callable[[], Caller], request: Any) -> Any:
    """Answer with what `handler` returns, or with the error of the library's that it raises."""
    try:
        result = handler(caller(), request)
    except ConnectionClosed:
        raise  # the server's side closed its buffer: not the client's doing, and not its connection
    except (EdgeMLError, ValueError, TypeError, IndexError) as error:
        return carried_error(error)
    if result is LATER:
        return LATER
    if isinstance(result, _Answer):
        return dict(result)
    return {"unknown": str(result)} if isinstance(result, _Unknown) else {"result": result}


def _item_bytes(shape: DataShape) -> int:
    return int(math.prod(shape.shape) * dtype_of(shape.dtype).itemsize)


def _check_size(count: Any, element_bytes: int) -> None:
    if type(count) is not int:
        raise TypeError(f"batch_size must be an int, got {type(count).__name__}")
    if count * element_bytes > MAX_REPLY_BYTES:
        raise ValueError(
            f"{count} elements of {element_bytes:,} bytes are more than the {MAX_REPLY_BYTES:,} bytes of a remote batch"
        )


def _frozen(tree: Any) -> Any:
    """Make a batch's arrays read-only: a server keeps a reply for a second sending, and need not copy what nobody writes."""
    if isinstance(tree, dict):
        return {key: _frozen(value) for key, value in tree.items()}
    if isinstance(tree, tuple):
        return tuple(map(_frozen, tree))
    tree.flags.writeable = False
    return tree
