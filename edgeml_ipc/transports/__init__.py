"""Find the transport that an address names: `connect`, `listen`, and the registry behind them.

The only module that knows the default transport. The language-neutral half (C sources, wire and memory specs) lies in the
folder `transports/` at the root of the repository.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

from edgeml_ipc.errors import TransportUnavailable
from edgeml_ipc.transports.base import Connection, Listener, Options, Transport, Welcome

DEFAULT_SCHEME = "auto"
ENTRY_POINT_GROUP = "edgeml_ipc.transports"

_BUILT_IN = {
    "auto": "edgeml_ipc.transports.auto:AutoTransport",
    "inproc": "edgeml_ipc.transports.inproc:InprocTransport",
    "shm": "edgeml_ipc.transports.shm:ShmTransport",
    "tcp": "edgeml_ipc.transports.zeromq:TcpTransport",
}
_loaded: dict[str, Transport] = {}


def split_address(address: str) -> tuple[str, str]:
    """Split `scheme://rest`; an address without a scheme belongs to the default transport."""
    scheme, separator, rest = address.partition("://")
    return (scheme, rest) if separator else (DEFAULT_SCHEME, address)


def transport_for(scheme: str) -> Transport:
    """Return the transport of that scheme: a built-in one, or one that an installed package registered.

    Raises:
        TransportUnavailable: no transport has that name, or two packages registered it.
    """
    if scheme in _loaded:
        return _loaded[scheme]
    if scheme in _BUILT_IN:
        module, _, name = _BUILT_IN[scheme].partition(":")
        factory = getattr(importlib.import_module(module), name)
    else:
        factory = _registered(scheme)
    return _loaded.setdefault(scheme, factory())


def _registered(scheme: str) -> Any:
    from importlib.metadata import entry_points  # here, since it is slow to import and seldom needed

    found = list(entry_points(group=ENTRY_POINT_GROUP, name=scheme))
    if len(found) != 1:
        others = sorted({e.name for e in entry_points(group=ENTRY_POINT_GROUP)})
        raise TransportUnavailable(
            f"{len(found)} packages register a transport named {scheme!r}; built in are {sorted(_BUILT_IN)}, "
            f"registered by other packages: {others or 'none'}"
        )
    return found[0].load()


def connect(
    address: str, *, hello: bytes = b"", topics: Sequence[int] = (), timeout: float, options: Options | None = None
) -> Connection:
    """Connect to `address` by the transport that it names; see `Transport.connect`."""
    scheme, rest = split_address(address)
    return transport_for(scheme).connect(
        f"{scheme}://{rest}", hello=hello, topics=topics, timeout=timeout, options=options or Options()
    )


def listen(address: str, *, welcome: Welcome, options: Options | None = None) -> Listener:
    """Listen at `address` by the transport that it names; see `Transport.listen`."""
    scheme, rest = split_address(address)
    return transport_for(scheme).listen(f"{scheme}://{rest}", welcome=welcome, options=options or Options())
