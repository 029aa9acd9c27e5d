"""What the servers of the three services have in common, and what their clients have."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

from edgeml_ipc._client import Client
from edgeml_ipc._server import Server


class ServerFront:
    """Life, address and counters of a server. Subclasses set `_server`."""

    _server: Server

    def start(self, threaded: bool = False) -> None:
        """Serve: in this thread until `stop` or Ctrl-C, or in a daemon thread if `threaded`.

        Callbacks run in the serving thread, one at a time.
        """
        self._server.start(threaded)

    def stop(self) -> None:
        """Stop serving and end all connections. Idempotent, any thread, also from a callback."""
        self._server.stop()

    def close(self) -> None:
        """The same as `stop`."""
        self.stop()

    @property
    def address(self) -> str:
        """Where it listens, with the port that the system chose."""
        return self._server.address

    @property
    def port(self) -> int:
        """The port; 0 where the transport has none."""
        return self._server.port

    def stats(self) -> dict[str, Any]:
        """Return plain counters. Any thread."""
        return self._server.stats()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()


class ClientFront:
    """Life, transport and counters of a client. Subclasses set `_client`."""

    _client: Client

    def stop(self) -> None:
        """Close the connections and end the background thread. Idempotent."""
        self._client.close()

    def close(self) -> None:
        """The same as `stop`."""
        self.stop()

    @property
    def address(self) -> str:
        """Where the server is."""
        return self._client.address

    @property
    def transport(self) -> str:
        """What the calls travel by: "shm", "tcp" or "inproc"."""
        return self._client.transport

    def stats(self) -> dict[str, Any]:
        """Return plain counters. Any thread."""
        return self._client.stats()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()
