"""What a case is, how one round of it is timed, and how rounds of many cases are interleaved."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from edgeml_ipc.errors import TransportUnavailable

WARM_UP_SHARE = 0.2
MIN_OPERATIONS = 3


@dataclass(frozen=True)
class Placement:
    """Where processes run: each on a CPU of its own, or wherever the kernel puts them."""

    name: str
    cpus: tuple[int, ...] | None  # this process on the first, the others on the rest, in turn; None: no pinning

    def cpu_of_peer(self, index: int) -> int | None:
        """Return the CPU of the `index`-th other process, or None."""
        return None if self.cpus is None else self.cpus[1 + index % (len(self.cpus) - 1)]

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Pin this thread, and so all that it starts, until the block ends."""
        before = os.sched_getaffinity(0)
        if self.cpus is not None:
            os.sched_setaffinity(0, {self.cpus[0]})
        try:
            yield
        finally:
            os.sched_setaffinity(0, before)


def placements() -> list[Placement]:
    """List the placements that this machine allows: pinning needs two CPUs."""
    cpus = tuple(sorted(os.sched_getaffinity(0)))
    return [Placement("unpinned", None)] + ([Placement("pinned", cpus)] if len(cpus) > 1 else [])


@dataclass(frozen=True)
class Sample:
    """One round: the time of each repetition, how many things each repetition did, and what else was found.

    Attributes:
        latencies_ns: none, where what was found is all that counts.
        figures: by name and unit: what others did meanwhile, or sizes.
    """

    latencies_ns: np.ndarray
    things: int = 1
    figures: dict[str, float] = field(default_factory=dict)

    def summary(self) -> dict[str, float]:
        """Return p50_us, p99_us and per_second of this round, and the other figures."""
        if not len(self.latencies_ns):
            return dict(self.figures)
        p50, p99 = np.percentile(self.latencies_ns, [50, 99]) / 1e3
        seconds = float(self.latencies_ns.sum()) / 1e9
        rate = self.things * len(self.latencies_ns) / seconds
        return {"p50_us": float(p50), "p99_us": float(p99), "per_second": rate, **self.figures}


@dataclass(frozen=True)
class Mark:
    """What a case should reach.

    Attributes:
        figure: a key of `Sample.summary`. With `of_floor` it is compared with the same figure of the case's floor, so that
            more is better: how many times as fast for "p50_us" and "p99_us", else how many times as much.
        at_least, at_most: one of the two is given.
        aim: what would be better still, if anything.
    """

    figure: str
    at_least: float | None = None
    at_most: float | None = None
    of_floor: bool = False
    aim: float | None = None

    def is_met(self, value: float) -> bool:
        """Tell whether a value is good enough."""
        return (self.at_least is None or value >= self.at_least) and (self.at_most is None or value <= self.at_most)


Round = Callable[[float], Sample]  # takes the seconds that it may last


@dataclass(frozen=True)
class Case:
    """One thing to measure.

    Attributes:
        name: unique; `--only` matches a part of it.
        layer: "floor", "plain" (numpy alone: what one would write oneself, and no bound), "peer" or "ours".
        what: one repetition, in words.
        open: sets everything up (other processes included), yields the round, and takes everything down.
        floor: name of the case that this one is compared with, if any.
        group: cases of one group are open together and take turns; what is compared is in one group.
        marks: what should be reached.
    """

    name: str
    layer: str
    what: str
    open: Callable[[Placement], AbstractContextManager[Round]]
    floor: str | None = None
    group: str = ""
    marks: tuple[Mark, ...] = ()


def repeat(operation: Callable[[], object], seconds: float, *, prepare: Callable[[], object] | None = None) -> np.ndarray:
    """Time `operation` again and again, back to back, and return nanoseconds; what `prepare` does is not timed."""
    clock = time.perf_counter_ns
    end_warm_up = clock() + int(seconds * WARM_UP_SHARE * 1e9)
    warmed = 0
    while clock() < end_warm_up or warmed < MIN_OPERATIONS:
        if prepare is not None:
            prepare()
        operation()
        warmed += 1
    stop = clock() + int(seconds * 1e9)
    times = [clock()]
    if prepare is None:
        while times[-1] < stop or len(times) <= MIN_OPERATIONS:
            operation()
            times.append(clock())  # the end of one is the beginning of the next
        return np.array([after - before for before, after in pairwise(times)], np.int64)
    latencies: list[int] = []
    while clock() < stop or len(latencies) < MIN_OPERATIONS:
        prepare()
        began = clock()
        operation()
        latencies.append(clock() - began)
    return np.array(latencies, np.int64)


@dataclass
class Result:
    """All rounds of one case in one placement, or the reason why there are none."""

    case: Case
    placement: str
    rounds: list[dict[str, float]] = field(default_factory=list)
    unavailable: str | None = None

    def is_timed(self) -> bool:
        """Tell whether there are latencies."""
        return bool(self.rounds) and "p50_us" in self.rounds[0]

    def median(self, key: str) -> float:
        """Return the median over the rounds."""
        return float(np.median([r[key] for r in self.rounds]))

    def spread(self) -> float:
        """Return (largest - smallest) / median of the rounds' p50; 0 where nothing was timed."""
        if not self.is_timed():
            return 0.0
        values = [r["p50_us"] for r in self.rounds]
        return (max(values) - min(values)) / self.median("p50_us")


def measure(cases: Sequence[Case], *, rounds: int, seconds: float, log: Callable[[str], None]) -> list[Result]:
    """Run `rounds` rounds of every case in every placement; a round of each comes before the next round of any.

    All cases of a group stay open meanwhile, idle but for the one that is measured. A case that raises
    `TransportUnavailable` is reported as such; any other error ends the run.
    """
    results: list[Result] = []
    for group in dict.fromkeys(case.group for case in cases):
        members = [case for case in cases if case.group == group]
        for placement in placements():
            with placement.applied():
                results += _take_turns(members, placement, rounds, seconds, log)
    return results


def _take_turns(
    cases: Sequence[Case], placement: Placement, rounds: int, seconds: float, log: Callable[[str], None]
) -> list[Result]:
    results = [Result(case, placement.name) for case in cases]
    with ExitStack() as stack:
        opened: list[tuple[Result, Round]] = []
        for result in results:
            log(f"{placement.name}: opening {result.case.name}")
            try:
                opened.append((result, stack.enter_context(result.case.open(placement))))
            except TransportUnavailable as error:
                result.unavailable = str(error)
        for number in range(rounds):
            for result, run in opened:
                log(f"{placement.name}: round {number + 1}/{rounds}: {result.case.name}")
                result.rounds.append(run(seconds).summary())
    return results
