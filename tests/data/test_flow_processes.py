"""Tests of edgeml_ipc.data.flow and waiting between processes: the rate, the dead, wake-ups that must not be lost."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from edgeml_ipc.data import ReplayBuffer, SequenceSampler
from edgeml_ipc.data.segment import Segment
from edgeml_ipc.errors import TimeoutError
from tests.conftest import eventually
from tests.data.test_replay_buffer import make, transition

ROOT = Path(__file__).parents[2]
EVENT_AT, WANTED_AT = 0x284, 0x280
TURN_AT = 0xF00  # bytes of the header's page that nothing uses
ROUNDS = 3000
spawn = multiprocessing.get_context("spawn")
_names = itertools.count()


@pytest.fixture
def name() -> Iterator[str]:
    made = f"test-flow-processes-{os.getpid()}-{next(_names)}"
    yield made
    ReplayBuffer.remove(made)


@contextmanager
def running(*calls: tuple[Any, ...]) -> Iterator[list[Any]]:
    """Run functions in processes of their own; those that are left at the end are killed."""
    processes = [spawn.Process(target=function, args=arguments, daemon=True) for function, *arguments in calls]
    for process in processes:
        process.start()
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.join()


def ended(processes: list[Any]) -> list[int | None]:
    for process in processes:
        process.join(60)
    return [process.exitcode for process in processes]


def memory_of(buffer: ReplayBuffer) -> Any:
    assert buffer._storage.segment is not None
    return buffer._storage.segment.memory


def is_waited_for(buffer: ReplayBuffer) -> bool:
    return bool(struct.unpack_from("<I", memory_of(buffer), WANTED_AT)[0])


# ---- the rate


def insert_rows(name: str, ready: Any, count: int, at_once: int) -> None:
    with ReplayBuffer.attach(name) as buffer:
        ready.wait(60)
        for value in range(0, count, at_once):
            buffer.batch_insert([transition(value + i) for i in range(at_once)])


def sample_rows(name: str, ready: Any, count: int, at_once: int, work: int) -> None:
    with ReplayBuffer.attach(name) as buffer:
        ready.wait(60)
        for _ in range(0, count, at_once):
            assert len(buffer.sample(at_once)["rewards"]) == at_once
            sum(range(work))


@pytest.mark.parametrize(("at_once", "work"), [(1, 20_000), (12, 0)], ids=["slow learners", "fast learners"])
def test_the_rate_is_kept_at_all_times(name: str, at_once: int, work: int) -> None:
    """Three actors and two learners. The counts are read so that one who moves meanwhile cannot look worse than he is."""
    rate, slack, min_rows, rows = 4.0, 80.0, 12, 600
    with make(capacity=300, name=name, samples_per_insert=rate, slack_samples=slack, min_rows=min_rows) as buffer:
        ready = spawn.Barrier(6)
        actors = [(insert_rows, name, ready, rows, at_once)] * 3
        learners = [(sample_rows, name, ready, 3600, 12, work)] * 2
        with running(*actors, *learners) as processes:
            ready.wait(60)
            words: Any = buffer._storage.changes
            seen = 0
            while any(process.is_alive() for process in processes):
                inserted, sampled = words.granted()
                assert inserted < min_rows + at_once * 3 or inserted * rate - sampled <= min_rows * rate + slack
                later, _ = words.granted()
                assert sampled == 0 or later * rate - sampled >= min_rows * rate - slack
                seen += 1
            assert ended(processes) == [0] * 5
        counters = buffer.stats()
        assert seen > 10
        assert (counters["inserted"], counters["sampled"]) == (1800, 7200)
        assert (counters["granted_inserts"], counters["granted_samples"]) == (1800, 7200)


# ---- no lost wake-ups


def wait_for_event(memory: Any, words: Any, seen: int) -> None:
    """Return only once `event` was counted up: unlike all other waiting, a lost wake-up is never made good by a time-out."""
    for _ in range(200):
        words.wait(seen, None)
        if struct.unpack_from("<I", memory, EVENT_AT)[0] != seen:
            return
    raise AssertionError("the wake-up was lost")


def change_each_turn(name: str, method: str) -> None:
    """Count up one of the two counts at each turn, as soon as it comes."""
    from edgeml_ipc.data import _rows

    with Segment.attach(name) as segment:
        words = _rows.Flow(segment.memory)
        for turn in range(1, ROUNDS + 1):
            while struct.unpack_from("<I", segment.memory, TURN_AT)[0] != turn:
                os.sched_yield()
            assert getattr(words, method)(turn - 1, 1)


def test_no_wake_up_is_lost(name: str) -> None:
    """One waits for two who change something at the same time, again and again, and has nothing but their wake-ups."""
    with make(capacity=8, name=name) as buffer:
        memory, words = memory_of(buffer), buffer._storage.changes
        with running((change_each_turn, name, "grant_insert"), (change_each_turn, name, "grant_sample")) as processes:
            for turn in range(1, ROUNDS + 1):
                struct.pack_into("<I", memory, TURN_AT, turn)
                while True:
                    seen = words.begin()
                    if words.granted() == (turn, turn):  # type: ignore[attr-defined]
                        break
                    wait_for_event(memory, words, seen)
            assert ended(processes) == [0, 0]


def pass_the_ball(name: str, mine: int) -> None:
    """Two in turn: insert a row when the other's has come."""
    with ReplayBuffer.attach(name) as buffer:
        memory, words = memory_of(buffer), buffer._storage.changes
        for turn in range(1000):
            while True:
                seen = words.begin()
                if buffer._storage.table.counts()[0] == 2 * turn + mine:
                    break
                wait_for_event(memory, words, seen)
            buffer.insert(transition(turn))


