"""What others need for the same: raw zmq sockets and the standard library's pipe."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import zmq

from benchmarks import payloads
from benchmarks.harness import Case, Placement, Round, Sample, repeat
from benchmarks.processes import spawned

LARGE_BYTES = 64 * 1024  # from here on zmq is asked not to copy


def answer_to(message: Any) -> bytes:
    """Small messages come back as they are; of large ones every page is read, and an action's worth comes back."""
    if len(message) < LARGE_BYTES:
        return bytes(message)
    payloads.touch(np.frombuffer(message, np.uint8))
    return bytes(payloads.ACTION_BYTES)


def zmq_server(pipe: Any, endpoint: str) -> None:
    """Answer until an empty message comes."""
    with zmq.Context() as context, context.socket(zmq.PAIR) as socket:
        socket.bind(endpoint)
        pipe.send(socket.getsockopt_string(zmq.LAST_ENDPOINT))
        while True:
            message = socket.recv(copy=False).buffer
            if len(message) == 0:
                return
            socket.send(answer_to(message))


def pipe_server(pipe: Any) -> None:
    """Answer until the word "stop" comes; the control pipe is the pipe that is measured."""
    pipe.send("ready")
    while True:
        message = pipe.recv_bytes()
        if len(message) < payloads.SMALL_BYTES:  # the pickled "stop"
            return
        pipe.send_bytes(answer_to(message))


def round_of(operation: Callable[[], object]) -> Round:
    """Turn a plain operation into a round."""
    return lambda seconds: Sample(repeat(operation, seconds))


@contextmanager
def zmq_round_trip(placement: Placement, kind: str, nbytes: int) -> Iterator[Round]:
    """One PAIR socket on each side."""
    message = np.ones(nbytes, np.uint8).tobytes()
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="edgeml-bench-"))
        endpoint = f"ipc://{folder}/socket" if kind == "ipc" else "tcp://127.0.0.1:*"
        _, address = stack.enter_context(spawned(placement, 0, zmq_server, endpoint))
        socket = stack.enter_context(stack.enter_context(zmq.Context()).socket(zmq.PAIR))
        socket.linger = 1000  # milliseconds
        socket.connect(address)
        stack.callback(socket.send, b"")

        def call() -> None:
            socket.send(message, copy=nbytes < LARGE_BYTES)
            socket.recv()

        yield round_of(call)


@contextmanager
def pipe_round_trip(placement: Placement, nbytes: int) -> Iterator[Round]:
    """`multiprocessing.Pipe`, raw bytes."""
    message = np.ones(nbytes, np.uint8).tobytes()
    with spawned(placement, 0, pipe_server) as (pipe, _):

        def call() -> None:
            pipe.send_bytes(message)
            pipe.recv_bytes()

        yield round_of(call)


SMALL, IMAGE = payloads.SMALL_BYTES, payloads.OBSERVATION_BYTES
ROUND_TRIP = "floor.pingpong.spin"
COPY = "floor.memcpy.921kB.warm"
CASES = [
    Case("peer.pipe.64B", "peer", "64 bytes there and back", lambda p: pipe_round_trip(p, SMALL), ROUND_TRIP),
    Case("peer.zmq-ipc.64B", "peer", "64 bytes there and back", lambda p: zmq_round_trip(p, "ipc", SMALL), ROUND_TRIP),
    Case("peer.zmq-tcp.64B", "peer", "64 bytes there and back", lambda p: zmq_round_trip(p, "tcp", SMALL), ROUND_TRIP),
    Case("peer.pipe.921kB", "peer", "image there, 48 bytes back", lambda p: pipe_round_trip(p, IMAGE), COPY),
    Case("peer.zmq-ipc.921kB", "peer", "image there, 48 bytes back", lambda p: zmq_round_trip(p, "ipc", IMAGE), COPY),
    Case("peer.zmq-tcp.921kB", "peer", "image there, 48 bytes back", lambda p: zmq_round_trip(p, "tcp", IMAGE), COPY),
]
