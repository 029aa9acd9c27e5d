"""A TCP link that a test can stop, so that what was sent stays in its sender's memory, and can cut."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable

_BUFFER_BYTES = 1 << 16


class NarrowLink:
    """Connections to `port` that lead through this process; used as a context manager.

    Attributes:
        address: where to connect to.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._open = threading.Event()
        self._open.set()
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listening = socket.socket()
        self._listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
        self._listening.bind(("127.0.0.1", 0))
        self._listening.listen()
        self.address = f"tcp://127.0.0.1:{self._listening.getsockname()[1]}"
        self._start(self._accept)

    def stop(self) -> None:
        """Let nothing through to the port any more; some hundred KiB stay in the kernel, the rest with its sender."""
        self._open.clear()

    def go_on(self) -> None:
        """Let through what was stopped, and what comes."""
        self._open.set()

    def cut(self) -> None:
        """Break off all connections, then let new ones through."""
        for each in self._sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        self._open.set()

    def _start(self, function: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=function, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listening.accept()
                far = socket.create_connection(("127.0.0.1", self._port))
                self._sockets += (near, far)
                self._start(self._carry, near, far, self._open)
                self._start(self._carry, far, near, None)

    def _carry(self, source: socket.socket, target: socket.socket, gate: threading.Event | None) -> None:
        with contextlib.suppress(OSError):
            while chunk := source.recv(_BUFFER_BYTES):
                if gate is not None:
                    gate.wait()
                target.sendall(chunk)
        for each in (source, target):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> NarrowLink:
        return self

    def __exit__(self, *exc: object) -> None:
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self.cut()
        for thread in self._threads:
            thread.join(20)
        for each in (self._listening, *self._sockets):
            each.close()
