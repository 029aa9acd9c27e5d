"""A server that answers each message, and its client."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from edgeml_ipc.compat._manners import Late, answered
from edgeml_ipc.service import Client, Server, complete_address, options_for, set_log_level

if TYPE_CHECKING:
    from edgeml_ipc.security import Keys

logger = logging.getLogger("edgeml_ipc")

_SERVICE: Final = "req_rep"


class ReqRepServer:
    """Answer each message by a callback. Beyond its own machine it listens with keys, or if `insecure`, only.

        server = ReqRepServer(port=5556, impl_callback=lambda message: {"got": message})
        server.run()

    Args:
        port: 0 lets the system choose; then the attribute `port` tells.
        impl_callback: message -> reply.
        compression: accepted; how messages travel is the transport's business.
    """

    def __init__(
        self,
        port: int = 5556,
        impl_callback: Callable[[Any], Any] | None = None,
        log_level: int | str | None = logging.DEBUG,
        compression: str = "lz4",
        *,
        host: str = "127.0.0.1",
        keys: Keys | None = None,
        insecure: bool = False,
    ) -> None:
        set_log_level(log_level)
        self.impl_callback = impl_callback
        self.port = port
        self._host, self._options = host, options_for(keys, insecure)
        self.reset()

    def reset(self) -> None:
        """Listen, as when it was made; for one that was stopped."""
        address = complete_address(self._host, self.port)
        handlers = {"message": self._answer}
        self._server = Server(address, service=_SERVICE, config={}, handlers=handlers, options=self._options, copy=True)
        self.port, self.is_kill = self._server.port, False

    def _answer(self, message: Any) -> Any:
        if self.impl_callback is None:
            logger.warning("%s: there is no impl_callback", self._server.address)
            return b"World"
        return self.impl_callback(message)

    def run(self) -> None:
        """Serve until `stop`, in this thread; listen anew if it was stopped before."""
        if self.is_kill:
            self.reset()
        self._server.start()

    def stop(self) -> None:
        """Stop serving. Idempotent."""
        self.is_kill = True
        self._server.stop()


class ReqRepClient:
    """Send messages to a `ReqRepServer` and return its replies, None where none came. It may be made before its server.

    Args:
        timeout_ms: for each message, in milliseconds; may be changed.
        compression: accepted; how messages travel is the transport's business.
    """

    def __init__(
        self,
        ip: str,
        port: int = 5556,
        timeout_ms: float = 800,
        log_level: int | str | None = logging.DEBUG,
        compression: str = "lz4",
        *,
        keys: Keys | None = None,
    ) -> None:
        set_log_level(log_level)
        self.ip, self.port, self.timeout_ms = ip, port, timeout_ms
        address, options = complete_address(ip, port), options_for(keys)
        self._late = Late(
            lambda **waiting: Client(address, service=_SERVICE, config={}, options=options, copy=True, **waiting), ip
        )

    def send_msg(self, request: Any, wait_for_response: bool = True) -> Any:
        """Return the reply to a message; None if none came, or it is not waited for."""
        return answered(self._send, request, wait_for_response)

    def _send(self, request: Any, wait_for_response: bool) -> Any:
        client, seconds = self._late.client(), self.timeout_ms / 1000
        if wait_for_response:
            return client.call("message", request, seconds)
        client.submit("message", request, seconds)
        return None

    def reset_socket(self) -> None:
        """Close the connection; the next message makes a new one."""
        self._late.close()

    def stop(self) -> None:
        """The same as `reset_socket`."""
        self._late.close()
