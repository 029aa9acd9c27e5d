"""Threads and processes that a test starts: they end with it, and what goes wrong in them is its failure."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from typing import Any, Final

import multiprocess

PATIENCE_S: Final = 30.0  # how long a test waits for what must happen; never how long it should take
CONTEXT: Final = multiprocess.get_context("spawn")


class Background:
    """A thread whose failure is the test's failure.

    Example:
        with Background(connection.recv, None) as receiving:
            connection.close()
        assert isinstance(receiving.error, ConnectionClosed)
    """

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.result: Any = None
        self.error: Exception | None = None
        self._function = function
        self._args = args
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        try:
            self.result = self._function(*self._args)
        except Exception as error:  # noqa: BLE001 - a user's function: carried to the thread that joins
            self.error = error

    def __enter__(self) -> Background:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._thread.join(PATIENCE_S)
        if exc[0] is None:
            self.join()

    def join(self) -> None:
        """Wait until the function has returned."""
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive(), f"{self._function} has not returned within {PATIENCE_S} s"

    def get(self) -> Any:
        """Return the function's result, or raise its error."""
        if self.error is not None:
            raise self.error
        return self.result


class Child:
    """A process that ends with the test, at the latest."""

    def __init__(self, target: Callable[..., None], *args: Any) -> None:
        self._pipe, theirs = CONTEXT.Pipe()
        self._process = CONTEXT.Process(target=target, args=(theirs, *args), daemon=True)
        self._process.start()
        theirs.close()

    def say(self, something: Any) -> None:
        """Send the child something."""
        self._pipe.send(something)

    def ask(self, something: Any) -> Any:
        """Send the child something, and return what it says then."""
        self.say(something)
        return self.hear()

    def hear(self) -> Any:
        """Return the next thing that the child says."""
        assert self._pipe.poll(PATIENCE_S), "the other process says nothing"
        return self._pipe.recv()

    def kill(self) -> None:
        """End the process as the kernel's out-of-memory killer would. Idempotent."""
        if self._process.is_alive():
            os.kill(self._process.pid, signal.SIGKILL)
            self._process.join(PATIENCE_S)

    @property
    def is_alive(self) -> bool:
        """Tell whether the process runs."""
        alive: bool = self._process.is_alive()
        return alive

    @property
    def exit_code(self) -> int | None:
        self._process.join(PATIENCE_S)
        code: int | None = self._process.exitcode
        return code

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *exc: object) -> None:
        self.kill()
        self._process.join(PATIENCE_S)
        self._pipe.close()
