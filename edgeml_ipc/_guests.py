"""What a server offers at its one address: its own service, and guests beside it, each with a config and methods of its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from edgeml_ipc.protocol import ProtocolViolation, pack_welcome, plain_config, unpack_hello

Handler = Callable[[Any], Any]


class Guest(NamedTuple):
    """A service beside a server's own.

    A client names the service that it wants when it connects, and is shown that one's methods only. So a guest's client need
    not know the server's config: it shows the guest's, which says no more than the guest's version, say.

    Attributes:
        config: dataclass or mapping that its clients must show equal.
        handlers: method name -> function from payload to result.
    """

    config: object
    handlers: Mapping[str, Handler]


class Caller(NamedTuple):
    """Who asks.

    Attributes:
        client: 16 bytes that name the client, the same for all its connections.
        transport: what its request came by: "shm", "tcp" or "inproc".
    """

    client: bytes
    transport: str


class Offer:
    """One service of a server, as its clients see it.

    Attributes:
        handlers, limited: of the methods, by number; `limited` tells which the server's rate limit counts.
        welcome: what a client of this service is answered when it connects.
    """

    def __init__(self, service: str, guest: Guest, incarnation: bytes, limited: Iterable[str] = ()) -> None:
        self.service = service
        self.config = plain_config(guest.config)
        self.handlers = list(guest.handlers.values())
        limited_names = set(limited)
        self.limited = [name in limited_names for name in guest.handlers]
        self.welcome = pack_welcome(incarnation, list(guest.handlers))


def offer_for(hello: bytes, own: Offer, guests: Mapping[str, Offer]) -> Offer:
    """Return what a client wants: a guest that it names, else the server's own, which then judges it."""
    try:
        return guests.get(unpack_hello(hello).service, own)
    except ProtocolViolation:
        return own


class TokenBucket:
    """Allow `rate` requests per second, and bursts of one second's worth."""

    def __init__(self, rate: float) -> None:
        if rate <= 0:
            raise ValueError(f"rate_limit must be above 0 requests per second, got {rate}")
        self.rate = rate
        self._tokens = self._most = max(1.0, float(rate))
        self._filled_at = time.monotonic()

    def take(self) -> bool:
        now = time.monotonic()
        self._tokens = min(self._most, self._tokens + (now - self._filled_at) * self.rate)
        self._filled_at = now
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True
