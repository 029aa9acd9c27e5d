"""Other processes for the benchmarks: really spawned, placed, and surely ended."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import multiprocess

from benchmarks.harness import Placement

START_SECONDS = 60.0
STOP_SECONDS = 10.0


def _run(pipe: Any, cpu: int | None, target: Callable[..., None], args: tuple[Any, ...]) -> None:
    if cpu is not None:
        os.sched_setaffinity(0, {cpu})
    target(pipe, *args)


@contextmanager
def spawned(placement: Placement, index: int, target: Callable[..., None], *args: Any) -> Iterator[tuple[Any, Any]]:
    """Run `target(pipe, *args)` in a new process; yield our end of the pipe and the first thing it sent.

    At the end the target is sent "stop" and must return; one that does not within 10 s is killed.
    """
    context = multiprocess.get_context("spawn")
    pipe, theirs = context.Pipe()
    process = context.Process(target=_run, args=(theirs, placement.cpu_of_peer(index), target, args), daemon=True)
    process.start()
    theirs.close()
    try:
        yield pipe, receive(pipe, START_SECONDS, f"{target.__name__} to start")
    finally:
        with suppress(BrokenPipeError):  # it ended by itself, and has printed why
            pipe.send("stop")
        process.join(STOP_SECONDS)
        if process.is_alive():
            process.kill()
            process.join()


def receive(pipe: Any, seconds: float, what: str) -> Any:
    """Receive from a pipe within a deadline."""
    if not pipe.poll(seconds):
        raise TimeoutError(f"waited {seconds:.0f} s for {what}")
    return pipe.recv()
