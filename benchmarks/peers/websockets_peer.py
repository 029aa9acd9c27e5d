"""websockets and msgpack, as policy servers of robots use them: asyncio serves, the client is a plain one; not compressed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from benchmarks.processes import leave_when_told
from benchmarks.way import Ask, Give, Handler, OnTaken, Way, imported


def _pack(node: Any) -> Any:
    """Turn an array or a numpy number into a dict that msgpack can write."""
    if isinstance(node, np.ndarray):
        return {b"nd": node.dtype.str, b"shape": node.shape, b"data": node.tobytes()}
    if isinstance(node, np.generic):
        return {b"np": node.dtype.str, b"data": node.tobytes()}
    raise TypeError(f"cannot write a {type(node).__name__}")


def _unpack(node: dict[Any, Any]) -> Any:
    """Turn such a dict back."""
    if b"nd" in node:
        return np.frombuffer(node[b"data"], node[b"nd"]).reshape(node[b"shape"])
    return np.frombuffer(node[b"data"], node[b"np"])[0] if b"np" in node else node


class WebsocketsWay(Way):
    """Arrays as msgpack maps of dtype, shape and bytes."""

    name, title, module = "websockets", "websockets, msgpack", "websockets"

    def answer(self, pipe: Any, shared: Any, nbytes: int, handler: Handler) -> None:
        """See `Way.answer`."""
        packer, unpackb = imported("msgpack").Packer(default=_pack), imported("msgpack").unpackb

        async def serve(socket: Any) -> None:
            async for data in socket:
                await socket.send(packer.pack(handler(unpackb(data, object_hook=_unpack))))

        asyncio.run(_listen(pipe, serve))

    @contextmanager
    def ask(self, address: Any, shared: Any, nbytes: int) -> Iterator[Ask]:
        """See `Way.ask`."""
        packer, unpackb = imported("msgpack").Packer(default=_pack), imported("msgpack").unpackb
        with _connected(address) as socket:

            def call(array: np.ndarray) -> np.ndarray:
                socket.send(packer.pack(array))
                return unpackb(socket.recv(), object_hook=_unpack)  # type: ignore[no-any-return]

            yield call

    def take(self, pipe: Any, shared: Any, nbytes: int, taken: OnTaken) -> None:
        """See `Way.take`."""
        unpackb = imported("msgpack").unpackb

        async def serve(socket: Any) -> None:
            async for data in socket:
                taken(unpackb(data, object_hook=_unpack))

        asyncio.run(_listen(pipe, serve))

    @contextmanager
    def give(self, address: Any, shared: Any, nbytes: int) -> Iterator[Give]:
        """See `Way.give`."""
        packer = imported("msgpack").Packer(default=_pack)
        with _connected(address) as socket:
            yield lambda tree: socket.send(packer.pack(tree)), lambda: None


def _connected(address: str) -> Any:
    return imported("websockets.sync.client").connect(address, compression=None, max_size=None, ping_interval=None)


async def _listen(pipe: Any, serve: Any) -> None:
    server = imported("websockets.asyncio.server")
    async with server.serve(serve, "127.0.0.1", 0, compression=None, max_size=None, ping_interval=None) as listening:
        pipe.send(f"ws://127.0.0.1:{listening.sockets[0].getsockname()[1]}")
        leave_when_told(pipe)
        await asyncio.get_running_loop().create_future()
