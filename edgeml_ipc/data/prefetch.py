"""Prefetch: a thread that keeps batches on the device ahead of a JAX learner.

A batch that was handed out never changes. `jax.device_put` may take a numpy array on the CPU as it is instead of copying it,
and a store may write its batches' memory again: so each array is first copied into memory that nobody else ever sees.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Collection
from threading import Condition, Thread, current_thread
from typing import Any

import numpy as np

from edgeml_ipc.errors import TimeoutError

_JOIN_SECONDS = 10.0


class _Queue:
    """What the thread and the iterator share; holds no reference to the iterator, so that dropping that one ends the thread."""

    def __init__(self, size: int) -> None:
        self.changed = Condition()
        self.ready: deque[Any] = deque()
        self.size = size
        self.stopped = False  # by the consumer
        self.ended = False  # by the source: it ran out, or raised `error`
        self.error: BaseException | None = None
        self.made = 0
        self.waits = 0

    def stop(self) -> None:
        with self.changed:
            self.stopped = True
            self.ready.clear()
            self.changed.notify_all()

    def fill(self, make: Callable[[], Any]) -> None:
        """Make batches while there is room, until stopped; carry what `make` raises to the consumer."""
        while self._wait_for_room():
            try:
                batch = make()
            except StopIteration:
                self._end(None)
                return
            except BaseException as error:  # noqa: BLE001 - a user's `sample`: carried to the consumer
                self._end(error)
                return
            with self.changed:
                if not self.stopped:
                    self.ready.append(batch)
                    self.made += 1
                    self.changed.notify_all()

    def _wait_for_room(self) -> bool:
        with self.changed:
            self.changed.wait_for(lambda: self.stopped or len(self.ready) < self.size)
            return not self.stopped

    def _end(self, error: BaseException | None) -> None:
        with self.changed:
            self.ended, self.error = True, error
            self.changed.notify_all()


class Prefetcher:
    """An iterator over batches that a thread makes ahead; see `prefetch`.

    Threads and processes: any thread may ask for the next batch; each batch goes to one of them.
    """

    def __init__(self, make: Callable[[], Any], size: int, stop: Callable[[], None] | None = None) -> None:
        """Start a thread that keeps up to `size` results of `make` ready. `stop` lets a `make` that waits return."""
        if size < 1:
            raise ValueError(f"size must be at least 1 batch, got {size}")
        self._queue = _Queue(size)
        self._thread = Thread(target=self._queue.fill, args=(make,), name="edgeml_ipc-prefetch", daemon=True)
        self._thread.start()
        self._finalizer = weakref.finalize(self, _finish, self._queue, self._thread, stop)

    def __iter__(self) -> Prefetcher:
        return self

    def __next__(self) -> Any:
        """Return the next batch, waiting for it if need be.

        Raises:
            StopIteration: closed, or the source ran out. Whatever the source raised, once, after the batches made before.
        """
        queue = self._queue
        with queue.changed:
            if not queue.ready and not queue.ended and not queue.stopped:
                queue.waits += 1
                queue.changed.wait_for(lambda: queue.ready or queue.ended or queue.stopped)
            if queue.ready:
                batch = queue.ready.popleft()
                queue.changed.notify_all()
                return batch
            error, queue.error = queue.error, None
        if error is not None and not queue.stopped:
            raise error
        raise StopIteration

    def close(self) -> None:
        """Stop the thread and let go of the batches that are ready. Idempotent.

        Raises:
            TimeoutError: the source does not return; its thread is left to end when it does.
        """
        self._finalizer()
        if self._thread.is_alive() and self._thread is not current_thread():
            raise TimeoutError(
                f"the source of the batches did not return within {_JOIN_SECONDS} s of closing; its thread goes on"
            )

    def __enter__(self) -> Prefetcher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def stats(self) -> dict[str, int]:
        """Return counters: batches made, ready now, and how often the consumer had to wait."""
        with self._queue.changed:
            return {"made": self._queue.made, "ready": len(self._queue.ready), "waits": self._queue.waits}


def prefetch(
    sample: Callable[[int], Any],
    batch_size: int,
    size: int = 2,
    device: Any = None,
    *,
    on_host: Collection[tuple[str | int, ...]] = (),
    stop: Callable[[], None] | None = None,
) -> Prefetcher:
    """Keep batches of `sample` ready on a JAX device.

    The thread calls `sample(batch_size)`, copies its numpy arrays, and moves the copies to the device. Batches come in the
    order in which they were drawn, so the same seed gives the same stream; up to `size + 1` of them are drawn ahead.

    Args:
        sample: returns a tree (dict, list, tuple) of numpy arrays; called by one thread. It ends the iterator by StopIteration.
        batch_size: handed to `sample`.
        size: how many batches are kept ready; each takes a batch's memory on the device.
        device: a JAX device or sharding; None: JAX's default.
        on_host: paths (keys and indices, from the root of the tree) of leaves that stay as they are.
        stop: called when the iterator is closed or dropped, to let a `sample` that waits return or raise; None: it never waits.
    Returns:
        An iterator over trees of JAX arrays. Close it, or use it in a `with` block; its thread also ends when it is dropped.
    Raises:
        ImportError: there is no jax. ValueError: `batch_size` or `size` is below 1.

    Example:
        >>> with prefetch(lambda count: {"rewards": np.zeros(count, np.float32)}, batch_size=4) as batches:
        ...     next(batches)["rewards"].shape
        (4,)
    """
    import jax  # here, since it is heavy and not needed otherwise

    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1 row, got {batch_size}")

    def moved(path: tuple[Any, ...], leaf: Any) -> Any:
        kept = tuple(getattr(entry, "key", getattr(entry, "idx", None)) for entry in path) in on_host
        return leaf if kept else jax.device_put(_private_copy(leaf), device)

    def make() -> Any:
        return jax.tree_util.tree_map_with_path(moved, sample(batch_size))

    return Prefetcher(make, size, stop)


def _private_copy(leaf: Any) -> Any:
    return np.array(leaf, copy=True) if isinstance(leaf, np.ndarray) else leaf


def _finish(queue: _Queue, thread: Thread, stop: Callable[[], None] | None) -> None:
    queue.stop()
    if stop is not None:
        stop()
    if thread is not current_thread():
        thread.join(_JOIN_SECONDS)
