"""pyzmq, one PAIR socket on each side: one frame of bytes; a pickle; a pickle with its arrays out of band, as frames."""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import zmq

from benchmarks.way import Blocking, Channel, as_array

LARGE_BYTES = 64 * 1024  # from here on zmq is asked not to copy


class _Raw(Channel):
    def __init__(self, socket: Any) -> None:
        self._socket = socket

    def send(self, array: np.ndarray) -> None:
        self._socket.send(array, copy=array.nbytes < LARGE_BYTES)

    def recv(self) -> np.ndarray:
        return as_array(self._socket.recv(copy=False).buffer)


class _Pickled(Channel):
    def __init__(self, socket: Any) -> None:
        self._socket = socket

    def send(self, array: np.ndarray) -> None:
        self._socket.send_pyobj(array)

    def recv(self) -> np.ndarray:
        return self._socket.recv_pyobj()  # type: ignore[no-any-return]

    send_tree, recv_tree = send, recv


class _OutOfBand(Channel):
    def __init__(self, socket: Any) -> None:
        self._socket = socket

    def send(self, array: np.ndarray) -> None:
        buffers: list[pickle.PickleBuffer] = []
        header = pickle.dumps(array, 5, buffer_callback=buffers.append)
        large = array.nbytes >= LARGE_BYTES if isinstance(array, np.ndarray) else False
        self._socket.send_multipart([header, *(buffer.raw() for buffer in buffers)], copy=not large)

    def recv(self) -> np.ndarray:
        header, *frames = self._socket.recv_multipart(copy=False)
        return pickle.loads(header.buffer, buffers=[frame.buffer for frame in frames])  # type: ignore[no-any-return]  # noqa: S301

    send_tree, recv_tree = send, recv


class RawWay(Blocking):
    """One frame of bytes.

    Args:
        kind: "ipc" or "tcp".
    """

    form, words, streams = _Raw, "one frame of bytes", False

    def __init__(self, kind: str) -> None:
        """Name it."""
        self.kind = kind
        self.name, self.title = f"zmq-{kind}", f"pyzmq {kind}, {self.words}"

    @contextmanager
    def shared(self, nbytes: int) -> Iterator[str]:
        """Choose an endpoint."""
        with tempfile.TemporaryDirectory(prefix="edgeml-bench-") as folder:
            yield f"ipc://{folder}/socket" if self.kind == "ipc" else "tcp://127.0.0.1:*"

    @contextmanager
    def answering(self, pipe: Any, shared: Any, nbytes: int) -> Iterator[tuple[Any, Channel]]:
        """See `Way.answering`."""
        with zmq.Context() as context, context.socket(zmq.PAIR) as socket:
            socket.bind(shared)
            yield socket.getsockopt_string(zmq.LAST_ENDPOINT), self.form(socket)

    @contextmanager
    def asking(self, address: Any, shared: Any, nbytes: int) -> Iterator[Channel]:
        """See `Way.asking`."""
        with zmq.Context() as context, context.socket(zmq.PAIR) as socket:
            socket.linger = 0
            socket.connect(address)
            yield self.form(socket)


class PickledWay(RawWay):
    """`send_pyobj`, `recv_pyobj`."""

    form, words, streams = _Pickled, "pickled", True

    def __init__(self, kind: str) -> None:
        """Name it."""
        super().__init__(kind)
        self.name = f"zmq-{kind}-pickle"


class OutOfBandWay(RawWay):
    """Pickle protocol 5, each array's buffer as a frame of its own, not copied from 64 KiB on: what is called raw multipart."""

    form, words, streams = _OutOfBand, "multipart, arrays out of band", True

    def __init__(self, kind: str) -> None:
        """Name it."""
        super().__init__(kind)
        self.name = f"zmq-{kind}-multipart"
