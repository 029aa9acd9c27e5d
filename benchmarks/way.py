"""A way to carry arrays and trees between two processes: what each peer implements, so that all do the same work."""

from __future__ import annotations

import importlib
import pickle
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np

from benchmarks.processes import leave_when_told
from edgeml_ipc.errors import TransportUnavailable

Handler = Callable[[np.ndarray], np.ndarray]
Ask = Callable[[np.ndarray], np.ndarray]
Give = tuple[Callable[[Any], object], Callable[[], object]]  # give one, and wait until all are on their way
OnTaken = Callable[[Any], object]


def imported(name: str) -> Any:
    """Import a peer, or report it as unavailable."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise TransportUnavailable(f"{name.split('.')[0]} is not installed ({error})") from error


def as_array(buffer: Any) -> np.ndarray:
    """View any buffer as bytes, an empty one too."""
    view = memoryview(buffer)
    return np.frombuffer(view, np.uint8) if view.nbytes else np.empty(0, np.uint8)


class Channel(ABC):
    """One end of a connection that carries arrays; trees go as pickles, unless it has a form of its own for them."""

    @abstractmethod
    def send(self, array: np.ndarray) -> None:
        """Send the bytes of a contiguous array."""

    @abstractmethod
    def recv(self) -> np.ndarray:
        """Wait for an array; it is valid until the next is waited for."""

    def send_tree(self, tree: Any) -> None:
        """Send a tree of dicts, lists and arrays."""
        self.send(as_array(pickle.dumps(tree, 5)))

    def recv_tree(self) -> Any:
        """Wait for a tree."""
        return pickle.loads(self.recv())  # noqa: S301 - of our own other process, as the users of this peer do


class Stopped(Exception):
    """Raised by the `recv` of a channel that was told to stop."""


class Way(ABC):
    """How one library is used. Objects are made here and used in both processes, so they can be pickled.

    Attributes:
        name: in the names of cases. title: in words.
        module: what must be installed; None: nothing.
        trips: it can answer.
        untrimmed: it allocates what it receives, so that malloc's settings matter.
        streams: it is one of those that carry trees one way; two that would do so alike are measured once.
        sweeps: it takes part where sizes are swept.
    """

    name: str
    title: str
    layer = "peer"
    module: str | None = None
    trips = True
    untrimmed = True
    streams = True
    sweeps = True

    def shared(self, nbytes: int) -> AbstractContextManager[Any]:
        """Make what both processes are given, for messages of so many bytes at most."""
        return nullcontext()

    # The default is a channel in each process.

    def answering(self, pipe: Any, shared: Any, nbytes: int) -> AbstractContextManager[tuple[Any, Channel]]:
        """Open the end that answers; enter with its address, for `asking`."""
        raise NotImplementedError

    def asking(self, address: Any, shared: Any, nbytes: int) -> AbstractContextManager[Channel]:
        """Open the end that asks."""
        raise NotImplementedError

    # What is measured.

    def answer(self, pipe: Any, shared: Any, nbytes: int, handler: Handler) -> None:
        """Say the address, and answer until "stop" comes."""
        self.need()
        with self.answering(pipe, shared, nbytes) as (address, channel):
            pipe.send(address)
            try:
                while True:
                    channel.send(handler(channel.recv()))
            except Stopped:
                return

    @contextmanager
    def ask(self, address: Any, shared: Any, nbytes: int) -> Iterator[Ask]:
        """Enter with a function that sends an array and returns the answer."""
        self.need()
        with self.asking(address, shared, nbytes) as channel:

            def call(array: np.ndarray) -> np.ndarray:
                channel.send(array)
                return channel.recv()

            yield call

    def take(self, pipe: Any, shared: Any, nbytes: int, taken: OnTaken) -> None:
        """Say the address, and hand each tree that comes to `taken`, until "stop" comes."""
        self.need()
        with self.answering(pipe, shared, nbytes) as (address, channel):
            pipe.send(address)
            try:
                while True:
                    taken(channel.recv_tree())
            except Stopped:
                return

    @contextmanager
    def give(self, address: Any, shared: Any, nbytes: int) -> Iterator[Give]:
        """Enter with a function that sends one tree, and one that waits for what it may have kept back."""
        self.need()
        with self.asking(address, shared, nbytes) as channel:
            yield channel.send_tree, lambda: None

    def need(self) -> None:
        """Raise `TransportUnavailable` if the library is not installed."""
        if self.module is not None:
            imported(self.module)


class Blocking(Way):
    """A way whose waits end only with the process."""

    def answer(self, pipe: Any, shared: Any, nbytes: int, handler: Handler) -> None:
        """See `Way.answer`."""
        super().answer(_TellAndLeave(pipe), shared, nbytes, handler)

    def take(self, pipe: Any, shared: Any, nbytes: int, taken: OnTaken) -> None:
        """See `Way.take`."""
        super().take(_TellAndLeave(pipe), shared, nbytes, taken)


class _TellAndLeave:
    """The pipe of a process that listens for "stop" in a thread from when it has said its address."""

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe

    def send(self, address: Any) -> None:
        self._pipe.send(address)
        leave_when_told(self._pipe)
