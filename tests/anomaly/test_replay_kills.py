"""A replay buffer under fire: processes write and read one that is so small that everything is overwritten all the time.

EDGEML_IPC_FIRE_SECONDS (3) and EDGEML_IPC_FIRE_KILLS (30) say for how long at least, and how often; -s shows what was counted:

    EDGEML_IPC_FIRE_SECONDS=60 EDGEML_IPC_FIRE_KILLS=100 make test ARGS="-s tests/anomaly/test_replay_kills.py"
"""

from __future__ import annotations

import itertools
import mmap
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeml_ipc.data import ReplayBuffer
from tests.anomaly import replay_fire
from tests.anomaly.replay_fire import (
    MASKED,
    PAGE_BYTES,
    RANGES,
    ROWS,
    STOP,
    TORN,
    TORN_WINDOWS,
    WINDOWS,
    WRITER,
    WRONG,
    numbers_at,
    verify,
    verify_windows,
)
from tests.conftest import eventually

SECONDS = float(os.environ.get("EDGEML_IPC_FIRE_SECONDS", "3"))
KILLS = int(os.environ.get("EDGEML_IPC_FIRE_KILLS", "30"))
TIMEOUT = 120 + 10 * SECONDS + 5 * KILLS
WRITERS, READERS = 4, 2
LAST, TRUNCATED = 2, 8

_names = itertools.count()


class Crew:
    """Children that write and read, the page on which they note what they did, and the buffer's name."""

    def __init__(self) -> None:
        page_fd = os.memfd_create("fire")
        os.ftruncate(page_fd, PAGE_BYTES)
        self.page = mmap.mmap(page_fd, PAGE_BYTES)
        self._orders, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        fds = (theirs.fileno(), page_fd)
        command = [sys.executable, "-m", "tests.anomaly.replay_fire", *map(str, fds)]
        self._process = subprocess.Popen(command, pass_fds=fds, cwd=Path(__file__).parents[2])
        theirs.close()
        os.close(page_fd)
        self.pids: dict[int, int] = {}  # by place

    def ask(self, order: str) -> int:
        self._orders.send(order.encode())
        return int(self._orders.recv(100))

    def bear(self, role: str, name: str, place: int) -> None:
        numbers_at(self.page, place)[:] = 0
        self.pids[place] = self.ask(f"{role} {name} {place}")

    def noted(self, place: int, what: int) -> int:
        return int(numbers_at(self.page, place)[what])

    def kill(self, place: int) -> None:
        os.kill(self.pids[place], signal.SIGKILL)
        assert self.ask(f"reap {self.pids.pop(place)} 0") == -signal.SIGKILL

    def stop(self) -> None:
        """Stop all children, who must end of themselves and well."""
        np.frombuffer(self.page, np.int64, 1)[STOP] = 1
        for place in list(self.pids):
            assert self.ask(f"reap {self.pids.pop(place)} 0") == 0, f"the child at place {place} failed"
        np.frombuffer(self.page, np.int64, 1)[STOP] = 0

    def close(self) -> None:
        for pid in self.pids.values():
            os.kill(pid, signal.SIGKILL)
        self._orders.close()
        self._process.wait(20)


@pytest.fixture(scope="module")
def all_crew() -> Iterator[Crew]:
    made = Crew()
    yield made
    made.close()


@pytest.fixture
def crew(all_crew: Crew) -> Iterator[Crew]:
    yield all_crew
    for place in list(all_crew.pids):  # of a test that failed
        all_crew.kill(place)


@pytest.fixture
def name() -> Iterator[str]:
    made = f"test-{os.getpid()}-{next(_names)}"
    yield made
    ReplayBuffer.remove(made)


READER_PLACES = range(WRITERS, WRITERS + READERS)
COUNTED = {"rows": ROWS, "windows": WINDOWS, "masked": MASKED, "torn": TORN, "torn_windows": TORN_WINDOWS, "wrong": WRONG}
NOTHING_WRONG = {"torn": 0, "torn_windows": 0, "wrong": 0}


