"""Start a program's processes: spawned, never forked, and ended when their parent ends.

`spawn` starts a fresh interpreter, so that no thread, lock or mapping of the parent is inherited half-alive. `multiprocess` is
used rather than the standard module because it can also send functions that were defined in a script or a notebook.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from typing import Any

import multiprocess
from multiprocess import resource_tracker

_context = multiprocess.get_context("spawn")


def spawn(target: Callable[..., None], *args: Any, name: str) -> Any:
    """Start `target(*args)` in a new process and return its `multiprocess.Process`.

    The process does not see Ctrl-C (its parent decides what that means for it) and ends at once when its parent is gone,
    however the parent ended.

    Args:
        target: a function that can be sent to the new process.
        args: its arguments; ends of a `pipe` among them are inherited.
        name: of the process.
    """
    process = _context.Process(target=_run, args=(target, args), name=name, daemon=True)
    resource_tracker.ensure_running()  # else `start` would do it, which takes SIGINT out of the mask
    # A child inherits the mask; a Ctrl-C that arrives meanwhile is held back for us, not lost.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return process


def pipe() -> tuple[Any, Any]:
    """Return (reader, writer) of a one-way pipe. The parent closes the end that it gave away, to see the end of file."""
    reader, writer = _context.Pipe(duplex=False)
    return reader, writer


def _run(target: Callable[..., None], args: tuple[Any, ...]) -> None:
    threading.Thread(target=_end_with_parent, name="parent-watch", daemon=True).start()
    target(*args)


def _end_with_parent() -> None:
    parent = multiprocess.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
