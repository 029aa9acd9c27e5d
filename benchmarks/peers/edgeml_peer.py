"""edgeml's way, written out: REQ and REP over tcp, each message a pickle that is compressed by lz4, each answered."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import zmq

from benchmarks.way import Blocking, Channel, Give, OnTaken, imported


class _Compressed(Channel):
    def __init__(self, socket: Any) -> None:
        self._socket, self._lz4 = socket, imported("lz4.frame")

    def send(self, array: np.ndarray) -> None:
        self._socket.send(self._lz4.compress(pickle.dumps(array)))

    def recv(self) -> np.ndarray:
        return pickle.loads(self._lz4.decompress(self._socket.recv()))  # type: ignore[no-any-return]  # noqa: S301

    send_tree, recv_tree = send, recv


class EdgemlWay(Blocking):
    """A request for everything, also for what is sent one way."""

    name, title, module = "edgeml", "edgeml's way: REQ/REP over tcp, pickle, lz4", "lz4.frame"

    @contextmanager
    def answering(self, pipe: Any, shared: Any, nbytes: int) -> Iterator[tuple[Any, Channel]]:
        """See `Way.answering`."""
        with zmq.Context() as context, context.socket(zmq.REP) as socket:
            port = socket.bind_to_random_port("tcp://127.0.0.1")
            yield f"tcp://127.0.0.1:{port}", _Compressed(socket)

    @contextmanager
    def asking(self, address: Any, shared: Any, nbytes: int) -> Iterator[Channel]:
        """See `Way.asking`."""
        with zmq.Context() as context, context.socket(zmq.REQ) as socket:
            socket.linger = 0
            socket.connect(address)
            yield _Compressed(socket)

    def take(self, pipe: Any, shared: Any, nbytes: int, taken: OnTaken) -> None:
        """See `Way.take`."""

        def answer(tree: Any) -> Any:
            taken(tree)
            return {"success": True}

        self.answer(pipe, shared, nbytes, answer)

    @contextmanager
    def give(self, address: Any, shared: Any, nbytes: int) -> Iterator[Give]:
        """See `Way.give`."""
        with self.ask(address, shared, nbytes) as request:
            yield request, lambda: None
