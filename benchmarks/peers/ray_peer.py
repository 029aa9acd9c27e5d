"""Ray, a compiled graph with one actor: channels in shared memory between the driver and the actor."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks import payloads
from benchmarks.way import Ask, Handler, Way, imported

ROOM_BYTES = 1 << 20  # beside one message


class RayWay(Way):
    """A cluster of its own on this machine; the actor is one of Ray's processes, which Ray places."""

    name, title, module = "ray", "Ray, compiled graph", "ray"
    streams = sweeps = untrimmed = False

    def answer(self, pipe: Any, shared: Any, nbytes: int, handler: Handler) -> None:
        """Say which function the actor shall call: it answers from a process of Ray's."""
        self.need()
        pipe.send("echo" if handler is payloads.echo else "act")
        pipe.recv()

    @contextmanager
    def ask(self, address: Any, shared: Any, nbytes: int) -> Iterator[Ask]:
        """See `Way.ask`."""
        ray, dag = imported("ray"), imported("ray.dag")
        ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR, configure_logging=False)

        class Answering:
            def answer(self, array: Any) -> Any:
                return getattr(payloads, address)(array)

        try:
            actor = ray.remote(Answering).remote()
            with dag.InputNode() as node:
                graph = actor.answer.bind(node)
            compiled = graph.experimental_compile(_buffer_size_bytes=nbytes + ROOM_BYTES)
            yield lambda array: ray.get(compiled.execute(array))
            compiled.teardown()
        finally:
            ray.shutdown()