def test_each_commit_wakes_the_other_writer(name: str) -> None:
    with make(capacity=64, name=name) as buffer:
        with running((pass_the_ball, name, 0), (pass_the_ball, name, 1)) as processes:
            assert ended(processes) == [0, 0]
        assert buffer.stats()["inserted"] == 2000


def test_who_waits_in_one_process_is_woken_by_another(name: str) -> None:
    with make(capacity=64, name=name) as buffer:
        buffer.register_sample_config("windows", {"rewards": SequenceSampler(begin=0, end=5)}, (0, 5))
        ready = spawn.Barrier(2)
        with running((insert_rows, name, ready, 6, 1)) as processes:
            ready.wait(60)
            data, _ = buffer.sample("windows", 3, timeout=60)
            assert data["rewards"].shape == (3, 5)
            assert ended(processes) == [0]


# ---- deaths, signals


WAITER = """
from edgeml_ipc.data import ReplayBuffer
with ReplayBuffer.attach({name!r}) as buffer:
    buffer.sample(1, timeout=500)
"""


@contextmanager
def waiter(buffer: ReplayBuffer, name: str) -> Iterator[subprocess.Popen[str]]:
    """A process that waits for the first row."""
    command = [sys.executable, "-c", WAITER.format(name=name)]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        try:
            eventually(lambda: is_waited_for(buffer))
            yield process
        finally:
            process.kill()


def test_a_waiter_that_is_killed_holds_up_nobody(name: str) -> None:
    with make(capacity=64, name=name) as buffer, waiter(buffer, name) as dead, waiter(buffer, name) as alive:
        dead.kill()
        dead.wait(60)
        assert is_waited_for(buffer)
        buffer.insert(transition(1))
        assert alive.wait(60) == 0
        for value in range(10):
            buffer.insert(transition(value))
        assert not is_waited_for(buffer)


def test_an_interrupt_ends_a_wait(name: str) -> None:
    with make(capacity=64, name=name) as buffer, waiter(buffer, name) as process:
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        assert process.returncode != 0
        assert "KeyboardInterrupt" in errors


def test_a_forked_child_can_wait_and_sample() -> None:
    code = (
        "import os; from tests.data.test_replay_buffer import make, transition\n"
        "buffer = make(capacity=64, samples_per_insert=1.0, min_rows=4)\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    buffer.sample(2)\n"
        "    os._exit(7)\n"
        "for value in range(4): buffer.insert(transition(value))\n"
        "assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7\n"
        "assert buffer.stats()['granted_samples'] == 2\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)


KILLED = """
import os, signal
from edgeml_ipc.data import ReplayBuffer
from tests.data.test_replay_buffer import transition
buffer = ReplayBuffer.attach({name!r})
die = lambda: os.kill(os.getpid(), signal.SIGKILL)
writer = buffer.writer()
writer.batch_insert([transition(value) for value in range(5)])
{then}
"""
DEATHS = {
    "granted, nothing written": "buffer._flow.insert(4, writer.place, die)",
    "the last waits for what follows it": "writer.insert(transition(5, next_observations=None)); die()",
    "all committed": "die()",
    "committed, and granted more": (
        "put = lambda: (writer._insert_many([transition(1)] * 2), die()); buffer._flow.insert(3, writer.place, put)"
    ),
}


@pytest.mark.parametrize("then", DEATHS.values(), ids=DEATHS)
def test_what_the_dead_were_granted_is_given_back(name: str, then: str) -> None:
    with make(capacity=64, name=name, samples_per_insert=1.0, slack_samples=500) as buffer:
        for _ in range(3):
            done = subprocess.run([sys.executable, "-c", KILLED.format(name=name, then=then)], cwd=ROOT, timeout=60)
            assert done.returncode == -signal.SIGKILL
        buffer.recover()
        assert buffer.stats()["granted_inserts"] == buffer.stats()["inserted"] >= 15


def test_who_waits_for_the_limiter_finds_the_dead(name: str) -> None:
    """The dead writer's grant fills the slack: nobody could insert, nor sample, unless it were given back."""
    with make(capacity=64, name=name, samples_per_insert=1.0, slack_samples=8) as buffer:
        code = KILLED.format(name=name, then=DEATHS["granted, nothing written"])
        assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == -signal.SIGKILL
        assert buffer.stats()["granted_inserts"] == 9
        buffer.insert(transition(1))
        assert buffer.stats()["granted_inserts"] == 6


def test_a_sampler_that_is_killed_costs_one_batch_at_most(name: str) -> None:
    with make(capacity=64, name=name, samples_per_insert=1.0, slack_samples=100, flow_timeout=0) as buffer:
        buffer.batch_insert([transition(value) for value in range(30)])
        code = KILLED.format(name=name, then="buffer._flow.sample(die, 7, None, str)")
        assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == -signal.SIGKILL
        counters = buffer.stats()
        assert (counters["granted_samples"], counters["sampled"]) == (7, 0)
        for _ in range(25):
            buffer.sample(5)
        with pytest.raises(TimeoutError, match="35 rows were inserted and 132 sampled"):
            buffer.sample(5)
