"""Requests that cannot be answered yet: they are tried again by the server's loop, which never waits for one of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

from edgeml_ipc._deadline import Deadline
from edgeml_ipc._ticket import Ticket

TRY_EVERY_SECONDS: Final = 0.002


class _Parked(NamedTuple):
    client: bytes
    kind: str
    ticket: Ticket
    attempt: Callable[[bool], Any]
    deadline: Deadline


class Parking:
    """Requests of all clients, in the order in which they came. For the server's loop."""

    def __init__(self) -> None:
        self._parked: list[_Parked] = []

    def park(self, client: bytes, kind: str, ticket: Ticket, attempt: Callable[[bool], Any], seconds: float) -> None:
        """Try `attempt` until it returns something other than None, which is the answer.

        Args:
            kind: requests of one kind of one client are answered in their order.
            attempt: called with True when the time is over; then it must answer.
        """
        self._parked.append(_Parked(client, kind, ticket, attempt, Deadline(seconds)))

    def holds(self, client: bytes, kind: str) -> bool:
        """Tell whether a request of this kind waits."""
        return any((parked.client, parked.kind) == (client, kind) for parked in self._parked)

    def end(self, client: bytes, answer: Any) -> None:
        """Answer all that waits of one client."""
        for parked in [parked for parked in self._parked if parked.client == client]:
            self._parked.remove(parked)
            parked.ticket.reply(answer)

    def tick(self) -> float | None:
        """Try all once; return the seconds to the next time, or None if nothing waits."""
        behind: set[tuple[bytes, str]] = set()
        for parked in list(self._parked):
            place = parked.client, parked.kind
            answer = None if place in behind else parked.attempt(parked.deadline.expired)
            if answer is None:
                behind.add(place)
            else:
                self._parked.remove(parked)
                parked.ticket.reply(answer)
        return TRY_EVERY_SECONDS if self._parked else None
