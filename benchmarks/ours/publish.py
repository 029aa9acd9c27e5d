"""`publish_network`, to subscribers that read views."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks.broadcast import Caster, OnParams, Publish, case
from benchmarks.harness import Mark
from benchmarks.ours.ways import TIMEOUT_MS, address_for
from edgeml_ipc.trainer import TrainerClient, TrainerConfig, TrainerServer


class NetworkCaster(Caster):
    """A trainer server and its clients.

    Args:
        scheme: "shm" or "tcp".
    """

    layer = "ours"

    def __init__(self, scheme: str) -> None:
        """Name it."""
        self.name, self.title = scheme, f"publish_network, {scheme}"

    @contextmanager
    def publishing(self, subscribers: int) -> Iterator[tuple[Any, Publish]]:
        """See `Caster.publishing`."""
        with TrainerServer(TrainerConfig(port_number=0), host=address_for(self.name)) as server:
            server.start(threaded=True)
            yield server.address, server.publish_network

    def subscribe(self, pipe: Any, address: Any, on_params: OnParams) -> None:
        """See `Caster.subscribe`."""
        with TrainerClient("bench", address, TrainerConfig(), timeout_ms=TIMEOUT_MS) as client:
            client.recv_network_callback(lambda params: on_params(list(params.values())))
            pipe.send("ready")
            pipe.recv()


_MARKS = {"shm": (Mark("p50_us", at_least=1 / 1.3, of_floor=True),)}
CASES = [
    case(NetworkCaster(scheme), subscribers, _MARKS.get(scheme, ())) for scheme in ("shm", "tcp") for subscribers in (1, 3)
]
