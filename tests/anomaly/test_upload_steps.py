"""Uploaders killed after any instruction: the cursor is where the rows end, and who goes on loses and repeats nothing."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest

from edgeml_ipc.data import DataShape, ReplayBuffer, TrajectoryBuffer, uploads
from edgeml_ipc.data import segment as segments
from edgeml_ipc.data.chunks import LAST
from tests.anomaly import stepping

LIFE = bytes(range(16))
CLIENT = "actor"
CHUNK_ROWS = 4
MORE = 6  # items of who goes on, across the end of a chunk
BOX = gymnasium.spaces.Box(-1e9, 1e9, (2,), np.float32)
_names = itertools.count()

Buffer = TrajectoryBuffer | ReplayBuffer
Act = Callable[[], object]


def make(name: str, chunks: int) -> TrajectoryBuffer:
    number = DataShape("number", dtype="int64")
    return TrajectoryBuffer(chunks * CHUNK_ROWS, [number], name=name, chunk_rows=CHUNK_ROWS, max_writers=4)


def make_with_frames(name: str, chunks: int) -> ReplayBuffer:
    number = DataShape("number", dtype="int64")
    options: dict[str, Any] = {"name": name, "chunk_rows": CHUNK_ROWS, "max_writers": 4, "extra_columns": [number]}
    return ReplayBuffer(BOX, BOX, chunks * CHUNK_ROWS, **options)


def items(begin: int, end: int) -> list[dict[str, Any]]:
    return [{"number": np.int64(number)} for number in range(begin, end)]


def steps(begin: int, end: int) -> list[dict[str, Any]]:
    """Return transitions of which each but the last is told what follows by the next one."""
    seen = [np.full(2, number, np.float32) for number in range(begin, end + 1)]
    rest = {"actions": seen[0], "rewards": 0.0, "masks": 1.0, "dones": False}
    return [{**item, **rest, "observations": seen[item["number"] - begin]} for item in items(begin, end)]


# ---- what a child does before, and what it does step by step


def _goes_on(buffer: Buffer, made: Callable[[int, int], list[dict[str, Any]]], begin: int, at: int, end: int) -> Act:
    """Upload `begin` to `at`; what is stepped through is `at` to `end`."""
    stream = buffer.uploads.stream(CLIENT, LIFE)
    stream.insert(begin, made(begin, at))
    work = made(at, end)
    return lambda: stream.insert(at, work)


def inserts(buffer: Buffer) -> Act:
    """Go on in a begun chunk, across two others, into a third."""
    return _goes_on(buffer, items, 0, 2, 13)


def goes_round(buffer: Buffer) -> Act:
    return _goes_on(buffer, items, 0, 42, 53)


def leaves_out(buffer: Buffer) -> Act:
    """Leave, and go on as another writer, since items are missing: what `UploadStream.skip_to` does, without its Python."""
    table, spec, key = buffer._storage.table, buffer._storage.schema.spec(), uploads._key(CLIENT, LIFE)
    first = table.stream(spec)
    table.bind(key, first.place, 0)
    first.insert_many(items(0, 6))
    work = items(20, 26)

    def act() -> None:
        first.close()
        second = table.stream(spec)
        table.bind(key, second.place, 20)
        second.insert_many(work)

    return act


def claims_what_a_dead_one_had_claimed(buffer: Buffer) -> Act:
    """Come to the chunk in which one that had written more has begun, and committed nothing."""
    return _goes_on(buffer, items, 40, 52, 54)


def recovers(buffer: Buffer) -> Act:
    return buffer.recover


def waits_for_what_follows(buffer: Buffer) -> Act:
    return _goes_on(buffer, steps, 0, 3, 10)


def run(name: str, act: str, kind: str) -> None:
    """Be the child."""
    buffer = {"TrajectoryBuffer": TrajectoryBuffer, "ReplayBuffer": ReplayBuffer}[kind].attach(name)
    stepped: Act = globals()[act](buffer)
    stepping.begin()
    stepped()
    stepping.end()


def die(name: str, count: int, reserve: bool) -> None:
    """Be one that uploads, and dies; `reserve`: right after it has begun another chunk."""
    buffer = TrajectoryBuffer.attach(name)
    stream = buffer.uploads.stream(CLIENT, LIFE)
    stream.insert(0, items(0, count))
    if reserve:
        buffer._storage.table.reserve(stream._writer.place, 1)
    os.kill(os.getpid(), signal.SIGKILL)


# ---- what is looked at


class Stage:
    """A buffer that a child writes, and its twin, in which what the child left is looked at."""

    def __init__(self, chunks: int, make: Callable[[str, int], Buffer] = make) -> None:
        self.names = [f"test-steps-{os.getpid()}-{next(_names)}" for _ in range(2)]
        self.buffer, self.twin = (make(name, chunks) for name in self.names)

    def images(self, act: Callable[[Buffer], Act], start: bytes | None = None) -> list[bytes]:
        kind = type(self.buffer).__name__
        code = f"from tests.anomaly import test_upload_steps as me; me.run({self.names[0]!r}, {act.__name__!r}, {kind!r})"
        return stepping.images_of(code, memory_of(self.buffer), start)

    def let_die(self, count: int, reserve: bool = False) -> None:
        code = f"from tests.anomaly import test_upload_steps as me; me.die({self.names[0]!r}, {count}, {reserve})"
        process = subprocess.run([sys.executable, "-c", code], cwd=stepping.ROOT, check=False, timeout=60)
        assert process.returncode == -signal.SIGKILL

    def check(self, images: list[bytes], offered: list[int], whole: bool = True) -> list[int]:
        """Check each image, before the dead are looked after, and after that, and when another has gone on; return the cursors.

        Args:
            offered: the numbers of all items. whole: the buffer holds so many.
        """
        cursors = []
        for number, image in enumerate(images):
            memory_of(self.twin)[:] = image
            cursor = self._check_rows(offered, whole, f"image {number} of {len(images)}")
            cursors.append(cursor)
            self.twin.recover()
            assert self._check_rows(offered, whole, f"image {number}, recovered") == cursor
            self._check_ends(f"image {number}, recovered")
            with self.twin.uploads.stream(CLIENT, LIFE) as stream:
                assert stream.cursor == cursor
                end = cursor + MORE
                stream.insert(cursor, steps(cursor, end) if isinstance(self.twin, ReplayBuffer) else items(cursor, end))
                known = [*(item for item in offered if item < cursor), *range(cursor, end)]
                self._check_rows(known, whole, f"image {number}, another went on")
        assert cursors == sorted(cursors), "a cursor went back"
        return cursors

    def _check_rows(self, offered: list[int], whole: bool, label: str) -> int:
        cursor = self.twin.uploads.cursor(CLIENT, LIFE) or 0
        found = [int(item["number"]) for item in self.twin.get_latest_data(-1)]
        expected = [number for number in offered if number < cursor]
        if not whole:
            found, expected = found[-2 * CHUNK_ROWS :], expected[-2 * CHUNK_ROWS :]
        assert found == expected, f"{label}: the cursor is {cursor}"
        return cursor

    def _check_ends(self, label: str) -> None:
        """Check that an episode ends where another begins, and nowhere else; at least the newest ones."""
        about, rows = self.twin.about, self.twin.rows()
        rows = rows[np.argsort(about["sequence"][rows])][-2 * CHUNK_ROWS :]
        ends = (about["flags"][rows] & LAST) != 0
        assert ends.tolist() == [*(about["position"][rows][1:] == 0).tolist(), True], label

    def close(self) -> None:
        for buffer, name in zip((self.buffer, self.twin), self.names, strict=True):
            buffer.close()
            segments.unlink(name)


def memory_of(buffer: Buffer) -> memoryview:
    assert buffer._storage.segment is not None
    return memoryview(buffer._storage.segment.memory)


@pytest.fixture
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    made = Stage(*request.param)
    yield made
    made.close()


of_chunks = pytest.mark.parametrize("stage", [(16,)], indirect=True)
of_few_chunks = pytest.mark.parametrize("stage", [(4,)], indirect=True)
of_frames = pytest.mark.parametrize("stage", [(16, make_with_frames)], indirect=True)


@of_chunks
def test_killed_while_it_inserts(stage: Stage) -> None:
    cursors = stage.check(stage.images(inserts), list(range(13)))
    assert sorted(set(cursors)) == [2, 4, 8, 12, 13], "chunk by chunk"


@of_few_chunks
def test_killed_while_it_goes_round(stage: Stage) -> None:
    cursors = stage.check(stage.images(goes_round), list(range(53)), whole=False)
    assert sorted(set(cursors)) == [42, 44, 48, 52, 53]


@of_chunks
def test_killed_while_items_are_left_out(stage: Stage) -> None:
    cursors = stage.check(stage.images(leaves_out), [*range(6), *range(20, 26)])
    assert (cursors[0], cursors[-1]) == (6, 26)


@of_few_chunks
def test_killed_in_a_chunk_that_another_had_begun(stage: Stage) -> None:
    stage.let_die(40, reserve=True)
    cursors = stage.check(stage.images(claims_what_a_dead_one_had_claimed), list(range(54)), whole=False)
    assert sorted(set(cursors)) == [52, 54]


@of_few_chunks
def test_killed_while_it_looks_after_the_dead(stage: Stage) -> None:
    deaths = stage.images(goes_round)
    cursors = stage.check(deaths, list(range(53)), whole=False)
    for cursor in (44, 48, 52):  # at first it holds two chunks: for 48 the first of the ring, and the last before it
        first = deaths[cursors.index(cursor)]
        assert set(stage.check(stage.images(recovers, start=first), list(range(53)), whole=False)) == {cursor}


@of_frames
def test_killed_while_a_step_waits_for_the_one_that_follows(stage: Stage) -> None:
    cursors = stage.check(stage.images(waits_for_what_follows), list(range(10)))
    assert (cursors[0], cursors[-1]) == (2, 9)
