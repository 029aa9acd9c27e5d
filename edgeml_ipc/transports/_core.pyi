"""The shared-memory core, bound from C. Internal: `shm.py` is its only user."""

from collections.abc import Sequence
from typing import Any, final

@final
class Part:
    """A read-only buffer of a received message; keeps the slot that it lies in leased."""

    def __len__(self) -> int: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...

@final
class Lease: ...

@final
class Link:
    """One connection: a socket and two endpoint segments. Any thread may call; one thread at a time may send."""

    def __new__(
        cls, waiter: Waiter, sock_fd: int, ring_bytes: int, max_message_bytes: int, slot_budget_bytes: int, label: str
    ) -> Link:
        """Make this side's endpoint. Takes `sock_fd` over, also on failure."""
    alive: bool
    def endpoint_fd(self) -> int: ...
    def challenge(self) -> bytes:
        """The random bytes in this side's page, which the peer must read back."""
    def attach(self, endpoint_fd: int, board_fd: int, pidfd: int, topics: int, /) -> bytes:
        """Map the peer's pages and return the challenge found there. Takes the fds over; pidfd -1: none; topics: bit set."""
    def send(self, parts: Sequence[Any], timeout: float, /) -> None: ...
    def open_topics(self) -> None:
        """Tell the peer that the slots of its topics are announced, so that it may look at them."""
    def check(self) -> None:
        """Raise what ended this link, if anything did."""
    def close(self) -> None: ...
    def stats(self) -> dict[str, int]: ...

@final
class Waiter:
    """A board, and the sleep of one thread that reads any number of links."""

    def board_fd(self) -> int: ...
    def add(self, link: Link, /) -> None: ...
    def remove(self, link: Link, /) -> None: ...
    def watch(self, fd: int, /) -> None:
        """Let `recv` return None whenever `fd` is readable."""
    def wake(self) -> None: ...
    def recv(self, timeout: float | None, /) -> tuple[Link, list[Any] | None] | bool | None:
        """Return (link, parts), False after `timeout`, None for a wake or a watched fd.

        (link, None) says that the link ended, once, after its last message; it is then off this waiter.
        """
    def recv_many(self, timeout: float | None, limit: int, /) -> list[tuple[Link, list[Any] | None]]:
        """Wait like `recv`, then take up to `limit` events that are there; empty after the timeout, a wake or a watched fd."""
    def stats(self) -> dict[str, int]: ...

@final
class Topic:
    """The publisher's side of one newest-wins topic. Its caller serialises all calls."""

    def __new__(cls, waiter: Waiter, index: int, slot_budget_bytes: int) -> Topic: ...
    def add(self, link: Link, /) -> None: ...
    def remove(self, link: Link, /) -> None: ...
    def publish(self, parts: Sequence[Any], /) -> None: ...
    def hold(self) -> list[Any] | None:
        """Lease the newest value to the publisher itself; None if there is none, or too many are held."""
    def stats(self) -> dict[str, int]: ...
