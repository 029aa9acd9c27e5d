"""Writers into a buffer on another machine: one stream of transitions, episode after episode."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

from edgeml_ipc.errors import ConnectionClosed, EdgeMLError

if TYPE_CHECKING:
    from edgeml_ipc.remote_buffer import RemoteBuffer

_MAX_VISITS: Final = 4  # in one call, before it is given up


class RemoteWriter:
    """One stream of transitions into a remote buffer; made by `RemoteBuffer.writer`. See `edgeml_ipc.data.writer.Writer`.

    Each call is one round trip. A context manager.

    Example:
        >>> from edgeml_ipc import ReplayBuffer
        >>> def record(address, episode):
        ...     with ReplayBuffer.connect(address) as buffer, buffer.writer() as writer:
        ...         writer.batch_insert(episode)
    """

    def __init__(self, buffer: RemoteBuffer, number: int | None = None) -> None:
        """Write into `buffer`. `number`: 0 for the stream of the buffer's own `insert`."""
        self._buffer = buffer
        self._number = number
        self._visit = buffer._visit
        self._closed = False

    @property
    def number(self) -> int:
        """The number of this writer now; another after the server was started again."""
        return self._begin()

    def insert(self, data: Mapping[str, Any], end_of_trajectory: bool = False) -> None:
        """Copy one transition in; see `ReplayBuffer.insert`."""
        self._ask("insert", {"data": dict(data), "end_of_trajectory": bool(end_of_trajectory)})

    def batch_insert(self, batch: Iterable[Mapping[str, Any]] | Mapping[str, Any]) -> None:
        """Copy many transitions in; see `ReplayBuffer.batch_insert`."""
        if isinstance(batch, Mapping):
            self._ask("batch_insert", {"batch": dict(batch)})
            return
        items = [dict(item) for item in batch]
        if items:
            self._ask("batch_insert", {"batch": items})

    def end_trajectory(self) -> None:
        """End the open episode, if there is one, as truncated: the next transition begins another."""
        self._ask("end_trajectory", {})

    def close(self) -> None:
        """End the open episode as truncated, and leave. Idempotent."""
        if self._number and not self._closed:  # number 0 ends with the buffer
            self._closed = True
            with contextlib.suppress(EdgeMLError):  # it is gone with the server, or goes with the client
                self._buffer._call("close_writer", {"writer": self._number})

    def __enter__(self) -> RemoteWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def _begin(self) -> int:
        """Return the number, of a new stream if there is none in this visit."""
        if self._number is None or (self._number and self._visit != self._buffer._visit):
            visit = self._buffer._visit
            self._number = int(self._buffer._ask("writer", {}))
            self._visit = visit  # if another began meanwhile, the server will not know the number
        return self._number

    def _ask(self, method: str, arguments: dict[str, Any]) -> None:
        if self._closed:
            raise ConnectionClosed("the writer was closed")
        for _ in range(_MAX_VISITS):
            visit = self._buffer._visit
            unknown, _ = self._buffer._call(method, {"writer": self._begin(), **arguments})
            if unknown is None:
                return
            if unknown == "visit":
                self._buffer._open(visit, None)
            else:
                self._number = None
        raise self._buffer._lost()
