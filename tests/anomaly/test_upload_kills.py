"""Learners and actors that are killed while actors upload: no committed row is lost, none is there twice, all are told once.

EDGEML_IPC_UPLOAD_KILLS (4) says how often.
"""

from __future__ import annotations

import itertools
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgeml_ipc.data import ReplayBuffer, SequenceSampler
from tests.conftest import eventually

KILLS = int(os.environ.get("EDGEML_IPC_UPLOAD_KILLS", "4"))
ROOT = Path(__file__).parents[2]
_numbers = itertools.count()


class Program:
    """A child that says lines; the last one that was read is `said`."""

    def __init__(self, call: str) -> None:
        code = f"from tests.anomaly import upload_crew; upload_crew.{call}"
        pipe = subprocess.PIPE
        self.process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdin=pipe, stdout=pipe, text=True)
        self.said: list[str] = []

    def read(self, lines: int) -> None:
        assert self.process.stdout is not None
        for _ in range(lines):
            self.said.append(self.process.stdout.readline().strip())

    def kill(self) -> None:
        self.process.kill()
        self._drain()

    def finish(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self._drain()
        assert self.process.returncode == 0

    def _drain(self) -> None:
        assert self.process.stdout is not None
        assert self.process.stdin is not None
        rest = self.process.stdout.read().split("\n")
        self.process.wait(60)
        self.process.stdout.close()
        self.process.stdin.close()
        self.said += rest[:-1]  # what follows the last end of line was cut off

    @property
    def acknowledged(self) -> int:
        """How many steps an actor said were acknowledged."""
        return max([0, *(int(line.split()[0]) for line in self.said if line and line != "end")])

    def was_direct(self) -> bool:
        return any(line.endswith(" 1") for line in self.said)


class Stage:
    """A buffer's name, the file that callbacks write to, and the children."""

    def __init__(self, scheme: str, folder: Path) -> None:
        number = next(_numbers)
        self.name = f"test-kills-{os.getpid()}-{number}"
        self.address = f"shm://{self.name}" if scheme == "shm" else f"{scheme}://127.0.0.1:0"
        self.log_path = folder / "told"
        self.children: list[Program] = []

    def start(self, call: str) -> Program:
        child = Program(call)
        self.children.append(child)
        return child

    def learner(self) -> Program:
        child = self.start(f"learner({self.address!r}, {self.name!r}, {str(self.log_path)!r})")
        child.read(1)
        self.address = child.said[0]  # the next learner takes the same port
        return child

    def actor(self, who: int, always_next: bool = False) -> Program:
        return self.start(f"actor({self.address!r}, {who}, {always_next})")

    def told(self) -> list[tuple[int, int]]:
        lines = self.log_path.read_text(encoding="ascii").splitlines()
        return [(int(who), int(number)) for who, number in map(str.split, lines)]

    def stored(self, buffer: ReplayBuffer) -> dict[int, list[int]]:
        """Return the numbers of each actor's rows in the order of their ids."""
        rows = buffer.rows()
        rows = rows[np.argsort(buffer.about["sequence"][rows])]
        tokens = buffer.columns["token"][rows]
        return {int(who): tokens[tokens[:, 0] == who, 1].tolist() for who in np.unique(tokens[:, 0])}


@pytest.fixture
def stage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stage]:
    stage = Stage(request.param, tmp_path)
    yield stage
    for child in stage.children:
        if child.process.poll() is None:
            child.kill()
    ReplayBuffer.remove(stage.name)


def check_windows(buffer: ReplayBuffer) -> None:
    """Check that no window has rows of two actors, nor leaves out a step."""
    buffer.register_sample_config("windows", {"token": SequenceSampler(begin=0, end=4)}, (0, 4))
    token = buffer.sample("windows", 2000)[0]["token"]
    assert (token[:, :, 0] == token[:, :1, 0]).all()
    assert (np.diff(token[:, :, 1], axis=1) == 1).all()


@pytest.mark.timeout(120 + 20 * KILLS)
@pytest.mark.parametrize("stage", ["tcp", "shm", "auto"], indirect=True)
def test_a_learner_is_killed_while_two_actors_upload(stage: Stage) -> None:
    seed = random.SystemRandom().randrange(10**6)
    rng = random.Random(seed)
    learner = stage.learner()
    actors = [stage.actor(1), stage.actor(2)]
    for _ in range(KILLS):
        for actor in actors:
            actor.read(rng.randrange(1, 30))
        learner.kill()
        before = len(stage.told())
        learner = stage.learner()
    for actor in actors:
        actor.read(5)
        actor.finish()
        assert actor.said[-1] == "end", f"seed {seed}"
        assert actor.was_direct() == (not stage.address.startswith("tcp")), f"seed {seed}"
    with ReplayBuffer.attach(stage.name, seed=0) as buffer:
        stored = stage.stored(buffer)
        for who, actor in zip((1, 2), actors, strict=True):
            assert stored[who] == list(range(actor.acknowledged)), f"seed {seed}, actor {who}"
        told = stage.told()
        assert max(Counter(told).values()) == 1, f"seed {seed}"
        for who in (1, 2):  # the last learner was told of all that came while it lived
            late = [number for actor_number, number in told[before:] if actor_number == who]
            assert late == list(range(late[0], len(stored[who]))), f"seed {seed}, actor {who}"
        check_windows(buffer)


@pytest.mark.timeout(120 + 20 * KILLS)
@pytest.mark.parametrize("stage", ["shm", "tcp"], indirect=True)
def test_actors_are_killed_and_replaced(stage: Stage) -> None:
    seed = random.SystemRandom().randrange(10**6)
    rng = random.Random(seed)
    stage.learner()
    steady, killed = stage.actor(0, True), []
    for who in range(1, KILLS + 1):
        actor = stage.actor(who, True)
        actor.read(rng.randrange(1, 60))
        actor.kill()
        killed.append(actor)
        assert actor.was_direct() == stage.address.startswith("shm"), f"seed {seed}"
    steady.finish()
    with ReplayBuffer.attach(stage.name, seed=0) as buffer:
        eventually(lambda: buffer.recover() == 0 and buffer.stats()["writers"] == 0)
        stored = stage.stored(buffer)
        assert stored[0] == list(range(steady.acknowledged)), f"seed {seed}"
        for who, actor in enumerate(killed, 1):
            assert stored[who] == list(range(len(stored[who]))), f"seed {seed}, actor {who}"
            assert len(stored[who]) >= actor.acknowledged, f"seed {seed}, actor {who}"
        expected = Counter((who, number) for who in stored for number in stored[who])
        eventually(lambda: len(stage.told()) >= expected.total())
        assert Counter(stage.told()) == expected, f"seed {seed}"
        check_windows(buffer)
