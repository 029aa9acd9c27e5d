"""What every way is measured with: a small round trip, images and frames, sizes from 0 B to 256 MiB, streams of transitions."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from types import MappingProxyType
from typing import Any

import numpy as np

from benchmarks import payloads
from benchmarks.harness import Axis, Case, Mark, Placement, Round, Sample
from benchmarks.processes import ANSWER_SECONDS, UNTRIMMED, ask_until_stopped, asked_by, launched, receive
from benchmarks.way import Handler, Way, as_array
from edgeml_ipc.errors import TransportUnavailable

SPIN, FUTEX = "floor.pingpong.spin", "floor.pingpong.futex"
SWEPT_BYTES = (0, 64, 1 << 10, 1 << 12, 1 << 14, 1 << 16, 1 << 18, 1 << 20, 1 << 22, 1 << 24, 1 << 26, 1 << 28)
SILENCE_SECONDS = 0.003  # before a message that finds both sides asleep
PACED_SECONDS, PACED_SHARE = 0.002, 0.5  # between transitions whose delay is measured; the share of a round that they take
RESET, AT_FULL_SPEED, END = -1, -3, -2  # in the place of a reward; others count up from 0
BATCHES = {"single": 1, "list50": payloads.STACKED, "stacked50": payloads.STACKED}


# ---- there and back


@contextmanager
def operation(address: Any, way: Way, shared: Any, nbytes: int, handler: Handler) -> Iterator[Callable[[], object]]:
    """Enter with one round trip, after one whose answer was looked at."""
    message = payloads.block(nbytes)
    with way.ask(address, shared, nbytes) as ask:
        received = as_array(ask(message)).copy()
        expected = np.ascontiguousarray(handler(message)).reshape(-1).view(np.uint8)
        if not np.array_equal(received, expected):
            raise RuntimeError(f"{way.name} answered {received[:80]} to {nbytes} bytes, expected was {expected[:80]}")
        yield lambda: ask(message)


def pause() -> None:
    """Be silent for so long that both sides fall asleep."""
    time.sleep(SILENCE_SECONDS)


@contextmanager
def round_trip(
    placement: Placement,
    way: Way,
    nbytes: int,
    handler: Handler,
    *,
    asleep: bool = False,
    environment: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[Round]:
    """A process that asks, and one that answers."""
    with ExitStack() as stack:
        shared = stack.enter_context(way.shared(nbytes))
        work = (way, shared, nbytes, handler)
        server = stack.enter_context(launched(placement.cpu_of_peer(0), environment, answering, *work))
        asking = (ask_until_stopped, operation, work, pause if asleep else None)
        asker = stack.enter_context(launched(placement.cpu_of_asker(0), environment, *asking))
        server.wait()
        yield asked_by([asker.tell(server.said, [server.pid])])


def answering(pipe: Any, way: Way, shared: Any, nbytes: int, handler: Handler) -> None:
    """Be the process that answers."""
    way.answer(pipe, shared, nbytes, handler)


# ---- one way


def numbered(kind: str) -> Callable[[int], Any]:
    """Return a function that makes the transition, or the batch, with a number in the place of its first reward."""
    if kind == "single":
        row = payloads.transition()
        return lambda number: {**row, "rewards": np.float32(number)}
    if kind == "list50":
        first, *rest = [payloads.transition() for _ in range(payloads.STACKED)]
        return lambda number: [{**first, "rewards": np.float32(number)}, *rest]
    whole = payloads.stacked()
    return lambda number: {**whole, "rewards": np.full(payloads.STACKED, number, np.float32)}


def number_of(item: Any) -> int:
    """Return the number that `numbered` put in."""
    rewards = item[0]["rewards"] if type(item) is list else item["rewards"]
    return int(rewards) if rewards.ndim == 0 else int(rewards[0])


class Taker:
    """Counts what arrives, in order or not, and tells at the end."""

    def __init__(self, pipe: Any) -> None:
        """Count for the process at the other end of the pipe."""
        self._pipe = pipe
        self._reset()

    def _reset(self) -> None:
        self._next = self._wrong = 0
        self._arrivals_ns: list[int] = []
        self._fast = False
        self._cpu_ns = 0

    def __call__(self, item: Any) -> None:
        """Take one."""
        number = number_of(item)
        if number == self._next:
            self._next += 1
            if not self._fast:
                self._arrivals_ns.append(time.monotonic_ns())
        elif number == RESET:
            self._reset()
        elif number == AT_FULL_SPEED:
            self._fast, self._next, self._cpu_ns = True, 0, time.process_time_ns()
        elif number == END:
            cpu_ns = time.process_time_ns() - self._cpu_ns
            self._pipe.send((self._next, self._wrong, self._arrivals_ns, time.monotonic_ns(), cpu_ns))
        else:
            self._wrong += 1


def taking(pipe: Any, way: Way, shared: Any, nbytes: int) -> None:
    """Be the process that takes."""
    way.take(pipe, shared, nbytes, Taker(pipe))


def giving(pipe: Any, way: Way, shared: Any, nbytes: int, kind: str) -> None:
    """Be told an address, and be the process that gives: some at leisure, then as many as go through, until "stop"."""
    make = numbered(kind)
    told = pipe.recv()
    if told == "stop":
        return
    with way.give(told[0], shared, nbytes) as (give, finish):
        pipe.send("ready")
        while (seconds := pipe.recv()) != "stop":
            give(make(RESET))
            sent_ns = []
            for number in range(max(3, int(seconds * PACED_SHARE / PACED_SECONDS))):
                time.sleep(PACED_SECONDS)
                sent_ns.append(time.monotonic_ns())
                give(make(number))
            give(make(AT_FULL_SPEED))
            finish()
            cpu_ns, began, number = time.process_time_ns(), time.monotonic_ns(), 0
            stop = began + int(seconds * 1e9)
            while time.monotonic_ns() < stop or number < 3:
                give(make(number))
                number += 1
            give(make(END))
            finish()
            pipe.send((sent_ns, began, number, time.process_time_ns() - cpu_ns))


@contextmanager
def stream(placement: Placement, way: Way, kind: str) -> Iterator[Round]:
    """A process that gives, and one that takes: rate at full speed, and the delay of each at leisure."""
    nbytes, each = 1 << 16, BATCHES[kind]
    with ExitStack() as stack:
        shared = stack.enter_context(way.shared(nbytes))
        taker = stack.enter_context(launched(placement.cpu_of_peer(0), {}, taking, way, shared, nbytes))
        giver = stack.enter_context(launched(placement.cpu_of_asker(0), {}, giving, way, shared, nbytes, kind))
        giver.tell(taker.wait().said)

        def run(seconds: float) -> Sample:
            giver.pipe.send(seconds)
            sent_ns, began, sent, giver_cpu_ns = receive(giver.pipe, ANSWER_SECONDS + seconds, "the giver's round")
            told = receive(taker.pipe, ANSWER_SECONDS, f"the last of {sent} to arrive")
            arrived, wrong, arrivals_ns, ended, taker_cpu_ns = told
            if wrong or arrived != sent or len(arrivals_ns) != len(sent_ns):
                lost = f"{arrived} of {sent} arrived in order, and {wrong} others"
                raise TransportUnavailable(f"it loses messages or their order: {lost}")
            delays = np.array(arrivals_ns) - np.array(sent_ns)
            cpu_ns = (giver_cpu_ns + taker_cpu_ns) / (sent * each)
            return Sample(delays, each, cpu_ns=cpu_ns, per_second=sent * each / ((ended - began) / 1e9))

        yield run


# ---- cases

_IMAGE, _FRAME = payloads.OBSERVATION_BYTES, payloads.FRAME_BYTES
_WARM, _ROTATING = "floor.memcpy.921kB.warm", "floor.memcpy.6MB.rotating"
_AFTER_SILENCE, _KEPT = "the same, each after 3 ms of silence", "the same, malloc keeps what is freed"


def cases(way: Way, marks: Mapping[str, tuple[Mark, ...]]) -> list[Case]:
    """Return all cases of a way; marks by the last part of a case's name."""
    prefix = way.name if way.layer == "ours" else f"peer.{way.name}"
    found: list[Case] = []

    def add(end: str, what: str, nbytes: int, handler: Handler, floor: str, **how: Any) -> None:
        def opened(placement: Placement) -> AbstractContextManager[Round]:
            return round_trip(placement, way, nbytes, handler, **how)

        name, words, heavy = f"{prefix}.{end}", f"{way.title}: {what}", "environment" in how
        group = "there and back"
        found.append(Case(name, way.layer, words, opened, floor, group, marks.get(end, ()), reopen=True, heavy=heavy))

    if way.trips:
        add("64B", "64 bytes there and back", payloads.SMALL_BYTES, payloads.echo, SPIN)
        add("64B.asleep", _AFTER_SILENCE, payloads.SMALL_BYTES, payloads.echo, FUTEX, asleep=True)
        add("921kB", "image there, 48 bytes back", _IMAGE, payloads.act, _WARM)
        add("921kB.asleep", _AFTER_SILENCE, _IMAGE, payloads.act, _WARM, asleep=True)
        add("6MB", "1080p frame there, 48 bytes back", _FRAME, payloads.act, _ROTATING)
    if way.trips and way.untrimmed:
        add("921kB.untrimmed", _KEPT, _IMAGE, payloads.act, _WARM, environment=UNTRIMMED)
        add("6MB.untrimmed", _KEPT, _FRAME, payloads.act, _ROTATING, environment=UNTRIMMED)
    return [*found, *(_streams(way, prefix, marks) if way.streams else ()), *(_sweep(way) if way.trips and way.sweeps else ())]


def _streams(way: Way, prefix: str, marks: Mapping[str, tuple[Mark, ...]]) -> Iterator[Case]:
    words = {"single": "single transitions", "list50": "lists of 50 transitions", "stacked50": "50 transitions stacked"}
    for kind, word in words.items():

        def opened(placement: Placement, kind: str = kind) -> AbstractContextManager[Round]:
            return stream(placement, way, kind)

        what = f"{way.title}: {word} one way; p50 and p99: delay at leisure; per second and CPU: of transitions, at full speed"
        end = f"stream.{kind}"
        yield Case(f"{prefix}.{end}", way.layer, what, opened, None, "one way", marks.get(end, ()), reopen=True)


def _sweep(way: Way) -> Iterator[Case]:
    for nbytes in SWEPT_BYTES:

        def opened(placement: Placement, nbytes: int = nbytes) -> AbstractContextManager[Round]:
            return round_trip(placement, way, nbytes, payloads.act)

        size, axis = payloads.size_name(nbytes), Axis("size", way.title, nbytes)
        what, name = f"{way.title}: {size} there, 48 bytes back", f"sweep.{size}.{way.name}"
        yield Case(name, way.layer, what, opened, SPIN, f"sweep.{size}", reopen=True, heavy=True, axis=axis)
