"""What the machine itself takes: copies of memory, and two C processes over one shared page."""

from __future__ import annotations

import mmap
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from benchmarks import payloads
from benchmarks.harness import Case, Placement, Round, Sample, repeat
from edgeml_ipc.errors import TransportUnavailable

PINGPONG_NS_GUESS = {"spin": 400, "futex": 30_000}  # to turn seconds into a count
PINGPONG_TIMEOUT_SECONDS = 60.0


@contextmanager
def warm_copy(_placement: Placement, nbytes: int) -> Iterator[Round]:
    """Copy between two buffers that stay the same."""
    source = np.ones(nbytes, np.uint8)
    target = np.zeros(nbytes, np.uint8)
    yield lambda seconds: Sample(repeat(lambda: np.copyto(target, source), seconds))


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

    yield lambda seconds: Sample(repeat(copy, seconds, prepare=fresh))


@contextmanager
def pingpong(placement: Placement, how: str) -> Iterator[Round]:
    """Compile and run pingpong.c."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise TransportUnavailable("no C compiler (cc, gcc, clang) on PATH, so there is no ping-pong floor")
    if how == "spin" and len(os.sched_getaffinity(0)) < 2 and placement.cpus is None:
        raise TransportUnavailable("spinning needs two CPUs")
    cpus = ["-1", "-1"] if placement.cpus is None else [str(placement.cpus[0]), str(placement.cpu_of_peer(0))]
    with tempfile.TemporaryDirectory(prefix="edgeml-bench-") as folder:
        program = Path(folder) / "pingpong"
        source = Path(__file__).with_name("pingpong.c")
        subprocess.run([compiler, "-std=c11", "-O2", "-o", program, source], check=True)

        def run(seconds: float) -> Sample:
            count = max(1000, int(seconds * 1e9 / PINGPONG_NS_GUESS[how]))
            command = [program, how, str(count // 5), str(count), *cpus]
            done = subprocess.run(command, check=True, capture_output=True, timeout=PINGPONG_TIMEOUT_SECONDS)
            return Sample(np.frombuffer(done.stdout, np.int64))

        yield run


CASES = [
    Case("floor.pingpong.spin", "floor", "64 bytes there and back, C, both spin", lambda p: pingpong(p, "spin")),
    Case("floor.pingpong.futex", "floor", "64 bytes there and back, C, both sleep", lambda p: pingpong(p, "futex")),
    Case(
        "floor.memcpy.transitions",
        "floor",
        f"warm copy of {payloads.TRANSITIONS_PER_UPDATE} transitions in one piece",
        lambda p: warm_copy(p, payloads.TRANSITIONS_PER_UPDATE * payloads.TRANSITION_BYTES),
    ),
    Case("floor.memcpy.921kB.warm", "floor", "warm copy of one image", lambda p: warm_copy(p, payloads.OBSERVATION_BYTES)),
    Case("floor.memcpy.50MB.warm", "floor", "warm copy of 50 MB", lambda p: warm_copy(p, payloads.NETWORK_BYTES)),
    Case("floor.memcpy.50MB.cold", "floor", "copy of 50 MB into fresh pages", lambda p: cold_copy(p, payloads.NETWORK_BYTES)),
]
