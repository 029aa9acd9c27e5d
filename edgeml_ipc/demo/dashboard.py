"""Live progress: a panel that redraws in a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console
    from rich.panel import Panel

_BARS = "▁▂▃▄▅▆▇█"
_RETURN_MIN, _RETURN_MAX = -1600.0, 0.0
_CURVE_WIDTH = 60
_RATE_WINDOW_SECONDS = 2.0
_LINE_EVERY_SECONDS = 3.0


def sparkline(values: list[float], low: float, high: float) -> str:
    """Draw each value as a bar between `low` and `high`.

    Example:
        >>> sparkline([0.0, 5.0, 10.0], 0.0, 10.0)
        '▁▅█'
    """
    top = len(_BARS) - 1
    return "".join(_BARS[min(top, max(0, round((value - low) / (high - low) * top)))] for value in values)


class Dashboard(ABC):
    """Keeps what was shown, and derives rates from it. A context manager; `show` is called as news comes in."""

    def __init__(self, steps: int) -> None:
        """Prepare for a run of `steps` environment steps."""
        self._steps = steps
        self._started = time.monotonic()
        self._history: deque[tuple[float, int, int]] = deque()  # (time, inserted, updates)
        self._returns: list[float] = []
        self._events: list[str] = []

    def __enter__(self) -> Dashboard:
        return self

    def __exit__(self, *exc: object) -> None:
        return None

    def show(self, progress: Mapping[str, Any], transport: str) -> None:
        """Take news in, and draw.

        Args:
            progress: the fields of `learner.Progress`.
            transport: by which the actors are connected.
        """
        now = time.monotonic()
        self._returns += progress["returns"]
        self._history.append((now, progress["inserted"], progress["updates"]))
        while len(self._history) > 2 and now - self._history[0][0] > _RATE_WINDOW_SECONDS:
            self._history.popleft()
        self._draw(now, self._fields(progress, transport))

    def event(self, text: str) -> None:
        """Show something that happened once."""
        self._events.append(f"{time.monotonic() - self._started:5.1f} s  {text}")

    @abstractmethod
    def _draw(self, now: float, fields: Mapping[str, str]) -> None:
        """Bring the fields before the user's eyes."""

    def _fields(self, progress: Mapping[str, Any], transport: str) -> dict[str, str]:
        (start, inserted, updates), (end, *_) = self._history[0], self._history[-1]
        seconds = max(end - start, 1e-9)
        recent = self._returns[-10:]
        fields = {
            "env steps": f"{progress['inserted']:,} of {self._steps:,}",
            "env steps/s": f"{(progress['inserted'] - inserted) / seconds:,.0f}",
            "updates": f"{progress['updates']:,}",
            "updates/s": f"{(progress['updates'] - updates) / seconds:,.0f}",
            "return": f"{sum(recent) / len(recent):.0f}" if recent else "-",
            "transport": transport or "-",
            "policy version": f"{progress['version']}",
            "version lag": f"{progress['lag']:.1f}",
        }
        occupancy = ring_occupancy(progress["server"])
        if occupancy is not None:
            fields["ring occupancy"] = f"{occupancy:.1%}"
        return fields

    def _curve(self) -> str:
        """Draw the episode returns, averaged so that all of the run fits."""
        count = min(_CURVE_WIDTH, len(self._returns))
        ends = [round(len(self._returns) * (k + 1) / count) for k in range(count)] if count else []
        means = [sum(self._returns[a:b]) / (b - a) for a, b in zip([0, *ends], ends, strict=False)]
        return sparkline(means, _RETURN_MIN, _RETURN_MAX)


class PlainDashboard(Dashboard):
    """One line every few seconds, for logs."""

    def __init__(self, steps: int, out: TextIO) -> None:
        """Write to `out`."""
        super().__init__(steps)
        self._out = out
        self._last_line = self._started

    def event(self, text: str) -> None:
        """Print a line at once."""
        super().event(text)
        print(self._events[-1], file=self._out, flush=True)

    def _draw(self, now: float, fields: Mapping[str, str]) -> None:
        if now - self._last_line >= _LINE_EVERY_SECONDS:
            self._last_line = now
            text = "  ".join(f"{name}: {value}" for name, value in fields.items())
            print(f"{now - self._started:5.1f} s  {text}  {self._curve()[-20:]}", file=self._out, flush=True)


class LiveDashboard(Dashboard):
    """A panel that redraws in place."""

    def __init__(self, steps: int, console: Console | None = None) -> None:
        """Draw by rich to `console`; None means the terminal."""
        from rich.live import Live

        super().__init__(steps)
        self._live = Live(console=console, refresh_per_second=8)

    def __enter__(self) -> Dashboard:
        self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._live.stop()

    def _draw(self, now: float, fields: Mapping[str, str]) -> None:
        self._live.update(self._panel(now, fields))

    def _panel(self, now: float, fields: Mapping[str, str]) -> Panel:
        from rich.console import Group
        from rich.panel import Panel
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 2))
        items = list(fields.items())
        for left, right in zip(items[::2], [*items[1::2], ("", "")], strict=False):
            table.add_row(Text(left[0], "dim"), left[1], Text(right[0], "dim"), right[1])
        curve = Text.assemble((f"returns of the episodes, {_RETURN_MIN:.0f} to {_RETURN_MAX:.0f}\n", "dim"), self._curve())
        title = f"edgeml_ipc: SAC on Pendulum-v1, {now - self._started:.0f} s"
        return Panel(Group(table, Text(), curve, *self._events), title=title, title_align="left", width=80)


def ring_occupancy(server_stats: Mapping[str, Any]) -> float | None:
    """Return the share of the server's shared-memory rings that is in use, or None where there are none."""
    counters = server_stats.get("transport", {})
    for prefix in ("", "shm_"):
        capacity = counters.get(f"{prefix}ring_capacity_bytes")
        if capacity:
            return float(counters[f"{prefix}ring_used_bytes"] / capacity)
    return None
