"""Who reads rows in order waits for writers that live and have begun; for none that died, and takes no other for dead."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeml_ipc.data import ReplayBuffer
from edgeml_ipc.data import segment as segments
from tests.data.test_replay_buffer import make, transition

ROOT = Path(__file__).parents[2]
BEGUN = """
import sys
from edgeml_ipc.data import ReplayBuffer
from tests.data.test_replay_buffer import transition
buffer = ReplayBuffer.attach({name!r})
buffer.batch_insert([transition(value) for value in range(4)])
buffer.insert(transition(4, next_observations=None))
print("begun", flush=True)
sys.stdin.read()
"""
_names = itertools.count()


@pytest.fixture
def name() -> Iterator[str]:
    made = f"test-deaths-{os.getpid()}-{next(_names)}"
    yield made
    segments.unlink(made)


@pytest.fixture
def buffer(name: str) -> Iterator[ReplayBuffer]:
    with make(capacity=64, chunk_rows=8, name=name) as made:
        yield made


@pytest.fixture
def writer(name: str, buffer: ReplayBuffer) -> Iterator[subprocess.Popen[str]]:
    """A process with a transition in `buffer` that waits for its next observation; its four before that are committed."""
    command = [sys.executable, "-c", BEGUN.format(name=name)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        yield process
        process.kill()


def rewards(buffer: ReplayBuffer) -> list[int]:
    return [int(step["rewards"]) for step in buffer.get_latest_data(-1)]


def test_a_dead_writer_holds_up_nobodys_rows(buffer: ReplayBuffer, writer: subprocess.Popen[str]) -> None:
    buffer.batch_insert([transition(value) for value in range(10, 13)])
    assert rewards(buffer) == [0, 1, 2, 3], "the step between may yet come"
    assert buffer.latest_data_id() == 3
    writer.kill()
    writer.wait()
    assert rewards(buffer) == [0, 1, 2, 3, 10, 11, 12]
    assert buffer.latest_data_id() == 7
    assert buffer.stats()["writers"] == 2, "reading looks after nobody"
    assert buffer.recover() == 1


def test_nor_in_a_forked_reader(name: str) -> None:
    """In a program of its own, since this one has threads."""
    code = f"from tests.anomaly.test_reading_after_deaths import fork_a_reader; fork_a_reader({name!r})"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)


def fork_a_reader(name: str) -> None:
    """Begin as a process whose child reads, from before a writer begins until after it died."""
    buffer = make(capacity=64, chunk_rows=8, name=name)
    buffer.insert(transition(9))
    to_child, go = os.pipe()
    said, to_us = os.pipe()
    if os.fork() == 0:
        os.close(go)
        while os.read(to_child, 1):
            os.write(to_us, bytes([len(rewards(buffer))]))
        os._exit(0)
    writer = subprocess.Popen([sys.executable, "-c", BEGUN.format(name=name)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert writer.stdout is not None
    writer.stdout.readline()
    own = buffer.writer()  # after the fork: the child does not know that it is its parent's
    own.insert(transition(10, next_observations=None))
    buffer.insert(transition(11))

    def seen() -> int:
        os.write(go, b"?")
        return os.read(said, 1)[0]

    assert seen() == 5
    writer.kill()
    writer.wait()
    assert seen() == 5, "the one before 11 may yet come"
    own.insert(transition(12))
    assert seen() == 8
    os.close(go)
    os.wait()


def test_who_has_no_descriptor_left_takes_nobody_for_dead(
    buffer: ReplayBuffer, writer: subprocess.Popen[str], name: str
) -> None:
    code = (
        "import resource; from edgeml_ipc.data import ReplayBuffer\n"
        f"buffer = ReplayBuffer.attach({name!r})\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (0, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))\n"
        "print(buffer.recover(), len(buffer.get_latest_data(-1)))\n"
    )
    buffer.insert(transition(10))
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout == "0 4\n", done.stderr
