"""Rounds, marks, streams that lose, and whose CPU time is whose."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import Pipe

import numpy as np
import pytest

from benchmarks.catalog import CASES, chosen
from benchmarks.harness import ANSWERING, Case, Mark, Placement, Result, Round, Sample, measure, timed
from benchmarks.load import Foreign, _busy_seconds, cpu_ns, descendants
from benchmarks.report import doubts, marks, table
from benchmarks.shapes import AT_FULL_SPEED, END, RESET, Taker, numbered
from benchmarks.way import imported
from edgeml_ipc.errors import TransportUnavailable

ANYWHERE = [Placement("unpinned", None)]
BURN = "import sys, time\nprint('burning', flush=True)\nend = time.monotonic() + 60\nwhile time.monotonic() < end: pass"


def case(name: str, events: list[str], *, reopen: bool = False, fails: int | None = None) -> Case:
    """Return a case that writes down what happens to it; round number `fails` cannot be had."""
    rounds = 0

    @contextmanager
    def opened(_: Placement) -> Iterator[Round]:
        events.append(f"open {name}")

        def run(seconds: float) -> Sample:
            nonlocal rounds
            rounds += 1
            events.append(name)
            if rounds == fails:
                raise TransportUnavailable(f"{name} broke")
            return Sample(np.array([1000, 2000, 3000]), things=2, cpu_ns=12_000)

        yield run
        events.append(f"close {name}")

    return Case(name, "ours", "nothing", opened, reopen=reopen)


def test_rounds_take_turns() -> None:
    events: list[str] = []
    results = measure([case("a", events), case("b", events)], rounds=2, seconds=0, log=lambda text: None, where=ANYWHERE)
    assert events == ["open a", "open b", "a", "b", "a", "b", "close b", "close a"]
    assert results[0].rounds == [{"p50_us": 2.0, "p99_us": pytest.approx(2.98), "per_second": 1e6, "cpu_us": 2.0}] * 2


def test_a_case_may_be_opened_for_each_round() -> None:
    events: list[str] = []
    cases = [case("a", events, reopen=True), case("b", events, reopen=True)]
    measure(cases, rounds=2, seconds=0, log=lambda text: None, where=ANYWHERE)
    assert events == ["open a", "a", "close a", "open b", "b", "close b"] * 2


@pytest.mark.parametrize("reopen", [False, True])
def test_what_breaks_is_shown_and_the_others_go_on(reopen: bool) -> None:
    events: list[str] = []
    cases = [case("a", events, reopen=reopen, fails=2), case("b", events, reopen=reopen)]
    broken, whole = measure(cases, rounds=3, seconds=0, log=lambda text: None, where=ANYWHERE)
    assert (broken.unavailable, broken.rounds, len(whole.rounds)) == ("a broke", [], 3)
    assert "unavailable: a broke" in table([broken, whole])


def test_a_peer_may_fail_in_any_way_and_ours_may_not() -> None:
    @contextmanager
    def opened(_: Placement) -> Iterator[Round]:
        raise RuntimeError("the library has a bug")
        yield

    def of(layer: str) -> list[Result]:
        broken = Case("broken", layer, "nothing", opened, reopen=True)
        return measure([broken, case("b", [])], rounds=1, seconds=0, log=lambda text: None, where=ANYWHERE)

    broken, whole = of("peer")
    assert (broken.unavailable, len(whole.rounds)) == ("the library has a bug", 1)
    with pytest.raises(RuntimeError, match="has a bug"):
        of("ours")


def test_a_peer_that_is_not_installed_says_so() -> None:
    with pytest.raises(TransportUnavailable, match="no_such_library is not installed"):
        imported("no_such_library.part")


def result(name: str, p50_us: list[float], floor: str | None = None, *aims: Mark, foreign: float = 0.0) -> Result:
    rounds = [{"p50_us": p50, "p99_us": 2 * p50, "per_second": 1e6 / p50} for p50 in p50_us]
    return Result(name, "floor" if floor is None else "ours", "", "unpinned", floor, "", aims, None, rounds, [foreign])


def test_marks() -> None:
    aims = (
        Mark("p50_us", at_most=29),
        Mark("p50_us", at_most=31),
        Mark("p50_us", at_least=0.5, of_floor=True),
        Mark("p50_us", at_least=0.5, of_floor=True, allowance_us=10),
        Mark("per_second", at_least=0.5, of="peer"),
        Mark("per_second", at_least=0.5, of="missing"),
        Mark("p50_us", at_most=1, placement="pinned"),
    )
    results = [result("floor", [10, 10, 10]), result("peer", [15, 15, 15]), result("case", [29, 30, 40], "floor", *aims)]
    said = [line.split()[0] for line in marks(results)[1:]]
    assert said == ["MISSED", "met", "MISSED", "met", "met", "not"]


def test_doubts() -> None:
    results = [
        result("floor", [10, 10, 10]),
        result("impossible", [9, 9, 9], "floor"),
        result("wide", [20, 40, 60], "floor"),
        result("beside", [20, 20, 20], "floor", foreign=0.5),
        result("fine", [20, 20, 20], "floor", foreign=0.05),
    ]
    impossible, wide, beside = doubts(results)
    assert impossible.endswith(": impossible (unpinned)")
    assert wide.endswith(": wide (unpinned)")
    assert beside.endswith(": beside (unpinned)")
    assert "0.50!" in table(results)


@pytest.mark.parametrize("kind", ["single", "list50", "stacked50"])
def test_a_stream_that_loses_is_noticed(kind: str) -> None:
    make = numbered(kind)

    def told(*numbers: int) -> tuple[int, int, int]:
        ours, theirs = Pipe()
        taker = Taker(theirs)
        for number in (7, RESET, 0, 1, AT_FULL_SPEED, *numbers, END):  # 7: of a round before
            taker(make(number))
        arrived, wrong, arrivals, _, _ = ours.recv()
        return arrived, wrong, len(arrivals)

    assert told(0, 1, 2) == (3, 0, 2)
    assert told(0, 2, 3) == (1, 2, 2)  # one lost
    assert told(0, 0, 1) == (2, 1, 2)  # one twice
    assert told(0, 1) == (2, 0, 2)  # the last lost: fewer than were sent


@contextmanager
def orphan() -> Iterator[int]:
    """A process that keeps a CPU busy and is no child of ours any more."""
    command = ["sh", "-c", '"$0" -c "$1" >/dev/null & echo $!', sys.executable, BURN]
    pid = int(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
    try:
        yield pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def wait_until_used(pid: int, seconds: float) -> None:
    """Wait until a process has used so many more seconds of CPU."""
    pause, before = threading.Event(), cpu_ns([pid])
    for _ in range(10_000):
        if cpu_ns([pid]) - before >= seconds * 1e9:
            return
        pause.wait(0.005)
    pytest.fail("the process was given no CPU")


def test_the_cpu_time_of_other_processes_counts() -> None:
    with orphan() as pid:
        sample = timed(lambda: wait_until_used(pid, 0.005), 0.05, others=[pid])
        assert sample.cpu_ns is not None
        assert sample.cpu_ns >= 0.005e9 * len(sample.latencies_ns)
        assert sample.answering_ns is not None
        assert sample.cpu_ns >= sample.answering_ns >= 0.005e9 * len(sample.latencies_ns)
        assert sample.summary()[ANSWERING] >= 5000


def test_load_of_others_is_seen() -> None:
    with orphan() as pid:
        foreign, began = Foreign(), time.monotonic()
        wait_until_used(pid, 0.5)
        seconds = time.monotonic() - began
        assert foreign.cores() * seconds > 0.4


def test_our_own_load_is_not_that_of_others() -> None:
    with subprocess.Popen([sys.executable, "-c", BURN]) as child:
        try:
            assert child.pid in descendants(os.getpid())
            foreign, began, busy = Foreign(), time.monotonic(), _busy_seconds()
            wait_until_used(child.pid, 0.5)
            busy = _busy_seconds() - busy
            assert foreign.cores() * (time.monotonic() - began) < busy - 0.3
        finally:
            child.kill()


def test_the_catalog_fits_together() -> None:
    names = [one.name for one in CASES]
    assert len(names) == len(set(names))
    compared = {one.floor for one in CASES} | {mark.of for one in CASES for mark in one.marks}
    assert compared - {None} <= set(names)
    layers = {one.layer for one in CASES}
    assert layers == {"floor", "plain", "peer", "ours"}
    usual = chosen(CASES, [], full=False)
    assert not any(one.heavy for one in usual)
    assert len(chosen(CASES, [], full=True)) == len(CASES)
    names = {one.name for one in chosen(CASES, ["64B"], ["peer.", "asleep"], full=False)}
    assert "call.shm.64B" in names
    assert not any("peer." in name or "asleep" in name for name in names)
    assert {one.name for one in chosen(CASES, ["transport.tcp.6MB"], full=False)} >= {"peer.zmq-tcp-multipart.6MB"}
