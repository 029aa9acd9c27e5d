"""Two processes that send each other messages, each in order and none left out."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from edgeml_ipc import transports
from edgeml_ipc._deadline import Deadline
from edgeml_ipc.compat.internal.utils import bytes_to_tree, tree_to_bytes
from edgeml_ipc.errors import ConnectionClosed, ConnectionRefused, PeerDied, TimeoutError
from edgeml_ipc.service import complete_address, options_for, set_log_level
from edgeml_ipc.transports.base import Buffer, Connection, HandshakeRejected

if TYPE_CHECKING:
    from edgeml_ipc.security import Keys

logger = logging.getLogger("edgeml_ipc")

_HELLO: Final = b"edgeml_ipc pair 1"
_GREETING: Final = b"\0"  # a client's first message, by which the server's `poll` knows that it is there; no tree is so short
_SEND_SECONDS: Final = 60.0
_LOOK_SECONDS: Final = 0.25
_CONNECT_SECONDS: Final = 3.0
_RETRY_SECONDS: Final = 0.05
_MAX_WAITING: Final = 1000


class _End:
    """What both sides have.

    Args:
        compression: accepted; how messages travel is the transport's business.
    """

    def __init__(self) -> None:
        self.callback: Callable[[Any], None] | None = None
        self._closing = threading.Event()
        self._sending = threading.Lock()

    def register_callback(self, callback: Callable[[Any], None]) -> None:
        """Call `callback(message)` for each message that comes, in the thread that is in `run`."""
        self.callback = callback

    def broadcast(self, message: Any) -> None:
        """Send one message to the other side; wait for it to be there, and to have room.

        Raises:
            TimeoutError: that took 60 seconds. ConnectionClosed: this side was stopped.
        """
        data, deadline = tree_to_bytes(message), Deadline(_SEND_SECONDS)
        with self._sending:
            while True:
                connection = self._peer(deadline)
                try:
                    connection.send([data], deadline.remaining() or 0.0)
                    return
                except PeerDied:
                    self._lost(connection)

    def run(self) -> None:
        """Take messages, in this thread, until `stop`."""
        while not self._closing.is_set():
            data = self._next()
            if data is not None and self.callback is not None:
                self.callback(bytes_to_tree(bytes(data)))

    def _peer(self, deadline: Deadline) -> Connection:
        raise NotImplementedError

    def _lost(self, connection: Connection) -> None:
        raise NotImplementedError

    def _next(self) -> Buffer | None:
        raise NotImplementedError


class PairServer(_End):
    """The side that listens; the newest client is its other side.

        server = PairServer(port=5557)
        server.register_callback(handle)
        server.broadcast({"message": "hello"})
        server.run()

    Args:
        port: 0 lets the system choose; then the attribute `port` tells.
        compression: accepted; how messages travel is the transport's business.
    """

    def __init__(
        self,
        port: int = 5557,
        log_level: int | str | None = logging.DEBUG,
        compression: str = "lz4",
        *,
        host: str = "127.0.0.1",
        keys: Keys | None = None,
        insecure: bool = False,
    ) -> None:
        super().__init__()
        set_log_level(log_level)
        options = options_for(keys, insecure)
        self._listener = transports.listen(complete_address(host, port), welcome=_welcome, options=options)
        self.port = self._listener.port
        self._changed = threading.Condition()
        self._connection: Connection | None = None
        self._waiting: queue.Queue[Buffer] = queue.Queue(_MAX_WAITING)
        self._thread = threading.Thread(target=self._read, name="edgeml_ipc-pair", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        try:
            while True:
                for connection, parts in self._listener.poll(None):
                    if parts is None:
                        self._lost(connection)
                    elif len(parts[0]) > len(_GREETING):
                        self._keep(parts[0])
                    else:
                        with self._changed:
                            self._connection = connection
                            self._changed.notify_all()
        except ConnectionClosed:
            pass  # stopped

    def _keep(self, data: Buffer) -> None:
        while not self._closing.is_set():
            try:
                return self._waiting.put(data, timeout=_LOOK_SECONDS)
            except queue.Full:
                continue

    def _peer(self, deadline: Deadline) -> Connection:
        with self._changed:
            self._changed.wait_for(lambda: self._connection or self._closing.is_set(), deadline.remaining())
            if self._closing.is_set():
                raise ConnectionClosed(f"{self._listener.address}: this side was stopped")
            if self._connection is None:
                raise TimeoutError(f"{self._listener.address}: no client came within {_SEND_SECONDS:g} s")
            return self._connection

    def _lost(self, connection: Connection) -> None:
        with self._changed:
            if self._connection is connection:
                self._connection = None

    def _next(self) -> Buffer | None:
        try:
            return self._waiting.get(timeout=_LOOK_SECONDS)
        except queue.Empty:
            return None

    def stop(self) -> None:
        """End the connection, and `run`. Idempotent."""
        self._closing.set()
        with self._changed:
            self._changed.notify_all()
        self._listener.close()
        self._thread.join()


class PairClient(_End):
    """The side that connects, as soon as there is a server, and again to one that came back.

    Args:
        compression: accepted; how messages travel is the transport's business.
    """

    def __init__(
        self,
        ip: str,
        port: int = 5557,
        log_level: int | str | None = logging.DEBUG,
        compression: str = "lz4",
        *,
        keys: Keys | None = None,
    ) -> None:
        super().__init__()
        set_log_level(log_level)
        self._address, self._options = complete_address(ip, port), options_for(keys)
        self._connecting = threading.Lock()
        self._connection: Connection | None = None

    def _peer(self, deadline: Deadline) -> Connection:
        with self._connecting:
            while self._connection is None:
                if self._closing.is_set():
                    raise ConnectionClosed(f"{self._address}: this side was stopped")
                try:
                    self._connection = self._connect()
                except (ConnectionRefused, TimeoutError, PeerDied) as error:
                    if deadline.expired:
                        raise TimeoutError(f"{self._address}: no server came within {deadline.spent():.3f} s") from error
                    self._closing.wait(_RETRY_SECONDS)
            return self._connection

    def _connect(self) -> Connection:
        connection = transports.connect(self._address, hello=_HELLO, timeout=_CONNECT_SECONDS, options=self._options)
        connection.send([_GREETING], _CONNECT_SECONDS)
        return connection

    def _lost(self, connection: Connection) -> None:
        with self._connecting:
            if self._connection is connection:
                self._connection = None

    def _next(self) -> Buffer | None:
        connection: Connection | None = None
        try:
            connection = self._peer(Deadline(_LOOK_SECONDS))
            return connection.recv(_LOOK_SECONDS)[0]
        except PeerDied:
            assert connection is not None
            self._lost(connection)
        except (TimeoutError, ConnectionClosed):
            pass
        return None

    def stop(self) -> None:
        """End the connection, and `run`. Idempotent."""
        self._closing.set()
        connection = self._connection
        if connection is not None:
            connection.close()


def _welcome(hello: bytes) -> bytes:
    if hello != _HELLO:
        raise HandshakeRejected(b"this is a pair")
    return _HELLO