def counted(crew: Crew) -> dict[str, int]:
    """Return what all readers noted."""
    return {key: sum(crew.noted(place, what) for place in READER_PLACES) for key, what in COUNTED.items()}


def faults(crew: Crew) -> dict[str, int]:
    return {key: value for key, value in counted(crew).items() if key in NOTHING_WRONG}


def bear_all(crew: Crew, name: str, *readers: str) -> None:
    for place in range(WRITERS):
        crew.bear("write", name, place)
    for place, reader in zip(READER_PLACES, readers, strict=True):
        crew.bear(reader, name, place)


@pytest.mark.timeout(TIMEOUT)
@pytest.mark.parametrize(
    ("reader", "capacity", "chunk_rows", "stack"),
    [("read_rows", 96, 5, 1), ("read_rows", 40, 2, 4), ("read_windows", 96, 5, 1), ("read_windows", 160, 8, 4)],
)
def test_nothing_that_is_sampled_is_torn(
    reader: str, capacity: int, chunk_rows: int, stack: int, crew: Crew, name: str
) -> None:
    buffer = replay_fire.make(name, capacity, chunk_rows, stack)
    bear_all(crew, name, reader, reader)
    threading.Event().wait(SECONDS)
    crew.stop()
    stats, checked = buffer.stats(), counted(crew)
    print(f"\n{SECONDS:g} s: {checked}, {stats}")
    assert faults(crew) == NOTHING_WRONG
    if reader == "read_rows":
        assert checked["rows"] > 1000
        assert stats["inserted"] > 20 * capacity
    else:
        assert checked["windows"] > 100
        assert checked["masked"] > 100
        assert stats["inserted"] > 20 * capacity
    assert stats["redrawn"] > 0, "nothing was overwritten while it was read: this test shows nothing"
    assert stats["writers"] == 0
    assert stats["sampled"] == checked["rows"] + checked["windows"]
    buffer.close()


@pytest.mark.timeout(TIMEOUT)
@pytest.mark.parametrize("stack", [1, 4])
def test_readers_that_do_not_look_again_are_caught(stack: int, crew: Crew, name: str) -> None:
    """Without the redraw rows and windows are torn, and the checks above notice it."""
    buffer = replay_fire.make(name, 96, 5, stack)
    bear_all(crew, name, "trust_rows", "trust_windows")
    eventually(lambda: faults(crew)["torn"] > 0 and faults(crew)["torn_windows"] > 0, 60)
    crew.stop()
    print(f"\nwithout the redraw: {counted(crew)}")
    assert buffer.stats()["redrawn"] == 0
    buffer.close()


@pytest.mark.timeout(TIMEOUT)
@pytest.mark.parametrize(("reader", "capacity", "stack"), [("read_rows", 120, 1), ("read_windows", 160, 4)])
def test_nothing_that_is_sampled_is_torn_while_writers_are_killed_and_replaced(
    reader: str, capacity: int, stack: int, crew: Crew, name: str
) -> None:
    seed = random.SystemRandom().randrange(10**6)
    rng = random.Random(seed)
    buffer = replay_fire.make(name, capacity, 5, stack)
    bear_all(crew, name, "read_rows", reader)
    inserted = kills = 0
    end = time.monotonic() + SECONDS
    while kills < KILLS or time.monotonic() < end:
        place = kills % WRITERS
        lethal = rng.randrange(1, 400)
        eventually(lambda place=place, lethal=lethal: crew.noted(place, ROWS) >= lethal, 30)  # type: ignore[misc]
        crew.kill(place)
        kills += 1
        now = buffer.stats()["inserted"]
        assert now >= inserted, f"seed {seed}, kill {kills}: a counter went back"
        inserted = now
        crew.bear("write", name, place)
    eventually(lambda: all(crew.noted(place, ROWS) > 50 for place in range(WRITERS)), 30)
    crew.stop()
    stats, checked = buffer.stats(), counted(crew)
    print(f"\n{kills} kills, seed {seed}: {checked}, {stats}")
    assert faults(crew) == NOTHING_WRONG, f"seed {seed}"
    buffer.recover()
    assert buffer.stats()["writers"] == 0
    assert verify(buffer.sample(2000, about=True)) == (0, 0)
    replay_fire.register(buffer)
    assert verify_windows(*buffer.sample("around", 500), RANGES["around"])[:2] == (0, 0)
    buffer.close()


