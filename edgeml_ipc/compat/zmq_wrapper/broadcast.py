"""A server that tells all its clients its newest message."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from edgeml_ipc._background import Background
from edgeml_ipc._dial import Dialer
from edgeml_ipc._outgoing import Outgoing
from edgeml_ipc.service import Server, complete_address, options_for, set_log_level

if TYPE_CHECKING:
    from edgeml_ipc.security import Keys

_SERVICE: Final = "broadcast"
_CONNECT_SECONDS: Final = 3.0


class BroadcastServer:
    """Tell all clients the newest message; it serves from its construction to `stop`.

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
        set_log_level(log_level)
        options = options_for(keys, insecure)
        self._server = Server(complete_address(host, port), service=_SERVICE, config={}, handlers={}, options=options)
        self.port = self._server.port
        self._server.start(threaded=True)

    def broadcast(self, message: Any) -> None:
        """Make `message` the newest one; never waits for a client."""
        self._server.publish(message)

    def stop(self) -> None:
        """Stop serving. Idempotent."""
        self._server.stop()


class BroadcastClient:
    """Take the newest message of a `BroadcastServer`, which may come later, or come back. A slow client skips.

    Args:
        comppression: accepted, and written so, as it always was.
    """

    def __init__(
        self,
        ip: str,
        port: int = 5557,
        log_level: int | str | None = logging.DEBUG,
        comppression: str = "lz4",
        *,
        keys: Keys | None = None,
    ) -> None:
        set_log_level(log_level)
        dialer = Dialer(complete_address(ip, port), _SERVICE, {}, options_for(keys))
        self._background = Background(dialer, Outgoing(None), copy=True, connect_seconds=_CONNECT_SECONDS)

    def async_start(self, callback: Callable[[Any], None]) -> None:
        """Call `callback(message)` on a thread of this client's, the newest there is first."""
        self._background.subscribe(lambda message, _version: callback(message))

    def stop(self) -> None:
        """End the thread and the connection. Idempotent."""
        self._background.close()
