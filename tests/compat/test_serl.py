"""A program of SERL's kind, unchanged but for its imports: its actor and its learner are each killed and started again.

The learner's stores are of two kinds. The user's own live in the learner's memory: a learner that was killed begins with empty
ones, and the actor sends again all that its queues hold. Those with a name outlive the learner, and the actor goes on from
where it was. In neither is a transition missing, or there twice.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeml_ipc import ReplayBuffer

ROOT = Path(__file__).parents[2]


class Program:
    """The script as a process; reads lines from it."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "tests.compat.serl_program", *arguments]
        environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stdin=pipe, stdout=pipe, text=True)
        self.acknowledged = self.networks = 0

    def line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        if line.startswith("acknowledged"):
            self.acknowledged, self.networks = map(int, line.split()[1:])
        return line

    def wait_for(self, updates: int) -> None:
        for _ in range(updates):
            assert self.line(), "the actor ended"

    def kill(self) -> None:
        assert self.process.stdout is not None
        self.process.kill()
        while self.line():
            pass
        self.close()

    def finish(self) -> str:
        """Let it come to its end; return its last line."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        last = ""
        while line := self.line():
            last = line
        assert self.process.wait(60) == 0
        self.close()
        return last

    def close(self) -> None:
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()
        self.process.wait(60)


class Stage:
    def __init__(self, durable: str | None) -> None:
        self.port = "0"
        self.durable = [] if durable is None else ["--durable", durable]
        self.programs: list[Program] = []

    def learner(self) -> Program:
        program = Program("--learner", "--port", self.port, *self.durable)
        self.programs.append(program)
        self.port = program.line()
        return program

    def actor(self, life: int) -> Program:
        program = Program("--actor", str(life), "--port", self.port)
        self.programs.append(program)
        return program

    def end(self) -> None:
        for program in self.programs:
            if program.process.poll() is None:
                program.kill()


@pytest.fixture
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    stage = Stage(request.param)
    yield stage
    stage.end()
    for name in ("env", "intvn"):
        ReplayBuffer.remove(f"{request.param}-{name}")


def check(tokens: list[list[int]], first: Program, second: Program, stride: int) -> None:
    """Check that what the actors' two lives had acknowledged is there, and nothing twice."""
    assert len(tokens) == len({(life, step) for life, step in tokens}), "something is there twice"
    for life, actor in ((1, first), (2, second)):
        steps = [step for who, step in tokens if who == life]
        assert steps == list(range(0, stride * len(steps), stride)), f"something of life {life} is missing or out of order"
        assert len(steps) >= -(-actor.acknowledged // stride)
    steps = [step for who, step in tokens if who == 2]
    assert len(steps) == -(-second.acknowledged // stride)  # it came to its end: all that it inserted was acknowledged


@pytest.mark.timeout(300)
@pytest.mark.parametrize("stage", [None], indirect=True)
def test_with_stores_of_the_users_own(stage: Stage) -> None:
    learner = stage.learner()
    first = stage.actor(1)
    first.wait_for(updates=4)
    learner.kill()
    learner = stage.learner()
    before = first.acknowledged
    first.wait_for(updates=4)
    assert first.acknowledged > before
    assert first.networks > 0
    first.kill()
    second = stage.actor(2)
    second.wait_for(updates=4)
    second.finish()
    env, intvn, stats = json.loads(learner.finish())
    check(env, first, second, stride=1)
    check(intvn, first, second, stride=3)
    assert stats >= 8


@pytest.mark.timeout(300)
@pytest.mark.parametrize("stage", [f"test-serl-{os.getpid()}"], indirect=True)
def test_with_stores_that_outlive_their_learner(stage: Stage) -> None:
    learner = stage.learner()
    first = stage.actor(1)
    first.wait_for(updates=4)
    first.kill()
    second = stage.actor(2)
    second.wait_for(updates=3)
    learner.kill()
    learner = stage.learner()
    second.wait_for(updates=3)
    second.finish()
    learner.finish()
    for name, stride in (("env", 1), ("intvn", 3)):
        with ReplayBuffer.attach(f"{stage.durable[1]}-{name}") as buffer:
            tokens = sorted(buffer.columns["token"][buffer.rows()].tolist())
            assert buffer.stats()["inserted"] == len(tokens)
            check(tokens, first, second, stride)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("stage", [None], indirect=True)
def test_an_actor_waits_for_its_learner(stage: Stage) -> None:
    stage.learner().kill()  # its port is free now
    actor = stage.actor(2)
    assert actor.process.poll() is None
    learner = stage.learner()
    actor.wait_for(updates=2)
    actor.finish()
    env, _, _ = json.loads(learner.finish())
    assert env == [[2, step] for step in range(actor.acknowledged)]
