"""What the three services stand on: a server with handlers, and a client that calls them, wherever they run.

`Server` and `Client` are the public parts; a service of your own is a dict of handlers and a config that both sides share.

    server = Server("inproc://adder", service="adder", config={}, handlers={"add": sum})
    server.start(threaded=True)
    with Client("inproc://adder", service="adder", config={}) as client:
        client.call("add", [1, 2])  # 3
    server.stop()
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from edgeml_ipc._address import complete_address
from edgeml_ipc._client import DEFAULT_TIMEOUT_SECONDS, DEFAULT_WAIT_SECONDS, Client
from edgeml_ipc._guests import Caller, Guest, Handler
from edgeml_ipc._server import Server
from edgeml_ipc._ticket import LATER, Ticket
from edgeml_ipc.transports.base import Options

if TYPE_CHECKING:
    from edgeml_ipc.security import Keys

__all__ = [
    "DEFAULT_TIMEOUT_SECONDS",
    "DEFAULT_WAIT_SECONDS",
    "LATER",
    "Caller",
    "Client",
    "Guest",
    "Handler",
    "Server",
    "Ticket",
    "complete_address",
    "options_for",
    "set_log_level",
]


def options_for(keys: Keys | None, insecure: bool = False) -> Options:
    """Return a transport's options for the security arguments that servers and clients take."""
    return Options(keys=keys, insecure=insecure)


def set_log_level(level: int | str | None) -> None:
    """Set the level of this library's logger, and of no other; None leaves it as it is."""
    if level is not None:
        logging.getLogger("edgeml_ipc").setLevel(level)
