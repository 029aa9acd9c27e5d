"""iceoryx2: one publisher and one subscriber for each direction, slices of bytes that are written once and read in place."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from typing import Any

import numpy as np

from benchmarks.way import Channel, Stopped, Way, imported

SPINS_BETWEEN_LOOKS = 1000  # whether the process shall stop
WAIT_MILLISECONDS = 50
QUEUED = 16  # samples that a subscriber's queue holds; the publisher waits where it is full
_numbers = count()


class _Ends(Channel):
    """A publisher, a subscriber, and with events a notifier and a listener.

    Args:
        stop: set when the process shall end; None: it may wait for ever.
    """

    def __init__(self, node: Any, out: str, into: str, nbytes: int, sleeps: bool, stop: threading.Event | None) -> None:
        self._library = library = imported("iceoryx2")
        self._stop = stop
        self._notifier = self._listener = None
        self._publisher = (
            slices_of(library, node, out, 1)
            .publisher_builder()
            .initial_max_slice_len(max(nbytes, 4096))
            .allocation_strategy(library.AllocationStrategy.PowerOfTwo)
            .backpressure_strategy(library.BackpressureStrategy.RetryUntilDelivered)
            .create()
        )
        self._subscriber = slices_of(library, node, into, 1).subscriber_builder().create()
        if sleeps:
            self._notifier = event_of(library, node, out).notifier_builder().create()
            self._listener = event_of(library, node, into).listener_builder().create()
        self._wait = library.Duration.from_millis(WAIT_MILLISECONDS)
        self._sample: Any = None

    def send(self, array: np.ndarray) -> None:
        sample = self._publisher.loan_slice_uninit(max(array.nbytes, 1))
        ctypes.memmove(sample.payload_ptr, array.ctypes.data, array.nbytes)
        sample.assume_init().send()
        if self._notifier is not None:
            self._notifier.notify()

    def recv(self) -> np.ndarray:
        if self._sample is not None:
            self._sample.delete()  # what was lent goes back
        receive, looks = self._subscriber.receive, 0
        while (sample := receive()) is None:
            if self._listener is not None:
                self._listener.timed_wait(self._wait)
            looks += 1
            may_look = self._listener is not None or looks % SPINS_BETWEEN_LOOKS == 0
            if may_look and self._stop is not None and self._stop.is_set():
                raise Stopped
        self._sample = sample
        return np.asarray(sample.payload().as_memory_view())


def new_node(library: Any) -> Any:
    """Return a node that leaves signals alone."""
    library.set_log_level(library.LogLevel.Error)
    builder = library.NodeBuilder.new().signal_handling_mode(library.SignalHandlingMode.Disabled)
    return builder.create(library.ServiceType.Ipc)


def slices_of(library: Any, node: Any, name: str, subscribers: int) -> Any:
    """Open a service of slices of bytes; where a queue is full, the publisher waits."""
    return (
        node.service_builder(library.ServiceName.new(name))
        .publish_subscribe(library.Slice[ctypes.c_uint8])
        .enable_safe_overflow(False)
        .subscriber_max_buffer_size(QUEUED)
        .max_publishers(1)
        .max_subscribers(subscribers)
        .open_or_create()
    )


def event_of(library: Any, node: Any, name: str) -> Any:
    """Open the service by which sleepers are notified."""
    return node.service_builder(library.ServiceName.new(name)).event().open_or_create()


def set_when_told(pipe: Any, stop: threading.Event) -> None:
    """Have the process end by itself: what is killed leaves files behind."""
    with suppress(EOFError):
        pipe.recv()
    stop.set()


class IceoryxWay(Way):
    """Bytes; an empty message travels as one byte.

    Args:
        how: "spin", which looks again and again, or "event", which sleeps in a listener.
    """

    module, untrimmed = "iceoryx2", False

    def __init__(self, how: str) -> None:
        """Name it."""
        self.how = how
        words = {"spin": "both spin", "event": "both sleep until notified"}[how]
        self.name, self.title = f"iceoryx2-{how}", f"iceoryx2, {words}"

    @contextmanager
    def shared(self, nbytes: int) -> Iterator[str]:
        """Choose a name."""
        yield f"edgeml-bench-{os.getpid()}-{next(_numbers)}"

    @contextmanager
    def _ends(self, shared: str, nbytes: int, out: str, into: str, stop: threading.Event | None) -> Iterator[_Ends]:
        library = imported("iceoryx2")
        yield _Ends(new_node(library), f"{shared}/{out}", f"{shared}/{into}", nbytes, self.how == "event", stop)

    @contextmanager
    def answering(self, pipe: Any, shared: Any, nbytes: int) -> Iterator[tuple[Any, Channel]]:
        """See `Way.answering`."""
        stop = threading.Event()
        threading.Thread(target=set_when_told, args=(pipe, stop), daemon=True).start()
        with self._ends(shared, nbytes, "back", "there", stop) as ends:
            yield None, ends

    @contextmanager
    def asking(self, address: Any, shared: Any, nbytes: int) -> Iterator[Channel]:
        """See `Way.asking`."""
        with self._ends(shared, nbytes, "there", "back", None) as ends:
            yield ends
