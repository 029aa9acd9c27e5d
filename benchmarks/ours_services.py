"""Our services, used as a program uses them: an inference call, an upload of transitions, a network for all actors."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from typing import Any

import numpy as np

from benchmarks import payloads
from benchmarks.harness import Case, Placement, Round, Sample, repeat
from benchmarks.ours_transports import address_for
from benchmarks.peers import COPY, ROUND_TRIP, round_of
from benchmarks.processes import receive, spawned
from edgeml_ipc.data import QueuedDataStore
from edgeml_ipc.inference import InferenceClient, InferenceServer
from edgeml_ipc.trainer import TrainerClient, TrainerConfig, TrainerServer

TIMEOUT_MS = 10_000
QUEUE_CAPACITY = 20_000
STORE = "replay"


# Inference


def act_on(observation: dict[str, np.ndarray]) -> dict[str, Any]:
    """Read one byte of every page of the image and return a small action, and what the pages hold."""
    pages_sum = payloads.touch(observation["image"])
    return {"action": np.zeros(payloads.ACTION_BYTES // 8), "pages_sum": pages_sum}


def inference_server(pipe: Any, host: str) -> None:
    """Serve `echo` and `act` until told to stop."""
    with InferenceServer(port_num=0, host=host) as server:
        server.register_interface("echo", lambda payload: payload)
        server.register_interface("act", act_on)
        server.start(threaded=True)
        pipe.send(server.address)
        pipe.recv()


@contextmanager
def call(placement: Placement, transport: str, interface: str) -> Iterator[Round]:
    """`InferenceClient.call`, one at a time."""
    payload = payloads.small() if interface == "echo" else {"image": payloads.observation()}
    with (
        spawned(placement, 0, inference_server, address_for(transport)) as (_, address),
        InferenceClient(address, 0, timeout_ms=TIMEOUT_MS) as client,
    ):
        answer = client.call(interface, payload)
        if interface == "echo" and not np.array_equal(answer["x"], payload["x"]):
            raise RuntimeError(f"echo gave {answer}, sent was {payload}")
        if interface == "act" and answer["pages_sum"] != payloads.touch(payload["image"]):
            raise RuntimeError(f"the server read another image than was sent: its pages sum to {answer['pages_sum']}")
        yield round_of(lambda: client.call(interface, payload))


# Uploads


def upload_server(pipe: Any, host: str) -> None:
    """Take transitions until told to stop."""
    with TrainerServer(TrainerConfig(port_number=0), host=host) as server:
        server.register_data_store(STORE, QueuedDataStore(QUEUE_CAPACITY))
        server.start(threaded=True)
        pipe.send(server.address)
        pipe.recv()


@contextmanager
def update(placement: Placement, transport: str) -> Iterator[Round]:
    """`TrainerClient.update` with 256 transitions in the queue; putting them there is not timed."""
    queue = QueuedDataStore(QUEUE_CAPACITY)
    row = payloads.transition()

    def fill() -> None:
        for _ in range(payloads.TRANSITIONS_PER_UPDATE):
            queue.insert(row)

    with (
        spawned(placement, 0, upload_server, address_for(transport)) as (_, address),
        TrainerClient("bench", address, TrainerConfig(), data_stores={STORE: queue}, timeout_ms=TIMEOUT_MS) as client,
    ):
        yield lambda seconds: Sample(repeat(client.update, seconds, prepare=fill), things=payloads.TRANSITIONS_PER_UPDATE)


# Networks


def subscriber(pipe: Any, address: str) -> None:
    """Read one byte of every page of each network, and say when that was done."""

    def on_network(params: dict[str, Any]) -> None:
        for array in params.values():
            payloads.touch(array)
        done_ns = time.monotonic_ns()
        numbers = {int(array[0]) for array in params.values()}  # each array carries the number of its publication
        pipe.send((numbers, done_ns))

    with TrainerClient("bench", address, TrainerConfig(), timeout_ms=TIMEOUT_MS) as client:
        client.recv_network_callback(on_network)
        pipe.send("ready")
        pipe.recv()


@contextmanager
def publish(placement: Placement, transport: str, subscribers: int) -> Iterator[Round]:
    """`publish_network` until the last subscriber has read every page; the publisher is this process."""
    params = payloads.network()
    with ExitStack() as stack:
        server = stack.enter_context(TrainerServer(TrainerConfig(port_number=0), host=address_for(transport)))
        server.start(threaded=True)
        opened = [stack.enter_context(spawned(placement, i, subscriber, server.address)) for i in range(subscribers)]
        pipes = [pipe for pipe, _ in opened]

        def reached(pipe: Any, number: int) -> int:
            while True:
                seen, at_ns = receive(pipe, TIMEOUT_MS / 1e3, f"network {number} to arrive over {transport}")
                if len(seen) != 1:
                    raise RuntimeError(f"one network held arrays of several publications: {sorted(seen)}")
                if seen == {number}:
                    return int(at_ns)

        numbers = count(1)

        def one() -> int:
            number = next(numbers)
            for array in params.values():
                array[0] = number
            began = time.monotonic_ns()
            server.publish_network(params)
            return max(reached(pipe, number) for pipe in pipes) - began

        def run(seconds: float) -> Sample:
            one()
            stop = time.monotonic() + seconds
            times = [one()]
            while time.monotonic() < stop or len(times) < 5:
                times.append(one())
            return Sample(np.array(times, np.int64))

        yield run


def _cases(transport: str) -> list[Case]:
    transitions = f"update() with {payloads.TRANSITIONS_PER_UPDATE} transitions; per second: transitions"
    return [
        Case(
            f"call.{transport}.64B",
            "ours",
            "InferenceClient.call, 64 bytes there and back",
            lambda p: call(p, transport, "echo"),
            ROUND_TRIP,
        ),
        Case(
            f"call.{transport}.921kB",
            "ours",
            "InferenceClient.call, image there, 48 bytes back",
            lambda p: call(p, transport, "act"),
            COPY,
        ),
        Case(f"update.{transport}", "ours", transitions, lambda p: update(p, transport), "floor.memcpy.transitions"),
        *(
            Case(
                f"publish.{transport}.50MB.to-{readers}",
                "ours",
                f"publish_network until {readers} subscriber(s) read every page",
                lambda p, readers=readers: publish(p, transport, readers),
                "floor.memcpy.50MB.warm",
            )
            for readers in (1, 3)
        ),
    ]


CASES = [*_cases("shm"), *_cases("tcp")]
