"""Which client has which environment: one for each, or one that they take in turns. For the serving thread only."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from time import monotonic
from typing import Any, Final

from gymnasium import Env
from gymnasium.error import ResetNeeded

logger = logging.getLogger("edgeml_ipc")

AWAY_SECONDS: Final = 30.0  # for how long a client without a connection keeps its environment: its link may have been cut
AnyEnv = Env[Any, Any]


class Seats(ABC):
    """The environments of one server, by client."""

    @abstractmethod
    def show(self, client: bytes) -> AnyEnv:
        """Return the environment that the client would get, to be described."""

    @abstractmethod
    def take(self, client: bytes) -> AnyEnv:
        """Return the environment that the client is about to reset; from now on it is the client's."""

    @abstractmethod
    def of(self, client: bytes) -> AnyEnv:
        """Return the environment that the client has reset. Raises ResetNeeded: it has none."""

    @abstractmethod
    def leave(self, client: bytes) -> None:
        """The client needs its environment no more."""

    def went(self, client: bytes) -> None:  # noqa: B027 - whoever gives no environments away has nothing to do
        """Take note that the client's last connection ended; it may come back."""

    def tidy(self) -> float | None:
        """Close what belonged to clients that stayed away; return the seconds until there may be more, or None."""
        return None

    @abstractmethod
    def close(self) -> None:
        """Close what was made here."""


class OwnSeats(Seats):
    """An environment for each client, made by a factory when the client comes, and closed when it has left.

    Args:
        factory: makes an environment. max_clients: how many there may be at once.
        is_connected: tells whether a client has a connection.
    """

    def __init__(self, factory: Callable[[], AnyEnv], max_clients: int, is_connected: Callable[[bytes], bool]) -> None:
        self._factory = factory
        self._max_clients = max_clients
        self._is_connected = is_connected
        self._envs: dict[bytes, AnyEnv] = {}
        self._reset: set[bytes] = set()
        self._away: dict[bytes, float] = {}  # client -> when it is given up

    def show(self, client: bytes) -> AnyEnv:
        """See `Seats`."""
        env = self._envs.get(client)
        if env is None:
            if len(self._envs) >= self._max_clients:
                raise RuntimeError(f"{len(self._envs)} clients have an environment here, and max_clients={self._max_clients}")
            env = self._factory()
            if not isinstance(env, Env):
                raise TypeError(f"the factory must make a gymnasium.Env, and made a {type(env).__name__}")
            self._envs[client] = env
        return env

    def take(self, client: bytes) -> AnyEnv:
        """See `Seats`."""
        env = self.show(client)
        self._reset.add(client)
        return env

    def of(self, client: bytes) -> AnyEnv:
        """See `Seats`."""
        if client not in self._reset:
            raise ResetNeeded("this client has no episode here, perhaps since the server started anew: call reset()")
        return self._envs[client]

    def leave(self, client: bytes) -> None:
        """See `Seats`."""
        self._away.pop(client, None)
        self._reset.discard(client)
        env = self._envs.pop(client, None)
        if env is not None:
            _close(env)

    def went(self, client: bytes) -> None:
        """See `Seats`."""
        if client in self._envs:
            self._away[client] = monotonic() + AWAY_SECONDS

    def tidy(self) -> float | None:
        """See `Seats`."""
        if not self._away:
            return None
        for client in [client for client in self._away if self._is_connected(client)]:
            del self._away[client]
        for client in [client for client, end in self._away.items() if end <= monotonic()]:
            self.leave(client)
        return max(0.0, min(self._away.values()) - monotonic()) if self._away else None

    def close(self) -> None:
        """See `Seats`."""
        for client in list(self._envs):
            self.leave(client)


class SharedSeat(Seats):
    """One environment, which belongs to the client that reset it; others get it by a reset once that one has left.

    It is its owner's, who closes it.
    """

    def __init__(self, env: AnyEnv, is_connected: Callable[[bytes], bool]) -> None:
        self._env = env
        self._is_connected = is_connected
        self._holder: bytes | None = None

    def show(self, client: bytes) -> AnyEnv:
        """See `Seats`."""
        return self._env

    def take(self, client: bytes) -> AnyEnv:
        """See `Seats`."""
        if self._holder is not None and self._holder != client and self._is_connected(self._holder):
            raise RuntimeError(
                "another client uses this environment; serve a factory instead, and each client has one of its own"
            )
        self._holder = client
        return self._env

    def of(self, client: bytes) -> AnyEnv:
        """See `Seats`."""
        if self._holder != client:
            raise ResetNeeded("this client has no episode here, since it did not reset the environment last: call reset()")
        return self._env

    def leave(self, client: bytes) -> None:
        """See `Seats`."""
        if self._holder == client:
            self._holder = None

    def close(self) -> None:
        """See `Seats`."""


def _close(env: AnyEnv) -> None:
    try:
        env.close()
    except Exception:  # a user's environment; nobody is there to be told
        logger.exception("an environment failed to close")