@pytest.mark.timeout(TIMEOUT)
def test_the_rows_of_the_killed_stay_and_their_episodes_end(crew: Crew, name: str) -> None:
    seed = random.SystemRandom().randrange(10**6)
    rng = random.Random(seed)
    buffer = replay_fire.make(name, 200_000, 16)
    noted: dict[int, int] = {}  # a writer's number -> rows that it knew to be committed
    for _ in range(KILLS // 3):
        crew.bear("write", name, 0)
        lethal = rng.randrange(1, 300)
        eventually(lambda lethal=lethal: crew.noted(0, ROWS) >= lethal, 30)  # type: ignore[misc]
        crew.kill(0)
        noted[crew.noted(0, WRITER)] = crew.noted(0, ROWS)
        assert buffer.recover() == 2, f"seed {seed}: two streams died"
        assert buffer.recover() == 0
    items = everything(buffer)
    assert len(items) == buffer.stats()["occupancy"] == buffer.stats()["inserted"]
    check_ends(buffer)
    tokens = np.stack([item["token"] for item in items])
    for writer, rows in noted.items():
        numbers = tokens[tokens[:, 0] == writer, 1]
        assert (numbers == np.arange(len(numbers))).all(), f"seed {seed}: the rows of writer {writer} have a gap"
        assert len(numbers) >= rows, f"seed {seed}: writer {writer} lost rows"
    buffer.close()


def everything(buffer: ReplayBuffer) -> list[dict[str, Any]]:
    """Return all rows in the order of their ids."""
    items: list[dict[str, Any]] = []
    next_id = 0
    while True:
        first_id, more, _ = buffer.read_since(next_id - 1, limit=1000)
        if not more:
            return items
        items += more
        next_id = first_id + len(more)


def check_ends(buffer: ReplayBuffer) -> None:
    """Check that episodes of a buffer that never went round end where a next one begins or the writer's rows end only."""
    rows = np.flatnonzero(buffer.about["writer"])
    rows = rows[buffer.columns["token"][rows, 0] == buffer.about["writer"][rows]]  # not what a killed writer had begun
    rows = rows[np.lexsort((buffer.about["sequence"][rows], buffer.about["writer"][rows]))]
    writer, position, flags = (buffer.about[key][rows] for key in ("writer", "position", "flags"))
    is_end = np.append((writer[1:] != writer[:-1]) | (position[1:] == 0), True)
    assert ((flags & LAST != 0) == is_end).all()
    assert is_end.sum() > len(np.unique(writer))


def test_a_learner_that_is_started_again_finds_all(crew: Crew, name: str) -> None:
    code = (
        "import os, signal; from tests.anomaly import replay_fire\n"
        f"buffer = replay_fire.make({name!r}, 64, 4)\n"
        "buffer.batch_insert(replay_fire.rows_of(1, 0, 100))\n"
        "buffer.sample(10)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], timeout=60)
    assert done.returncode == -signal.SIGKILL
    buffer = replay_fire.make(name, 64, 4, reattach=True)
    assert buffer.stats() == {
        "inserted": 100,
        "evicted": 36,
        "sampled": 10,
        "redrawn": 0,
        "occupancy": 64,
        "capacity": 64,
        "writers": 0,
        "priorities_updated": 0,
        "priorities_stale": 0,
    }
    assert buffer.latest_data_id() == 99
    batch = buffer.sample(500, about=True)
    assert verify(batch) == (0, 0)
    assert set(batch["token"][:, 1]) == set(range(36, 100))
    last = batch["token"][:, 1] == 99
    assert (batch["about"]["flags"][last] == (LAST | TRUNCATED)).all()
    buffer.batch_insert(replay_fire.rows_of(2, 0, 3))
    assert buffer.latest_data_id() == 102
    first_id, items, evicted = buffer.read_since(99)
    assert (first_id, [int(item["token"][0]) for item in items], evicted) == (100, [2, 2, 2], 0)
    buffer.close()
