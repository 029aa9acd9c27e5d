"""C programs that time themselves: compiled when a case is opened, run once for each round."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from benchmarks.harness import Placement, Round, Sample
from edgeml_ipc.errors import TransportUnavailable

TIMEOUT_SECONDS = 60.0
MIN_COUNT = 1000


def compiler() -> str:
    """Return the C compiler, or report that there is none."""
    found = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if found is None:
        raise TransportUnavailable("no C compiler (cc, gcc, clang) on PATH")
    return found


@contextmanager
def program(placement: Placement, sources: Sequence[Path], mode: str, ns_guess: int, *flags: str) -> Iterator[Round]:
    """Compile, and run as `program MODE WARM_UP COUNT CPU_A CPU_B`, which prints COUNT times as int64 nanoseconds.

    Args:
        ns_guess: of one repetition, to turn seconds into a count.
    """
    if len(os.sched_getaffinity(0)) < 2 and placement.cpus is None and mode == "spin":
        raise TransportUnavailable("spinning needs two CPUs")
    cpus = ["-1", "-1"] if placement.cpus is None else [str(placement.cpu_of_asker(0)), str(placement.cpu_of_peer(0))]
    with tempfile.TemporaryDirectory(prefix="edgeml-bench-") as folder:
        binary = Path(folder) / "program"
        subprocess.run([compiler(), "-std=c11", "-O2", *flags, *sources, "-pthread", "-o", binary], check=True)

        def run(seconds: float) -> Sample:
            count = max(MIN_COUNT, int(seconds * 1e9 / ns_guess))
            command = [binary, mode, str(count // 5), str(count), *cpus]
            done = subprocess.run(command, check=True, capture_output=True, timeout=TIMEOUT_SECONDS)
            return Sample(np.frombuffer(done.stdout, np.int64))

        yield run
