"""A replay buffer under fire: processes write and read one that is so small that everything is overwritten all the time.

EDGEML_IPC_FIRE_SECONDS (3) and EDGEML_IPC_FIRE_KILLS (30) say how long and how often.
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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeml_ipc.data import ReplayBuffer
from tests.anomaly import replay_fire
from tests.anomaly.replay_fire import PAGE_BYTES, ROWS, STOP, TORN, WRITER, WRONG, numbers_at, verify
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


def result(crew: Crew, places: range) -> dict[str, int]:
    return {key: sum(crew.noted(place, what) for place in places) for key, what in [("torn", TORN), ("wrong", WRONG)]}


@pytest.mark.timeout(TIMEOUT)
@pytest.mark.parametrize(("capacity", "chunk_rows"), [(96, 5), (40, 2)])
def test_no_sampled_row_is_torn(capacity: int, chunk_rows: int, crew: Crew, name: str) -> None:
    buffer = replay_fire.make(name, capacity, chunk_rows)
    readers = range(WRITERS, WRITERS + READERS)
    for place in range(WRITERS):
        crew.bear("write", name, place)
    for place in readers:
        crew.bear("read", name, place)
    threading.Event().wait(SECONDS)
    crew.stop()
    stats, checked = buffer.stats(), sum(crew.noted(place, ROWS) for place in readers)
    print(f"\n{checked} rows checked: {stats}")
    assert result(crew, readers) == {"torn": 0, "wrong": 0}
    assert checked > 1000
    assert stats["inserted"] > 20 * capacity
    assert stats["redrawn"] > 0, "nothing was overwritten while it was read: this test shows nothing"
    assert stats["writers"] == 0
    assert stats["sampled"] == checked
    buffer.close()


@pytest.mark.timeout(TIMEOUT)
def test_no_sampled_row_is_torn_while_writers_are_killed_and_replaced(crew: Crew, name: str) -> None:
    seed = random.SystemRandom().randrange(10**6)
    rng = random.Random(seed)
    buffer = replay_fire.make(name, 120, 5)
    readers = range(WRITERS, WRITERS + READERS)
    for place in range(WRITERS):
        crew.bear("write", name, place)
    for place in readers:
        crew.bear("read", name, place)
    inserted = 0
    for kill in range(KILLS):
        place = kill % WRITERS
        lethal = rng.randrange(1, 400)
        eventually(lambda place=place, lethal=lethal: crew.noted(place, ROWS) >= lethal, 30)  # type: ignore[misc]
        crew.kill(place)
        now = buffer.stats()["inserted"]
        assert now >= inserted, f"seed {seed}, kill {kill}: a counter went back"
        inserted = now
        crew.bear("write", name, place)
    eventually(lambda: all(crew.noted(place, ROWS) > 50 for place in range(WRITERS)), 30)
    crew.stop()
    stats = buffer.stats()
    print(f"\n{KILLS} kills, seed {seed}: {stats}")
    assert result(crew, readers) == {"torn": 0, "wrong": 0}, f"seed {seed}"
    buffer.recover()
    assert buffer.stats()["writers"] == 0
    assert verify(buffer.sample(2000, about=True)) == (0, 0)
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
    buffer = ReplayBuffer(
        replay_fire.OBSERVATIONS,
        replay_fire.ACTIONS,
        64,
        name=name,
        extra_columns=replay_fire.EXTRA,
        chunk_rows=4,
        reattach=True,
    )
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
