"""Reverb, which keeps its table in a server; it runs in the interpreter that `EDGEML_BENCH_REVERB_PYTHON` names."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np

from benchmarks.harness import Case, Placement, Round, Sample
from benchmarks.replay.data import BATCH, STATE
from benchmarks.replay.plain import COPY_1, PRIORITY_GROUP, TAKE, TAKE_FOR_PRIORITY
from edgeml_ipc.errors import TransportUnavailable

VARIABLE = "EDGEML_BENCH_REVERB_PYTHON"
ROWS = 20_000  # fewer than the others have, since it takes thousands a second: to its advantage
START_SECONDS, ANSWER_SECONDS, STOP_SECONDS = 300.0, 60.0, 10.0


@contextmanager
def served(_placement: Placement, mode: str) -> Iterator[Round]:
    """Start the other interpreter, ask it for rounds, end it."""
    python = os.environ.get(VARIABLE)
    if not python:
        raise TransportUnavailable(f"{VARIABLE} names no interpreter that has dm-reverb[tensorflow], which needs numpy < 2")
    script = Path(__file__).with_name("reverb_process.py")
    command = [python, "-W", "ignore", str(script), mode, str(ROWS), str(BATCH), json.dumps(STATE.spec)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdin
    assert process.stdout
    try:
        if answer(process.stdout, START_SECONDS).strip() != "ready":
            raise TransportUnavailable(f"{python} did not start a Reverb server: is dm-reverb[tensorflow] installed there?")

        process.send_signal(signal.SIGSTOP)  # between rounds too: its threads work ahead, while others are measured

        def run(seconds: float) -> Sample:
            process.send_signal(signal.SIGCONT)
            print(seconds, file=process.stdin, flush=True)
            latencies = json.loads(answer(process.stdout, ANSWER_SECONDS + seconds))
            process.send_signal(signal.SIGSTOP)
            return Sample(np.array(latencies, np.int64))

        yield run
    finally:
        process.send_signal(signal.SIGCONT)
        process.stdin.close()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


def answer(pipe: IO[str], seconds: float) -> str:
    """Read a line within a deadline; an empty one if the process ended."""
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        if not selector.select(seconds):
            raise TimeoutError(f"waited {seconds:.0f} s for Reverb's process")
    return pipe.readline()


def _case(name: str, what: str, mode: str, floor: str, group: str) -> Case:
    return Case(name, "peer", f"{what}; {ROWS:,} rows in its server", lambda p: served(p, mode), floor, group)


CASES = [
    _case("replay.insert.single.reverb", "append and create_item", "insert", COPY_1, "replay.insert"),
    _case(f"replay.sample.state.{BATCH}.reverb", "next of a TrajectoryDataset", "sample", TAKE.name, TAKE.group),
    _case(
        f"replay.sample.priority.{BATCH}.reverb",
        "next of a TrajectoryDataset, mutate_priorities",
        "priority",
        TAKE_FOR_PRIORITY.name,
        PRIORITY_GROUP,
    ),
]
