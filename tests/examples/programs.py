"""Examples as a user runs them: real processes, waited for by the lines that they print, with a deadline."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from threading import Condition, Thread

from tests.meta.source import ROOT

DEADLINE_SECONDS = 100.0


class Program:
    """`python examples/<name> <options>`, its output (errors too) collected line by line. Killed at the end of `with`."""

    def __init__(self, name: str, *options: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-u", f"examples/{name}", *options],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines: list[str] = []
        self._seen = 0  # lines that `wait_for` has passed
        self._ended = False
        self._changed = Condition()
        self._reader = Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._changed:
                self.lines.append(line.rstrip("\n"))
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    @property
    def output(self) -> str:
        return "\n".join(self.lines)

    def wait_for(self, pattern: str, seconds: float = DEADLINE_SECONDS) -> re.Match[str]:
        """Wait for the next line in which `pattern` is found; fail if the program ends before, or says nothing like it."""
        found: list[re.Match[str]] = []

        def look() -> bool:
            while self._seen < len(self.lines) and not found:
                match = re.search(pattern, self.lines[self._seen])
                self._seen += 1
                if match:
                    found.append(match)
            return bool(found) or self._ended

        with self._changed:
            self._changed.wait_for(look, seconds)
        assert found, f"no line with {pattern!r}; there are:\n{self.output}"
        return found[0]

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        self.process.send_signal(signal.SIGINT)

    def kill(self) -> None:
        """Kill it by SIGKILL, and wait until it is gone."""
        self.process.kill()
        self.process.wait(DEADLINE_SECONDS)

    def finish(self, seconds: float = DEADLINE_SECONDS) -> str:
        """Wait for its end, check that it ended well, and return all that it printed."""
        returncode = self.process.wait(seconds)
        self._reader.join(seconds)
        assert returncode == 0, f"exit code {returncode}:\n{self.output}"
        return self.output

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *exc: object) -> None:
        self.kill()
        self._reader.join(DEADLINE_SECONDS)
        assert self.process.stdout is not None
        self.process.stdout.close()
