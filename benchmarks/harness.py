"""What a case is, how one round of it is timed, and how rounds of many cases are interleaved."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from benchmarks.load import Foreign, cpu_ns, descendants
from edgeml_ipc.errors import TransportUnavailable

WARM_UP_SHARE = 0.2
MIN_OPERATIONS = 3
ANSWERING = "µs of the CPU are the server's"  # a figure: of one thing, as `cpu_us`
PEER_FAILURES = (TransportUnavailable, RuntimeError, OSError)  # a TimeoutError is an OSError


@dataclass(frozen=True)
class Placement:
    """Where processes run: each on a CPU of its own, or wherever the kernel puts them."""

    name: str
    cpus: tuple[int, ...] | None  # who asks on the first, who answers on the others, in turn; None: no pinning

    def cpu_of_peer(self, index: int) -> int | None:
        """Return the CPU of the `index`-th process that answers, or None."""
        return None if self.cpus is None else self.cpus[1 + index % (len(self.cpus) - 1)]

    def cpu_of_asker(self, index: int) -> int | None:
        """Return the CPU of the `index`-th process that asks: any but the one of the process that answers; or None."""
        if self.cpus is None:
            return None
        free = (self.cpus[0], *self.cpus[2:])
        return free[index % len(free)]

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
        cpu_ns: what all processes of the case used for all repetitions together; None: not measured.
        per_second: things per second, where that does not follow from the latencies; cpu_ns is then that of one thing.
        answering_ns: what of cpu_ns the processes used that answer, or publish; None: nobody was named who does.
    """

    latencies_ns: np.ndarray
    things: int = 1
    figures: dict[str, float] = field(default_factory=dict)
    cpu_ns: float | None = None
    per_second: float | None = None
    answering_ns: float | None = None

    def summary(self) -> dict[str, float]:
        """Return p50_us, p99_us, per_second and cpu_us (of one thing) of this round, and the other figures."""
        found: dict[str, float] = {}
        if len(self.latencies_ns):
            p50, p99 = np.percentile(self.latencies_ns, [50, 99]) / 1e3
            seconds = float(self.latencies_ns.sum()) / 1e9
            rate = self.things * len(self.latencies_ns) / seconds if self.per_second is None else self.per_second
            found = {"p50_us": float(p50), "p99_us": float(p99), "per_second": rate}
        count = 1 if self.per_second is not None else self.things * len(self.latencies_ns)
        for key, ns in (("cpu_us", self.cpu_ns), (ANSWERING, self.answering_ns)):
            if ns is not None:
                found[key] = ns / 1e3 / count
        return {**found, **self.figures}


@dataclass(frozen=True)
class Mark:
    """What a case should reach.

    Attributes:
        figure: a key of `Sample.summary`. With `of_floor` or `of` it is compared with the same figure of the case's floor, so
            that more is better: how many times as fast for "p50_us" and "p99_us", else how many times as much.
        at_least, at_most: one of the two is given.
        of: the case that it is compared with in place of the floor. aim: what would be better still, if anything.
        allowance_us: taken off a time before it is compared.
        placement: the mark holds for this one only; None: for each.
    """

    figure: str
    at_least: float | None = None
    at_most: float | None = None
    of_floor: bool = False
    of: str | None = None
    aim: float | None = None
    allowance_us: float = 0.0
    placement: str | None = None

    def is_met(self, value: float) -> bool:
        """Tell whether a value is good enough."""
        return (self.at_least is None or value >= self.at_least) and (self.at_most is None or value <= self.at_most)


Round = Callable[[float], Sample]  # takes the seconds that it may last


@dataclass(frozen=True)
class Axis:
    """The place of a case in a picture.

    Attributes:
        picture: which one: "size", "clients", "subscribers" or "actors".
        line: the name of the line that it is a point of. x: where on it, in bytes or processes.
    """

    picture: str
    line: str
    x: float


@dataclass(frozen=True)
class Case:
    """One thing to measure.

    Attributes:
        name: unique; `--only` matches a part of it.
        layer: "floor", "plain" (numpy alone: what one would write oneself, and no bound), "peer" or "ours".
        what: one repetition, in words.
        open: sets everything up (other processes included), yields the round, and takes everything down.
        floor: name of the case that this one is compared with, if any.
        group: cases of one group take turns; what is compared is in one group.
        marks: what should be reached.
        reopen: opened anew for each round, instead of being open, and idle, while others have their rounds.
        heavy: runs only where it is asked for by `--full` or by name, and is not pinned.
        axis: its place in a picture, if any.
    """

    name: str
    layer: str
    what: str
    open: Callable[[Placement], AbstractContextManager[Round]]
    floor: str | None = None
    group: str = ""
    marks: tuple[Mark, ...] = ()
    reopen: bool = False
    heavy: bool = False
    axis: Axis | None = None


def timed(
    operation: Callable[[], object],
    seconds: float,
    *,
    things: int = 1,
    prepare: Callable[[], object] | None = None,
    others: Sequence[int] = (),
) -> Sample:
    """Time `operation` again and again, back to back.

    Args:
        things: that one operation does. prepare: called before each; its time does not count, its CPU time does.
        others: ids of the processes whose CPU time counts too, beside this one and those below it.
    """
    clock = time.perf_counter_ns
    end_warm_up = clock() + int(seconds * WARM_UP_SHARE * 1e9)
    warmed = 0
    while clock() < end_warm_up or warmed < MIN_OPERATIONS:
        if prepare is not None:
            prepare()
        operation()
        warmed += 1
    pids = {os.getpid(), *others, *descendants(os.getpid())}
    cpu_before, answering_before = cpu_ns(pids), cpu_ns(others)
    latencies = _latencies(operation, seconds, prepare)
    answering_ns = cpu_ns(others) - answering_before if others else None
    return Sample(np.array(latencies, np.int64), things, cpu_ns=cpu_ns(pids) - cpu_before, answering_ns=answering_ns)


