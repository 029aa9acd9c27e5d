"""Tests of edgeml_ipc.data.uploads: each item once, and the cursor exactly where the committed rows end."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from edgeml_ipc.data import DataShape, ReplayBuffer
from edgeml_ipc.data import segment as segments
from edgeml_ipc.data.chunks import LAST, TRUNCATED
from edgeml_ipc.errors import BufferFull

ROOT = Path(__file__).parents[2]
BOX = gymnasium.spaces.Box(-1e9, 1e9, (2,), np.float32)
LIFE = bytes(range(16))
KILLS = 12
READS = 100_000
_names = itertools.count()


@pytest.fixture
def name() -> Iterator[str]:
    made = f"test-uploads-{os.getpid()}-{next(_names)}"
    yield made
    segments.unlink(made)


def make(capacity: int = 1000, **options: Any) -> ReplayBuffer:
    return ReplayBuffer(BOX, BOX, capacity, extra_columns=[DataShape("number", dtype="int64")], **options)


def items(begin: int, end: int, *, last_has_next: bool = True) -> list[dict[str, Any]]:
    """Return the steps of one long episode."""
    found = []
    for number in range(begin, end):
        seen, then = np.full(2, number, np.float32), np.full(2, number + 1, np.float32)
        row = {"observations": seen, "actions": seen, "rewards": np.float32(number), "masks": np.float32(1)}
        found.append({**row, "next_observations": then, "dones": False, "number": np.int64(number)})
    if not last_has_next:
        for item in found:
            del item["next_observations"]
    return found


def numbers(buffer: ReplayBuffer) -> list[int]:
    return [int(item["number"]) for item in buffer.get_latest_data(-1)]


def test_what_is_known_is_not_inserted_again() -> None:
    buffer = make()
    with buffer.uploads.stream("actor", LIFE) as stream:
        assert stream.cursor is None
        assert stream.insert(0, items(0, 5)) == 5
        assert stream.insert(3, items(3, 9)) == 9
        assert stream.insert(0, items(0, 4)) == 9
        assert stream.insert(9, []) == 9
    assert numbers(buffer) == list(range(9))
    assert buffer.uploads.cursor("actor", LIFE) == 9
    assert buffer.uploads.cursor("actor", bytes(16)) is None
    assert buffer.uploads.cursor("other", LIFE) is None


def test_a_gap_ends_the_episode() -> None:
    buffer = make()
    with buffer.uploads.stream("actor", LIFE) as stream:
        stream.insert(2, items(2, 5))
        assert stream.insert(10, items(10, 12)) == 12
    assert buffer.uploads.cursor("actor", LIFE) == 12
    about, rows = buffer.about, buffer.rows()
    assert about["position"][rows].tolist() == [0, 1, 2, 0, 1]
    assert [bool(flags & LAST and flags & TRUNCATED) for flags in about["flags"][rows]] == [False, False, True, False, True]


def test_a_stream_has_one_writer_at_a_time() -> None:
    buffer = make()
    with buffer.uploads.stream("actor", LIFE) as stream:
        stream.insert(0, items(0, 3))
        with pytest.raises(BufferFull, match="another writer has this stream"):
            buffer.uploads.stream("actor", LIFE)
        with buffer.uploads.stream("other", LIFE) as other:
            other.insert(7, items(7, 9))
    with buffer.uploads.stream("actor", LIFE) as stream:
        assert stream.cursor == 3
        stream.insert(3, items(3, 4))
    assert (buffer.uploads.cursor("actor", LIFE), buffer.uploads.cursor("other", LIFE)) == (4, 9)


def test_an_item_that_does_not_fit_leaves_the_cursor() -> None:
    buffer = make()
    with buffer.uploads.stream("actor", LIFE) as stream:
        stream.insert(0, items(0, 3))
        with pytest.raises(ValueError, match="rewards"):
            stream.insert(3, [*items(3, 5), {**items(5, 6)[0], "rewards": np.zeros(3)}])
        assert stream.cursor == 3
        assert stream.insert(3, items(3, 6)) == 6
    assert numbers(buffer) == list(range(6))


def test_what_waits_for_its_next_observation_is_taken_but_not_committed(name: str) -> None:
    with make(name=name) as buffer:
        stream = buffer.uploads.stream("actor", LIFE)
        assert stream.insert(0, items(0, 5, last_has_next=False)) == 5
        assert buffer.uploads.cursor("actor", LIFE) == 4
        assert stream.insert(5, items(5, 7)) == 7
        assert buffer.uploads.cursor("actor", LIFE) == 7
        assert numbers(buffer) == list(range(7))


def test_more_streams_than_there_is_room_for() -> None:
    buffer = make()
    for number in range(1100):
        with buffer.uploads.stream(f"actor-{number}", LIFE) as stream:
            stream.insert(number, items(number, number + 1))
    assert buffer.uploads.cursor("actor-1099", LIFE) == 1100
    assert buffer.uploads.cursor("actor-80", LIFE) == 81
    assert buffer.uploads.cursor("actor-0", LIFE) is None  # forgotten: the one that was used longest ago


def upload(name: str, batch: int) -> None:
    """Upload from the cursor on until killed."""
    with ReplayBuffer.attach(name) as buffer, buffer.uploads.stream("actor", LIFE) as stream:
        print(stream.cursor, flush=True)
        at = stream.cursor or 0
        while True:
            at = stream.insert(at, items(at, at + batch))
            sys.stdout.write(f"{at}\n")
            sys.stdout.flush()


def upload_on(name: str) -> None:
    """Upload the same steps under ever new numbers until killed."""
    with ReplayBuffer.attach(name) as buffer, buffer.uploads.stream("actor", LIFE) as stream:
        at, work = 0, items(0, 500)
        while True:
            at = stream.insert(at, work)
            if at == len(work):
                print("began", flush=True)


def test_a_cursor_that_is_read_meanwhile_never_goes_back(name: str) -> None:
    code = f"from tests.data.test_uploads import upload_on; upload_on({name!r})"
    with make(1000, name=name, chunk_rows=1) as buffer:  # from chunk to chunk with each row
        with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            last = 0
            try:
                for number in range(READS):
                    cursor = buffer.uploads.cursor("actor", LIFE)
                    assert cursor is not None
                    assert cursor >= last, f"in read {number}"
                    last = cursor
            finally:
                process.kill()
        assert last > 500


@pytest.mark.parametrize("batch", [1, 7])
def test_killed_uploaders_lose_and_repeat_nothing(name: str, batch: int) -> None:
    seed = int.from_bytes(os.urandom(4), "little")
    rng = np.random.default_rng(seed)
    code = f"from tests.data.test_uploads import upload; upload({name!r}, {batch})"
    with make(20_000, name=name, chunk_rows=16, seed=0) as buffer:
        acknowledged = 0
        for _ in range(KILLS):
            process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
            assert process.stdout is not None
            for _ in range(int(rng.integers(1, 60))):
                process.stdout.readline()
            process.send_signal(signal.SIGKILL)
            rest = [line for line in process.stdout.read().split("\n")[:-1] if line.isdigit()]
            process.wait()
            process.stdout.close()
            acknowledged = max([acknowledged, *map(int, rest)])
            cursor = buffer.uploads.cursor("actor", LIFE)
            got = numbers(buffer)
            assert cursor is not None, f"seed {seed}"
            assert got == list(range(cursor - len(got), cursor)), f"seed {seed}"
            assert cursor >= acknowledged, f"seed {seed}"
        assert buffer.stats()["inserted"] == cursor
