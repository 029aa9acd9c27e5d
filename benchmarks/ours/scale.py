"""How cost grows: clients of one server, subscribers of one publisher, actors that fill one buffer."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from typing import Any

import numpy as np

from benchmarks import payloads
from benchmarks.broadcast import case as broadcast_case
from benchmarks.harness import Axis, Case, Placement, Round, Sample
from benchmarks.ours.publish import NetworkCaster
from benchmarks.ours.ways import ServiceWay
from benchmarks.processes import Other, ask_until_stopped, asked_by, launched
from benchmarks.replay.data import STATE, our_transitions, piece, spaces, turns
from benchmarks.shapes import SPIN, answering, operation
from benchmarks.way import Handler
from edgeml_ipc.data import ReplayBuffer

CLIENTS, SUBSCRIBERS, ACTORS = (1, 2, 4, 8, 16, 32, 64), (1, 2, 4, 8, 16), (1, 2, 4, 8)
DEVICE_CLIENTS = (1, 2, 4, 8, 16)
DEVICE_SECONDS, THINK_SECONDS = 0.002, 0.01  # of a callback that waits for a device; of a client, on average
MIN_DEVICE_SECONDS = 1.0  # the queue must grow before it is looked at
MEAN = "µs to an answer on average"
_numbers = count()


def on_a_device(_: np.ndarray) -> np.ndarray:
    """Return an action after a wait, as for a policy that runs on another device: no CPU is used meanwhile."""
    time.sleep(DEVICE_SECONDS)
    return payloads.act(np.empty(0, np.uint8))


def think() -> None:
    """Pause for an exponential time, so that clients do not fall into step."""
    time.sleep(random.expovariate(1 / THINK_SECONDS))


@contextmanager
def clients(
    placement: Placement,
    scheme: str,
    number: int,
    handler: Handler = payloads.act,
    pause: Callable[[], object] | None = None,
) -> Iterator[Round]:
    """So many processes that call one server, without a pause if None is given."""
    work = (ServiceWay(scheme), None, payloads.SMALL_BYTES, handler)
    with ExitStack() as stack:
        server = stack.enter_context(launched(placement.cpu_of_peer(0), {}, answering, *work))
        askers = [_asker(stack, placement.cpu_of_asker(index), operation, work, pause) for index in range(number)]
        server.wait()
        for index, asker in enumerate(askers):
            asker.tell(server.said, [server.pid] if index == 0 else [])
        yield asked_by(askers)


@contextmanager
def on_one_device(placement: Placement, number: int) -> Iterator[Round]:
    """So many processes that think between calls to a server whose callback waits for a device."""
    with clients(placement, "tcp", number, on_a_device, think) as asked:

        def run(seconds: float) -> Sample:
            sample = asked(max(seconds, MIN_DEVICE_SECONDS))
            sample.figures[MEAN] = float(sample.latencies_ns.mean()) / 1e3
            return sample

        yield run


def _asker(stack: ExitStack, cpu: int | None, *asking: Any) -> Other:
    return stack.enter_context(launched(cpu, {}, ask_until_stopped, *asking))


@contextmanager
def inserting(name: str) -> Iterator[Callable[[], object]]:
    """Attach to a buffer and insert transitions, one by one."""
    with ReplayBuffer.attach(name) as buffer:
        following, insert = turns(our_transitions(piece(STATE))), buffer.insert
        yield lambda: insert(following())


@contextmanager
def actors(placement: Placement, number: int) -> Iterator[Round]:
    """So many processes that insert into one buffer of 1 M transitions, which nobody reads."""
    name = f"edgeml-bench-{os.getpid()}-{next(_numbers)}"
    with ReplayBuffer(*spaces(STATE), STATE.rows, name=name, seed=0) as buffer, ExitStack() as stack:
        stack.callback(buffer.unlink)
        askers = [_asker(stack, placement.cpu_of_peer(index), inserting) for index in range(number)]
        for asker in askers:
            asker.tell(name, [])
        yield asked_by(askers)


def _clients(scheme: str, number: int) -> Case:
    what = f"{number} clients call one server over {scheme}, 64 bytes there, 48 back; per second: of all"
    axis = Axis("clients", f"InferenceClient.call, {scheme}", number)
    name, group = f"scale.clients.{scheme}.{number}", "scale.clients"
    return Case(name, "ours", what, lambda p: clients(p, scheme, number), SPIN, group, (), True, True, axis)


def _on_one_device(number: int) -> Case:
    what = (
        f"{number} clients call one server over tcp, whose callback waits {1e3 * DEVICE_SECONDS:g} ms, and pause "
        f"{1e3 * THINK_SECONDS:g} ms on average in between, which is not counted"
    )
    return Case(
        f"scale.device.tcp.{number}",
        "ours",
        what,
        lambda p: on_one_device(p, number),
        group="scale.device",
        reopen=True,
        heavy=True,
    )


def _actors(number: int) -> Case:
    what = f"{number} actors insert one by one into one buffer; per second: of all"
    axis = Axis("actors", "ReplayBuffer.insert", number)
    return Case(f"scale.actors.{number}", "ours", what, lambda p: actors(p, number), None, "scale.actors", (), True, True, axis)


CASES = [
    *(_clients(scheme, number) for scheme in ("shm", "tcp") for number in CLIENTS),
    *(
        broadcast_case(
            NetworkCaster(scheme), number, axis=Axis("subscribers", f"publish_network, {scheme}", number), heavy=True
        )
        for scheme in ("shm", "tcp")
        for number in SUBSCRIBERS
    ),
    *(_on_one_device(number) for number in DEVICE_CLIENTS),
    *(_actors(number) for number in ACTORS),
]
