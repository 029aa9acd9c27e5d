"""Who used the CPUs: clocks of single processes, and what the rest of the machine took meanwhile."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

_TICK_SECONDS = 1 / os.sysconf("SC_CLK_TCK")
_IDLE, _IOWAIT, _STEAL_END = 3, 4, 8  # columns of /proc/stat's first line


def cpu_ns(pids: Iterable[int]) -> int:
    """Return the CPU time, user and system, that processes with these ids have used, threads that ended included.

    One that is gone counts as 0. **Source**: the clock id of a process is `~pid << 3 | 2`, see clock_getcpuclockid(3).
    """
    total = 0
    for pid in pids:
        with suppress(OSError):
            total += time.clock_gettime_ns(~pid << 3 | 2)
    return total


def descendants(pid: int) -> list[int]:
    """List the processes below a process, itself not included."""
    found: list[int] = []
    to_see = [pid]
    while to_see:
        for task in Path(f"/proc/{to_see.pop()}/task").glob("*/children"):
            with suppress(OSError):
                children = [int(word) for word in task.read_text(encoding="ascii").split()]
                found += children
                to_see += children
    return found


class Foreign:
    """What other processes take of the machine from its construction on.

    The kernel counts in hundredths of a second, so short spans are known only roughly.
    """

    def __init__(self) -> None:
        """Remember the counters."""
        self._began = time.monotonic()
        self._busy, self._own = _busy_seconds(), _own_seconds()

    def cores(self) -> float:
        """Return how many cores others have kept busy on average, what a hypervisor took away included."""
        seconds = time.monotonic() - self._began
        foreign = (_busy_seconds() - self._busy) - (_own_seconds() - self._own)
        return max(0.0, foreign - _TICK_SECONDS) / seconds  # less than a tick is rounding


def _busy_seconds() -> float:
    with open("/proc/stat", encoding="ascii") as file:
        ticks = [int(word) for word in file.readline().split()[1 : 1 + _STEAL_END]]
    return (sum(ticks) - ticks[_IDLE] - ticks[_IOWAIT]) * _TICK_SECONDS


def _own_seconds() -> float:
    """Return the CPU time of this process, of all below it, and of those that it has seen end."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return cpu_ns([os.getpid(), *descendants(os.getpid())]) / 1e9 + ended.ru_utime + ended.ru_stime
