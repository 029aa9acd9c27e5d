"""What the service tests run in processes of their own."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import numpy as np

from edgeml_ipc.data.data_store import QueuedDataStore
from edgeml_ipc.service import Client, Server
from edgeml_ipc.trainer import TrainerClient, TrainerConfig

CONFIG = {"version": "1"}


def _die(_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def serve(address: str, tell: Any) -> None:
    """Serve echo and die until killed; send the address through `tell`."""
    server = Server(
        address, service="test", config=CONFIG, handlers={"echo": lambda x: x, "pid": lambda _: os.getpid(), "die": _die}
    )
    tell.send(server.address)
    server.start()


def serve_until_interrupted() -> None:
    """Serve in the main thread of a program of its own; print the address, and `clean` when `start` has returned."""
    server = Server(sys.argv[1], service="test", config=CONFIG, handlers={"echo": lambda x: x})
    print(server.address, flush=True)
    server.start()
    print("clean", flush=True)


def call_often(address: str, calls: int, tell: Any) -> None:
    """Call echo many times, and send what came back wrong."""
    with Client(address, service="test", config=CONFIG, wait_for_server=True, timeout=20) as client:
        wrong = [i for i in range(calls) if not np.array_equal(client.call("echo", np.full(100, i)), np.full(100, i))]
    tell.send(wrong)


def upload(address: str, name: str, first: int, count: int, tell: Any) -> None:
    """Fill a queue and upload it; send what the update says."""
    queue = QueuedDataStore(10_000)
    config = TrainerConfig(port_number=0)
    with TrainerClient(name, address, config, data_stores={"steps": queue}, wait_for_server=True, timeout_ms=20_000) as client:
        for i in range(first, first + count):
            queue.insert({"step": np.array([i]), "reward": float(i)})
        result = client.update()
    tell.send((result.sent, result.evicted, result.lost))


if __name__ == "__main__":
    serve_until_interrupted()
