"""Tests of edgeml_ipc.demo.dashboard."""

import io
from typing import Any

import pytest
from rich.console import Console

from edgeml_ipc.demo import dashboard
from edgeml_ipc.demo.dashboard import LiveDashboard, PlainDashboard, sparkline


def progress(**changes: Any) -> dict[str, Any]:
    base = {"inserted": 1234, "updates": 200, "version": 4, "lag": 1.5, "returns": [-1200.0, -150.0], "server": {}}
    return {**base, **changes}


def test_sparkline_is_clamped() -> None:
    assert sparkline([-10.0, 0.0, 1.0, 2.0, 99.0], 0.0, 2.0) == "▁▁▅██"
    assert sparkline([], 0.0, 1.0) == ""


def test_plain_lines_come_every_few_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(dashboard.time, "monotonic", lambda: now)
    out = io.StringIO()
    plain = PlainDashboard(15_000, out)
    for _ in range(40):
        now += 0.25
        plain.show(progress(inserted=int((now - 100) * 1000), returns=[]), "shm")
    plain.event("killed")
    *lines, event = out.getvalue().splitlines()
    assert len(lines) == 3
    assert event == " 10.0 s  killed"
    for part in ("env steps: 9,000 of 15,000", "env steps/s: 1,000", "transport: shm", "version lag: 1.5"):
        assert part in lines[-1]


def test_live_panel_shows_all_fields() -> None:
    console = Console(width=100, file=io.StringIO(), force_terminal=True)
    with LiveDashboard(15_000, console) as live:
        live.event("killed actor-1")
        for mean in (-1600.0, -800.0, -200.0):
            live.show(progress(returns=[mean] * 50), "tcp")
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for part in ("SAC on Pendulum-v1", "1,234 of 15,000", "updates/s", "tcp", "lag", "killed actor-1", "▁▁▁", "▅▅▅", "▇▇▇"):
        assert part in text, part
