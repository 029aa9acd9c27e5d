"""What edgeml and agentlace did where this library raises: they returned None, and waited for a server without end."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any, Final, Generic, Protocol, TypeVar

from edgeml_ipc.errors import ConnectionRefused, PeerDied, RateLimited, RemoteError, TimeoutError
from edgeml_ipc.service import Client

logger = logging.getLogger("edgeml_ipc")

NO_ANSWER: Final = (TimeoutError, PeerDied, ConnectionRefused, RemoteError, RateLimited)
_NOBODY: Final = (TimeoutError, PeerDied, ConnectionRefused)
_LOOK_SECONDS: Final = 10.0  # of waiting for a server, after which the log says so
_HERE: Final = frozenset({"localhost", "::1"})


class _Closable(Protocol):
    def close(self) -> None: ...


R = TypeVar("R")
C = TypeVar("C", bound=_Closable)


def answered(call: Callable[..., R], *args: Any) -> R | None:
    """Return what a call returns, or None, with the reason in the log, where no answer came.

    What is wrong with the request itself (it cannot be encoded, is too large) raises, as it did.
    """
    try:
        return call(*args)
    except NO_ANSWER as error:
        logger.warning("returning None: %s", error)
        return None


def connect(client: Callable[..., R], host: str, *, wait: bool) -> R:
    """Make a client of a server at `host`: at once, or, if it is to `wait`, as soon as the server is there.

    Args:
        client: takes `wait_for_server` and `wait_timeout`.
    Raises:
        ConnectionRefused, TimeoutError: nobody answers, and it does not wait. Others as clients do.
    """
    while True:
        try:
            return client(wait_for_server=wait, wait_timeout=_LOOK_SECONDS)
        except _NOBODY as error:
            advice = _advice(host)
            if not wait:
                if not advice:
                    raise
                raise type(error)(f"{error}{advice}") from error
            logger.warning("waiting for the server: %s%s", error, advice)


def _advice(host: str) -> str:
    bare = host.partition("://")[2] or host
    if bare in _HERE or bare.startswith(("127.", "localhost:", "[::1]")) or host.startswith(("shm://", "inproc://")):
        return ""
    return (
        "; a server listens to its own machine alone, unless it is made with host='0.0.0.0' and keys=..., or with "
        "host='0.0.0.0', insecure=True where everybody in the network may be trusted"
    )


class Late(Generic[C]):
    """A client that connects when it is first used, so that it may be made before its server is; and again after `close`."""

    def __init__(self, make: Callable[..., C], host: str) -> None:
        self._make, self._host = make, host
        self._lock = threading.Lock()
        self._client: C | None = None

    def client(self) -> C:
        with self._lock:
            if self._client is None:
                self._client = connect(self._make, self._host, wait=False)
            return self._client

    def close(self) -> None:
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()


class RequestSettings:
    """What programs reach as `client.req_rep_client` to change the timeout of a client that runs.

    Attributes:
        timeout_ms: of each call.
    """

    def __init__(self, client: Client) -> None:
        self._client = client

    @property
    def timeout_ms(self) -> float:
        return self._client.timeout * 1000

    @timeout_ms.setter
    def timeout_ms(self, value: float) -> None:
        self._client.timeout = value / 1000

    def reset_socket(self) -> None:
        """Do nothing: a connection that broke is made anew by itself."""
