"""Producers that send messages to a consumer, which answers none of them."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Final

from edgeml_ipc.compat._manners import connect
from edgeml_ipc.errors import BufferFull, EdgeMLError
from edgeml_ipc.service import Client, Server, complete_address, options_for

if TYPE_CHECKING:
    from edgeml_ipc.security import Keys

logger = logging.getLogger("edgeml_ipc")

_SERVICE: Final = "pipeline"
_SECONDS: Final = 60.0  # that a message may be on its way


class Producer:
    """Send messages to a consumer, in order; wait for it where it is not there yet, or is 256 messages behind."""

    def __init__(self, ip: str = "localhost", port: int = 5547, compression: str = "lz4", *, keys: Keys | None = None) -> None:
        self._address, self._options = complete_address(ip, port), options_for(keys)
        self._client: Client | None = None
        self._sent: deque[Future[Any]] = deque()

    def send_msg(self, msg: Any) -> None:
        """Send one message and do not wait until it is taken. What becomes of it is logged only if it was lost."""
        if self._client is None:
            self._client = connect(self._make, self._address, wait=True)
        while self._sent and self._sent[0].done():
            self._settle(self._sent.popleft())
        while True:
            try:
                self._sent.append(self._client.submit("message", msg, _SECONDS))
                return
            except BufferFull:
                self._settle(self._sent.popleft())

    def _make(self, **waiting: Any) -> Client:
        return Client(self._address, service=_SERVICE, config={}, options=self._options, **waiting)

    def _settle(self, future: Future[Any]) -> None:
        try:
            future.result(_SECONDS)
        except EdgeMLError as error:
            logger.warning("%s: a message was lost, or what took it raised: %s", self._address, error)

    def close(self) -> None:
        """Wait until what was sent is taken, and close. Idempotent."""
        while self._sent:
            self._settle(self._sent.popleft())
        client, self._client = self._client, None
        if client is not None:
            client.close()


class Consumer:
    """Call `callback_fn(message)` for each message of any producer, those of one producer in order.

    Args:
        port: 0 lets the system choose; then the attribute `port` tells.
        compression: accepted; how messages travel is the transport's business.
    """

    def __init__(
        self,
        callback_fn: Callable[[Any], object],
        port: int = 5547,
        compression: str = "lz4",
        *,
        host: str = "127.0.0.1",
        keys: Keys | None = None,
        insecure: bool = False,
    ) -> None:
        self.callback_fn = callback_fn
        options = options_for(keys, insecure)
        handlers = {"message": self._take}
        address = complete_address(host, port)
        self._server = Server(address, service=_SERVICE, config={}, handlers=handlers, options=options, copy=True)
        self.port = self._server.port

    def _take(self, message: Any) -> None:
        self.callback_fn(message)

    def start(self) -> None:
        """Take messages, in this thread, until `stop` or Ctrl-C."""
        self._server.start()

    def async_start(self) -> None:
        """Take messages on a thread of its own."""
        self._server.start(threaded=True)

    def stop(self) -> None:
        """Stop taking messages. Idempotent."""
        self._server.stop()