def _latencies(operation: Callable[[], object], seconds: float, prepare: Callable[[], object] | None) -> list[int]:
    clock = time.perf_counter_ns
    stop = clock() + int(seconds * 1e9)
    if prepare is None:
        times = [clock()]
        while times[-1] < stop or len(times) <= MIN_OPERATIONS:
            operation()
            times.append(clock())  # the end of one is the beginning of the next
        return [after - before for before, after in pairwise(times)]
    latencies: list[int] = []
    while clock() < stop or len(latencies) < MIN_OPERATIONS:
        prepare()
        began = clock()
        operation()
        latencies.append(clock() - began)
    return latencies


@dataclass
class Result:
    """All rounds of one case in one placement, or the reason why there are none.

    Attributes:
        case: its name; `layer` to `axis` are as in `Case`.
        rounds: what `Sample.summary` said of each.
        foreign_cores: what other programs took of the machine during each.
    """

    case: str
    layer: str
    what: str
    placement: str
    floor: str | None = None
    group: str = ""
    marks: tuple[Mark, ...] = ()
    axis: Axis | None = None
    rounds: list[dict[str, float]] = field(default_factory=list)
    foreign_cores: list[float] = field(default_factory=list)
    unavailable: str | None = None

    @classmethod
    def of(cls, case: Case, placement: str) -> Result:
        """Return the result of a case that had no round yet."""
        return cls(case.name, case.layer, case.what, placement, case.floor, case.group, case.marks, case.axis)

    def fail(self, case: Case, error: Exception) -> None:
        """Note why there are no figures.

        Raises:
            the error: it is not one that a case may have.
        """
        if not isinstance(error, TransportUnavailable) and case.layer != "peer":
            raise error
        self.unavailable, self.rounds, self.foreign_cores = str(error), [], []

    def is_timed(self) -> bool:
        """Tell whether there are latencies."""
        return bool(self.rounds) and "p50_us" in self.rounds[0]

    def has(self, key: str) -> bool:
        """Tell whether there is a figure of that name."""
        return bool(self.rounds) and key in self.rounds[0]

    def median(self, key: str) -> float:
        """Return the median over the rounds."""
        return float(np.median([r[key] for r in self.rounds]))

    def spread(self) -> float:
        """Return (largest - smallest) / median of the rounds' p50; 0 where nothing was timed."""
        if not self.is_timed():
            return 0.0
        values = [r["p50_us"] for r in self.rounds]
        return (max(values) - min(values)) / self.median("p50_us")

    def foreign(self) -> float:
        """Return the cores that others kept busy, median over the rounds."""
        return float(np.median(self.foreign_cores)) if self.foreign_cores else 0.0


def measure(
    cases: Sequence[Case],
    *,
    rounds: int,
    seconds: float,
    log: Callable[[str], None],
    where: Sequence[Placement] | None = None,
    results: list[Result] | None = None,
) -> list[Result]:
    """Run `rounds` rounds of every case in every placement; a round of each comes before the next round of any.

    A case that raises `TransportUnavailable`, or a peer that fails in whatever way, is reported as such; any other error ends
    the run.

    Args:
        where: placements; None means all that the machine allows.
        results: a list to append to, for a caller that wants what was measured before an interruption.
    """
    where = placements() if where is None else where
    results = [] if results is None else results
    plan = [(group, placement) for group in dict.fromkeys(case.group for case in cases) for placement in where]

    def members(group: str, placement: Placement) -> list[Case]:
        return [case for case in cases if case.group == group and not (case.heavy and placement.cpus is not None)]

    total = sum(len(members(group, placement)) for group, placement in plan) * rounds

    def log_place(text: str) -> None:
        log(f"[{sum(len(r.rounds) if r.unavailable is None else rounds for r in results):4}/{total}] {text}")

    for group, placement in plan:
        chosen = members(group, placement)
        turns = [Result.of(case, placement.name) for case in chosen]
        results += turns
        with placement.applied():
            _take_turns(chosen, turns, placement, rounds, seconds, log_place)
    return results


def _take_turns(
    cases: Sequence[Case],
    results: Sequence[Result],
    placement: Placement,
    rounds: int,
    seconds: float,
    log: Callable[[str], None],
) -> None:
    with ExitStack() as stack:
        opened: dict[str, Round] = {}
        for case, result in zip(cases, results, strict=True):
            if case.reopen:
                continue
            log(f"{placement.name}: opening {case.name}")
            try:
                opened[case.name] = stack.enter_context(case.open(placement))
            except PEER_FAILURES as error:
                result.fail(case, error)
        for number in range(rounds):
            for case, result in zip(cases, results, strict=True):
                if result.unavailable is not None:
                    continue
                log(f"{placement.name}: round {number + 1}/{rounds}: {case.name}")
                try:
                    with ExitStack() as for_now:
                        run = for_now.enter_context(case.open(placement)) if case.reopen else opened[case.name]
                        foreign = Foreign()
                        result.rounds.append(run(seconds).summary())
                        result.foreign_cores.append(foreign.cores())
                except PEER_FAILURES as error:
                    result.fail(case, error)
