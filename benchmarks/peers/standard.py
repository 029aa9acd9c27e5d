"""The standard library: `multiprocessing.Pipe`, with bytes or pickled, and `multiprocessing.Queue`."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from benchmarks.way import Blocking, Channel, as_array


class _Bytes(Channel):
    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe

    def send(self, array: np.ndarray) -> None:
        self._pipe.send_bytes(array.reshape(-1).view(np.uint8))

    def recv(self) -> np.ndarray:
        return as_array(self._pipe.recv_bytes())


class Objects(Channel):
    """Two functions that carry whatever can be pickled."""

    def __init__(self, put: Callable[[Any], object], get: Callable[[], Any]) -> None:
        """Use these two."""
        self._put, self._get = put, get

    def send(self, array: np.ndarray) -> None:
        """See `Channel.send`."""
        self._put(array)

    def recv(self) -> np.ndarray:
        """See `Channel.recv`."""
        return self._get()  # type: ignore[no-any-return]

    def send_tree(self, tree: Any) -> None:
        """See `Channel.send_tree`."""
        self._put(tree)

    def recv_tree(self) -> Any:
        """See `Channel.recv_tree`."""
        return self._get()


class PipeWay(Blocking):
    """Bytes through `Pipe`; trees are pickled by `PickledPipeWay`."""

    name, title, streams = "pipe", "multiprocessing pipe, bytes", False

    @contextmanager
    def shared(self, nbytes: int) -> Iterator[Any]:
        """Make both ends."""
        ends = multiprocessing.get_context("spawn").Pipe()
        yield ends
        for end in ends:
            end.close()

    @contextmanager
    def answering(self, pipe: Any, shared: Any, nbytes: int) -> Iterator[tuple[Any, Channel]]:
        """See `Way.answering`."""
        shared[0].close()
        yield None, self.channel(shared[1])

    @contextmanager
    def asking(self, address: Any, shared: Any, nbytes: int) -> Iterator[Channel]:
        """See `Way.asking`."""
        shared[1].close()
        yield self.channel(shared[0])

    def channel(self, end: Any) -> Channel:
        """Return what uses an end."""
        return _Bytes(end)


class PickledPipeWay(PipeWay):
    """Objects through `Pipe`."""

    name, title, streams = "pipe-pickle", "multiprocessing pipe, pickled", True

    def channel(self, end: Any) -> Channel:
        """Return what uses an end."""
        return Objects(end.send, end.recv)


class QueueWay(Blocking):
    """Objects through two queues, of 1,000 at most."""

    name, title = "queue", "multiprocessing queue"

    @contextmanager
    def shared(self, nbytes: int) -> Iterator[Any]:
        """Make one queue for each direction."""
        context = multiprocessing.get_context("spawn")
        yield context.Queue(1000), context.Queue(1000)

    @contextmanager
    def answering(self, pipe: Any, shared: Any, nbytes: int) -> Iterator[tuple[Any, Channel]]:
        """See `Way.answering`."""
        there, back = shared
        yield None, Objects(back.put, there.get)

    @contextmanager
    def asking(self, address: Any, shared: Any, nbytes: int) -> Iterator[Channel]:
        """See `Way.asking`."""
        there, back = shared
        yield Objects(there.put, back.get)
        there.cancel_join_thread()
