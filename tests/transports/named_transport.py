"""A transport as another package might bring it: `named:///a/file`, tcp with names in place of ports.

The listener writes where it listens into a file of that name, and the connecting side looks there.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from edgeml_ipc import transports
from edgeml_ipc.errors import AddressInUse, ConnectionRefused
from edgeml_ipc.transports.base import Buffer, Connection, Listener, Options, Parts, Shorten, Transport, Welcome


class NamedListener(Listener):
    """A tcp listener whose place is written down."""

    def __init__(self, inner: Listener, address: str, path: str) -> None:
        self.address = address
        self.port = inner.port
        self._inner = inner
        self._path = path
        self._written = True

    def poll(self, timeout: float | None) -> list[tuple[Connection, list[Buffer] | None]]:
        return self._inner.poll(timeout)

    def publish(self, topic: int, parts: Parts, shorten: Shorten | None = None) -> None:
        self._inner.publish(topic, parts, shorten)

    def wake(self) -> None:
        self._inner.wake()

    def close(self) -> None:
        if self._written:
            self._written = False
            os.unlink(self._path)
        self._inner.close()

    def stats(self) -> dict[str, int]:
        return self._inner.stats()


class NamedTransport(Transport):
    """Finds a tcp listener by the name of a file."""

    scheme = "named"

    def connect(self, address: str, *, hello: bytes, topics: Sequence[int], timeout: float, options: Options) -> Connection:
        try:
            with open(address.removeprefix("named://"), encoding="ascii") as file:
                where = file.read()
        except FileNotFoundError as error:
            raise ConnectionRefused(f"{address}: nothing listens there") from error
        return transports.connect(where, hello=hello, topics=topics, timeout=timeout, options=options)

    def listen(self, address: str, *, welcome: Welcome, options: Options) -> Listener:
        path = address.removeprefix("named://")
        try:
            file = open(path, "x", encoding="ascii")  # noqa: SIM115 - the name is held before there is something to write
        except FileExistsError as error:
            raise AddressInUse(f"{address}: another server has that name") from error
        with file:
            inner = transports.listen("tcp://127.0.0.1:0", welcome=welcome, options=options)
            file.write(inner.address)
        return NamedListener(inner, address, path)
