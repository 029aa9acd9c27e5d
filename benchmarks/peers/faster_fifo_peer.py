"""faster-fifo: a queue in shared memory for each direction, pickled; many are got at once where many are sent one way."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from queue import Empty
from typing import Any

import numpy as np

from benchmarks.way import Blocking, Channel, imported

WAIT_SECONDS = 10.0
AT_ONCE = 1000  # the most that `get_many` is asked for
ROOM_BYTES = 1 << 20  # beside two messages


class _Queues(Channel):
    def __init__(self, out: Any, into: Any) -> None:
        self._out, self._into = out, into
        self._got: deque[Any] = deque()

    def send(self, array: np.ndarray) -> None:
        self._out.put(array, timeout=WAIT_SECONDS)

    def recv(self) -> np.ndarray:
        return self._into.get(timeout=1e6)  # type: ignore[no-any-return]

    send_tree = send

    def recv_tree(self) -> Any:
        while not self._got:
            try:
                self._got.extend(self._into.get_many(timeout=WAIT_SECONDS, max_messages_to_get=AT_ONCE))
            except Empty:
                continue
        return self._got.popleft()


class FasterFifoWay(Blocking):
    """Room for two messages and 1 MiB each."""

    name, title, module = "faster-fifo", "faster-fifo, pickled", "faster_fifo"

    @contextmanager
    def shared(self, nbytes: int) -> Iterator[Any]:
        """Make one queue for each direction."""
        queue = imported("faster_fifo").Queue
        size_bytes = 2 * nbytes + ROOM_BYTES
        yield queue(max_size_bytes=size_bytes), queue(max_size_bytes=size_bytes)

    @contextmanager
    def answering(self, pipe: Any, shared: Any, nbytes: int) -> Iterator[tuple[Any, Channel]]:
        """See `Way.answering`."""
        there, back = shared
        yield None, _Queues(back, there)

    @contextmanager
    def asking(self, address: Any, shared: Any, nbytes: int) -> Iterator[Channel]:
        """See `Way.asking`."""
        there, back = shared
        yield _Queues(there, back)
