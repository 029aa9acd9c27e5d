"""Other processes for the benchmarks: really spawned, placed, surely ended; and rounds that run in them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.harness import Placement, Round, Sample, timed
from edgeml_ipc.errors import TransportUnavailable

START_SECONDS = 120.0
STOP_SECONDS = 10.0
ANSWER_SECONDS = 120.0
UNTRIMMED = {  # glibc keeps what was freed, and takes nothing from the kernel that it would give back
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
    "MALLOC_MMAP_THRESHOLD_": str(1 << 25),  # the most that glibc accepts
    "MALLOC_MMAP_MAX_": "0",  # for what is larger
}


@dataclass
class Other:
    """Another process: our end of the pipe to it, its id, and the first thing that it said, once that was waited for."""

    pipe: Any
    pid: int
    name: str
    said: Any = None

    def wait(self) -> Other:
        """Wait for the first thing that it says.

        Raises:
            TransportUnavailable: it raised that.
        """
        self.said = receive(self.pipe, START_SECONDS, f"{self.name} to start")
        return self

    def tell(self, *args: Any) -> Other:
        """Send it what it needs to start, and wait until it has."""
        self.pipe.send(args)
        return self.wait()


def _run(pipe: Any, cpu: int | None, target: Callable[..., None], args: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; who started us ends us
    if cpu is not None:
        os.sched_setaffinity(0, {cpu})
    try:
        target(pipe, *args)
    except TransportUnavailable as error:
        pipe.send(error)


@contextmanager
def launched(cpu: int | None, environment: Mapping[str, str], target: Callable[..., None], *args: Any) -> Iterator[Other]:
    """Run `target(pipe, *args)` in a new process on a CPU (None: any) with more in its environment; do not wait for it.

    At the end the target is sent "stop" and must return; one that does not within 10 s is killed.
    """
    context = multiprocessing.get_context("spawn")
    pipe, theirs = context.Pipe()
    process = context.Process(target=_run, args=(theirs, cpu, target, args), daemon=True)
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        process.start()
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
    theirs.close()
    try:
        assert process.pid is not None
        yield Other(pipe, process.pid, target.__qualname__)
    finally:
        with suppress(BrokenPipeError):  # it ended by itself, and has printed why
            pipe.send("stop")
        process.join(STOP_SECONDS)
        if process.is_alive():
            process.kill()
            process.join()


@contextmanager
def spawned(placement: Placement, index: int, target: Callable[..., None], *args: Any) -> Iterator[Other]:
    """Run `target(pipe, *args)` in a new process, on the CPU of the `index`-th that answers; wait until it says something."""
    with launched(placement.cpu_of_peer(index), {}, target, *args) as other:
        yield other.wait()


def receive(pipe: Any, seconds: float, what: str) -> Any:
    """Receive from a pipe within a deadline.

    Raises:
        TransportUnavailable: that is what was sent. RuntimeError: the other process ended.
    """
    if not pipe.poll(seconds):
        raise TimeoutError(f"waited {seconds:.0f} s for {what}")
    try:
        answer = pipe.recv()
    except EOFError as error:
        raise RuntimeError(f"the other process ended, where this was waited for: {what}; it has printed why") from error
    if isinstance(answer, TransportUnavailable):
        raise answer
    return answer


def leave_when_told(pipe: Any) -> None:
    """End this process, wherever it is, when "stop" comes: for those that block within somebody's library."""

    def wait() -> None:
        with suppress(EOFError):
            pipe.recv()
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


# ---- rounds in other processes

Opened = AbstractContextManager[Callable[[], object]]


def ask_until_stopped(
    pipe: Any, make: Callable[..., Opened], args: tuple[Any, ...] = (), pause: Callable[[], object] | None = None
) -> None:
    """Be told an address, and which processes' CPU time counts too; open what `make(address, *args)` returns.

    Time it for each number of seconds that comes, until "stop".
    """
    told = pipe.recv()
    if told == "stop":
        return
    address, others = told
    with make(address, *args) as operation:
        pipe.send("ready")
        while (seconds := pipe.recv()) != "stop":
            pipe.send(timed(operation, seconds, prepare=pause, others=others))


def asked_by(askers: Sequence[Other], things: int = 1) -> Round:
    """Return the round in which all askers begin at one time; what each took is put together."""

    def run(seconds: float) -> Sample:
        for asker in askers:
            asker.pipe.send(seconds)
        samples: list[Sample] = [receive(asker.pipe, ANSWER_SECONDS + seconds, "an asker's round") for asker in askers]
        latencies = np.concatenate([sample.latencies_ns for sample in samples])
        rate = sum(things * len(s.latencies_ns) / (float(s.latencies_ns.sum()) / 1e9) for s in samples)
        cpu_ns = sum(sample.cpu_ns or 0 for sample in samples) / len(latencies) / things
        named = [sample.answering_ns for sample in samples if sample.answering_ns is not None]
        answering_ns = sum(named) / len(latencies) / things if named else None
        return Sample(latencies, things, cpu_ns=cpu_ns, per_second=rate, answering_ns=answering_ns)

    return run
