"""Batches asked for before they are needed, so that a learner far from its buffer does not wait for a round trip each time."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from threading import Lock
from typing import Any, Final

_MAX_KINDS: Final = 8


class Ahead:
    """Keeps requests outstanding for each kind of batch that is asked for again and again. Any thread."""

    def __init__(self, depth: int) -> None:
        """Keep `depth` requests of a kind on their way, beside the one that is waited for."""
        if not 0 <= depth <= 64:
            raise ValueError(f"ahead must be from 0 to 64 batches, got {depth}")
        self.depth = depth
        self._lock = Lock()
        self._queues: OrderedDict[Hashable, deque[Future[Any]]] = OrderedDict()

    def next(self, kind: Hashable, submit: Callable[[], Future[Any]]) -> Future[Any]:
        """Return the oldest request of that kind, after sending what is missing behind it."""
        with self._lock:
            queue = self._queues.setdefault(kind, deque())
            self._queues.move_to_end(kind)
            while len(self._queues) > _MAX_KINDS:
                self._queues.popitem(last=False)
            while len(queue) <= self.depth:
                queue.append(submit())
            return queue.popleft()

    def forget(self, kind: Hashable | None = None) -> None:
        """Let go of what is on its way: of one kind, or of all."""
        with self._lock:
            if kind is None:
                self._queues.clear()
            else:
                self._queues.pop(kind, None)
