"""One publisher, some subscribers: 50 MB in ten arrays, until the last subscriber has read every page of it."""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from itertools import count
from multiprocessing import get_context
from multiprocessing.connection import wait
from typing import Any

import numpy as np

from benchmarks import payloads
from benchmarks.harness import WARM_UP_SHARE, Axis, Case, Mark, Placement, Round, Sample
from benchmarks.load import cpu_ns
from benchmarks.processes import ANSWER_SECONDS, launched, receive, spawned
from edgeml_ipc.errors import TransportUnavailable

FLOOR = "floor.memcpy.50MB.warm"
MIN_PUBLISHED = 5
ARRIVAL_SECONDS, JOIN_SECONDS, REPEAT_SECONDS = 30.0, 30.0, 0.2

Params = dict[str, np.ndarray]
Publish = Callable[[Params], object]
OnParams = Callable[[list[np.ndarray]], object]


class Caster(ABC):
    """How one library publishes. Objects are used in all processes, so they can be pickled.

    Attributes:
        name: in the names of cases. title: in words.
    """

    name: str
    title: str
    layer = "peer"

    @abstractmethod
    def publishing(self, subscribers: int) -> AbstractContextManager[tuple[Any, Publish]]:
        """Enter with the address for `subscribe`, and the function that publishes; its dict must not be kept."""

    @abstractmethod
    def subscribe(self, pipe: Any, address: Any, on_params: OnParams) -> None:
        """Subscribe, send "ready" through the pipe, and hand over the arrays of what comes, until "stop" comes."""


def subscribing(pipe: Any, caster: Caster, address: Any, report: Any) -> None:
    """Be the process of a subscriber: read one byte of every page, and report when that was done."""

    def on_params(arrays: list[np.ndarray]) -> None:
        for array in arrays:
            payloads.touch(array)
        done_ns = time.monotonic_ns()
        report.send(({int(array[0]) for array in arrays}, len(arrays), done_ns))

    caster.subscribe(pipe, address, on_params)


def publishing(pipe: Any, caster: Caster, reports: list[Any]) -> None:
    """Be the process of the publisher; each array carries the number of its publication."""
    params = payloads.network()
    numbers = count(1)
    with caster.publishing(len(reports)) as (address, publish):

        def put() -> int:
            number = next(numbers)
            for array in params.values():
                array[0] = number
            publish(params)
            return number

        def one() -> int:
            began = time.monotonic_ns()
            number = put()
            return max(_reached(report, number) for report in reports) - began

        pipe.send(address)
        while (told := pipe.recv()) != "stop":
            seconds, pids = told
            _join(put, reports)
            end_warm_up = time.monotonic() + seconds * WARM_UP_SHARE
            while time.monotonic() < end_warm_up:
                one()
            us = [os.getpid()]
            before, answering_before = cpu_ns(us + pids), cpu_ns(us)
            times, stop = [one()], time.monotonic() + seconds
            while time.monotonic() < stop or len(times) < MIN_PUBLISHED:
                times.append(one())
            used_ns, answering_ns = cpu_ns(us + pids) - before, cpu_ns(us) - answering_before
            pipe.send(Sample(np.array(times, np.int64), cpu_ns=used_ns, answering_ns=answering_ns))


def _join(put: Callable[[], int], reports: list[Any]) -> None:
    """Publish until every subscriber has had something, and all have had the last one."""
    missing = set(reports)
    deadline = time.monotonic() + JOIN_SECONDS
    number = put()
    while missing:
        ready = wait(missing, REPEAT_SECONDS)
        if not ready:
            number = put()
        for report in ready:
            report.recv()
            missing.discard(report)
        if time.monotonic() > deadline:
            raise TransportUnavailable(f"{len(missing)} subscribers had nothing for {JOIN_SECONDS:.0f} s")
    number = put()
    for report in reports:
        _reached(report, number)


def _reached(report: Any, number: int) -> int:
    """Wait until a subscriber has had that publication, and return when."""
    while True:
        seen, arrays, at_ns = receive(report, ARRIVAL_SECONDS, f"publication {number} to arrive")
        if len(seen) != 1 or arrays != payloads.NETWORK_ARRAYS:
            raise RuntimeError(f"one publication held {arrays} arrays of the publications {sorted(seen)}")
        if seen == {number}:
            return int(at_ns)


@contextmanager
def broadcast(placement: Placement, caster: Caster, subscribers: int) -> Iterator[Round]:
    """All in processes of their own."""
    with ExitStack() as stack:
        pairs = [get_context("spawn").Pipe() for _ in range(subscribers)]
        ours, theirs = [a for a, _ in pairs], [b for _, b in pairs]
        publisher = stack.enter_context(launched(placement.cpu_of_asker(0), {}, publishing, caster, ours)).wait()
        pids = []
        for index, report in enumerate(theirs):
            args = (caster, publisher.said, report)
            pids.append(stack.enter_context(spawned(placement, index, subscribing, *args)).pid)
        for end in (*ours, *theirs):
            end.close()

        def run(seconds: float) -> Sample:
            publisher.pipe.send((seconds, pids))
            sample: Sample = receive(publisher.pipe, ANSWER_SECONDS + seconds, "the publisher's round")
            return sample

        yield run


def case(
    caster: Caster, subscribers: int, marks: tuple[Mark, ...] = (), axis: Axis | None = None, *, heavy: bool = False
) -> Case:
    """Return the case of so many subscribers."""
    what = f"{caster.title}: 50 MB, until {subscribers} subscriber(s) have read every page"
    name = f"{'scale' if axis else 'publish' if caster.layer == 'ours' else 'peer'}.{caster.name}.50MB.to-{subscribers}"
    group = "broadcast" if axis is None else "scale.subscribers"
    return Case(name, caster.layer, what, lambda p: broadcast(p, caster, subscribers), FLOOR, group, marks, True, heavy, axis)
