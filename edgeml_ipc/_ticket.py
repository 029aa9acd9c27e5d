"""Answering a request later than in the handler's return."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from edgeml_ipc._replies import Lane

if TYPE_CHECKING:
    from edgeml_ipc._server import Server


class _Later:
    """What a handler returns that has taken the request's ticket and will answer later."""


LATER: Final = _Later()


class Ticket:
    """The right to answer one request later, from the loop's thread."""

    __slots__ = ("_lane", "_sequence", "_server")

    def __init__(self, server: Server, lane: Lane, sequence: int) -> None:
        self._server = server
        self._lane = lane
        self._sequence = sequence

    def reply(self, result: Any) -> None:
        self._server._reply(self._lane, self._sequence, result)

    def fail(self, error: BaseException) -> None:
        """Answer with an error that came out of a user's function."""
        self._server._fail(self._lane, self._sequence, error, within_callback=True)

    def ends_server(self, error: BaseException) -> bool:
        """See `Server.ends_server`."""
        return self._server.ends_server(error)
