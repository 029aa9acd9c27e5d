"""What nothing costs: a server and 16 clients that are idle, and the import."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np

from benchmarks.harness import Case, Mark, Placement, Round, Sample
from benchmarks.load import cpu_ns
from benchmarks.ours.ways import TIMEOUT_MS, address_for
from benchmarks.processes import spawned
from edgeml_ipc.trainer import TrainerClient, TrainerConfig, TrainerServer

CLIENTS = 16
MIN_SECONDS = 2.0
IDLE_FIGURE, IMPORT_FIGURE, NAMES_FIGURE = (
    "% of a core",
    "ms above numpy and pyzmq",
    "ms with its services and buffers",
)
NOTHING = np.empty(0, np.int64)


def idle_server(pipe: Any, host: str) -> None:
    """Serve nobody who asks."""
    with TrainerServer(TrainerConfig(port_number=0), host=host) as server:
        server.start(threaded=True)
        server.publish_network({"weights": np.zeros(1000, np.float32)})
        pipe.send(server.address)
        pipe.recv()


def idle_client(pipe: Any, address: str) -> None:
    """Wait for networks, of which there is one."""
    with TrainerClient("bench", address, TrainerConfig(), timeout_ms=TIMEOUT_MS) as client:
        client.recv_network_callback(lambda params: pipe.send("ready"))
        pipe.recv()


@contextmanager
def idle(placement: Placement, scheme: str) -> Iterator[Round]:
    """A server and clients in processes of their own, each with its callback waiting."""
    with ExitStack() as stack:
        server = stack.enter_context(spawned(placement, 0, idle_server, address_for(scheme)))
        clients = [stack.enter_context(spawned(placement, 1 + i, idle_client, server.said)) for i in range(CLIENTS)]
        pids = [other.pid for other in (server, *clients)]

        def run(seconds: float) -> Sample:
            before, began = cpu_ns(pids), time.monotonic_ns()
            time.sleep(max(seconds, MIN_SECONDS))
            share = (cpu_ns(pids) - before) / (time.monotonic_ns() - began)
            return Sample(NOTHING, figures={IDLE_FIGURE: 100 * share})

        yield run


_IMPORT = """
import time, numpy, zmq
began = time.perf_counter()
import edgeml_ipc
alone = time.perf_counter()
edgeml_ipc.ActionClient, edgeml_ipc.InferenceServer, edgeml_ipc.TrainerServer, edgeml_ipc.ReplayBuffer
print(1e3 * (alone - began), 1e3 * (time.perf_counter() - began))
"""


@contextmanager
def imports(_placement: Placement) -> Iterator[Round]:
    """A fresh interpreter each time, of modules that the first one compiled and left in the page cache.

    The compiled ones lie in a folder of their own: else the sources would be compiled each time where
    `PYTHONDONTWRITEBYTECODE` is set, or the checkout cannot be written, and that would be most of what is measured.
    """
    with tempfile.TemporaryDirectory(prefix="edgeml-bench-") as compiled:
        command = [sys.executable, "-X", f"pycache_prefix={compiled}", "-c", _IMPORT]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}

        def once() -> list[float]:
            done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
            return [float(word) for word in done.stdout.split()]

        once()

        def run(seconds: float) -> Sample:
            alone, names = np.median([once() for _ in range(3)], axis=0)
            return Sample(NOTHING, figures={IMPORT_FIGURE: float(alone), NAMES_FIGURE: float(names)})

        yield run


CASES = [
    *(
        Case(
            f"idle.{scheme}",
            "ours",
            f"CPU of a trainer server and {CLIENTS} clients with callbacks over {scheme}, while nothing happens",
            lambda p, scheme=scheme: idle(p, scheme),
            group="idle",
            marks=(Mark(IDLE_FIGURE, at_most=0.5),),
        )
        for scheme in ("shm", "tcp")
    ),
    Case(
        "import",
        "ours",
        "import edgeml_ipc",
        imports,
        group="import",
        marks=(Mark(IMPORT_FIGURE, at_most=40), Mark(NAMES_FIGURE, at_most=40)),
    ),
]
