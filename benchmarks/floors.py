"""What the machine itself takes: copies of memory, and two C processes over one shared page."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path

import numpy as np

from benchmarks import payloads
from benchmarks.compiled import program
from benchmarks.harness import Case, Placement, Round, timed
from benchmarks.mailbox import pingpong

PINGPONG_NS = {"spin": 400, "futex": 30_000}
ROTATED = 2  # slots that our transport uses in turn for calls of one client, one by one
GROUP = "there and back"


@contextmanager
def warm_copy(_placement: Placement, nbytes: int, targets: int = 1) -> Iterator[Round]:
    """Copy one buffer into others that stay the same, in turn."""
    source = np.ones(nbytes, np.uint8)
    following = cycle([np.zeros(nbytes, np.uint8) for _ in range(targets)]).__next__
    yield lambda seconds: timed(lambda: np.copyto(following(), source), seconds)


@contextmanager
def cold_copy(_placement: Placement, nbytes: int) -> Iterator[Round]:
    """Copy into shared memory that was never touched before."""
    source = np.ones(nbytes, np.uint8)
    target: list[mmap.mmap] = []

    def fresh() -> None:
        while target:
            target.pop().close()
        target.append(mmap.mmap(-1, nbytes))

    def copy() -> None:
        target[0][:] = memoryview(source)

    yield lambda seconds: timed(copy, seconds, prepare=fresh)


def _pingpong(how: str, words: str) -> Case:
    source = [Path(__file__).with_name("pingpong.c")]
    what = f"64 bytes there and back, C, both {words}"
    return Case(f"floor.pingpong.{how}", "floor", what, lambda p: program(p, source, how, PINGPONG_NS[how]), group=GROUP)


def _warm(name: str, what: str, nbytes: int, group: str, targets: int = 1) -> Case:
    return Case(f"floor.memcpy.{name}", "floor", what, lambda p: warm_copy(p, nbytes, targets), group=group)


_MANY = payloads.TRANSITIONS_PER_UPDATE
CASES = [
    _pingpong("spin", "spin"),
    _pingpong("futex", "sleep"),
    Case("floor.pingpong.python", "floor", "the same, both spin, called from Python", pingpong, group=GROUP, reopen=True),
    _warm("transitions", f"warm copy of {_MANY} transitions in one piece", _MANY * payloads.TRANSITION_BYTES, "one way"),
    _warm("921kB.warm", "warm copy of one image", payloads.OBSERVATION_BYTES, GROUP),
    _warm("6MB.rotating", f"warm copy of a 1080p frame, into {ROTATED} buffers in turn", payloads.FRAME_BYTES, GROUP, ROTATED),
    _warm("50MB.warm", "warm copy of 50 MB", payloads.NETWORK_BYTES, "broadcast"),
    Case(
        "floor.memcpy.50MB.cold",
        "floor",
        "copy of 50 MB into fresh pages",
        lambda p: cold_copy(p, payloads.NETWORK_BYTES),
        group="broadcast",
    ),
]
