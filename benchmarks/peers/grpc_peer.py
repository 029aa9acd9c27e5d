"""gRPC: one generic method that takes and gives bytes; streams of pickled trees."""

from __future__ import annotations

import pickle
import queue
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np

from benchmarks.processes import leave_when_told
from benchmarks.way import Ask, Give, Handler, OnTaken, Way, as_array, imported

UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
WAITING = 1000  # trees that wait for the thread which sends
METHOD = "/bench.Bench/Act"


class GrpcWay(Way):
    """Bytes as they are: protocol buffers would copy them once more."""

    name, title, module = "grpc", "gRPC, generic bytes", "grpc"

    def answer(self, pipe: Any, shared: Any, nbytes: int, handler: Handler) -> None:
        """See `Way.answer`."""
        grpc = imported("grpc")
        _serve(pipe, grpc.unary_unary_rpc_method_handler(lambda data, _: handler(as_array(data)).tobytes()))

    @contextmanager
    def ask(self, address: Any, shared: Any, nbytes: int) -> Iterator[Ask]:
        """See `Way.ask`."""
        with imported("grpc").insecure_channel(address, options=UNLIMITED) as channel:
            method = channel.unary_unary(METHOD)

            def call(array: np.ndarray) -> np.ndarray:
                return as_array(method(array.tobytes()))

            yield call

    def take(self, pipe: Any, shared: Any, nbytes: int, taken: OnTaken) -> None:
        """See `Way.take`."""
        grpc = imported("grpc")

        def receive(requests: Iterator[bytes], _: Any) -> bytes:
            for data in requests:
                taken(pickle.loads(data))  # noqa: S301 - of our own other process
            return b""

        _serve(pipe, grpc.stream_unary_rpc_method_handler(receive))

    @contextmanager
    def give(self, address: Any, shared: Any, nbytes: int) -> Iterator[Give]:
        """See `Way.give`."""
        with imported("grpc").insecure_channel(address, options=UNLIMITED) as channel:
            waiting: queue.Queue[bytes] = queue.Queue(WAITING)
            done = channel.stream_unary(METHOD).future(iter(waiting.get, b""))
            yield lambda tree: waiting.put(pickle.dumps(tree, 5)), lambda: None
            waiting.put(b"")
            done.result()


def _serve(pipe: Any, handler: Any) -> None:
    grpc = imported("grpc")
    service = METHOD.split("/")[1]
    server = grpc.server(ThreadPoolExecutor(1), options=UNLIMITED)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, {METHOD.split("/")[2]: handler})])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    pipe.send(f"127.0.0.1:{port}")
    leave_when_told(pipe)
    server.wait_for_termination()
