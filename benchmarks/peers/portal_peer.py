"""portal: a method of its server, called by its client; one way: calls of which 16 at most are outstanding."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks.processes import leave_when_told
from benchmarks.way import Ask, Give, Handler, OnTaken, Way, imported

OUTSTANDING = 16  # its own default


class PortalWay(Way):
    """Its defaults."""

    name, title, module = "portal", "portal", "portal"

    def answer(self, pipe: Any, shared: Any, nbytes: int, handler: Handler) -> None:
        """See `Way.answer`."""
        portal = imported("portal")
        port = portal.free_port()
        server = portal.Server(port, host="127.0.0.1", logging=False)
        server.bind("act", handler)
        server.start(block=False)
        pipe.send(port)
        leave_when_told(pipe)
        server.loop.join()

    @contextmanager
    def ask(self, address: Any, shared: Any, nbytes: int) -> Iterator[Ask]:
        """See `Way.ask`."""
        client = imported("portal").Client(f"localhost:{address}", maxinflight=OUTSTANDING, logging=False)
        try:
            yield lambda array: client.call("act", array).result()
        finally:
            client.close()

    def take(self, pipe: Any, shared: Any, nbytes: int, taken: OnTaken) -> None:
        """See `Way.take`."""

        def answer(tree: Any) -> None:
            taken(tree)

        self.answer(pipe, shared, nbytes, answer)  # type: ignore[arg-type]

    @contextmanager
    def give(self, address: Any, shared: Any, nbytes: int) -> Iterator[Give]:
        """See `Way.give`."""
        client = imported("portal").Client(f"localhost:{address}", maxinflight=OUTSTANDING, logging=False)
        calls: deque[Any] = deque()

        def give(tree: Any) -> None:
            calls.append(client.call("act", tree))
            if len(calls) > OUTSTANDING:
                calls.popleft().result()

        def finish() -> None:
            while calls:
                calls.popleft().result()

        try:
            yield give, finish
        finally:
            client.close()
