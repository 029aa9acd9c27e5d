"""Results as a table, as JSON, and the machine that they hold for."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.harness import Result

PEERS = ("cpprb", "stable-baselines3", "tianshou", "torchrl", "torch", "flashbax", "jax", "dm-reverb")
MAX_SPREAD = 0.5  # (largest - smallest) / median of the rounds' p50; past this a figure says little


def _field(path: str, key: str) -> str:
    """Return the value of the first `key: value` line of a file in /proc."""
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return "unknown"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def machine() -> dict[str, Any]:
    """Describe what the numbers depend on."""
    root = Path(__file__).resolve().parents[1]
    git = subprocess.run(["git", "-C", root, "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return {
        "cpu": _field("/proc/cpuinfo", "model name"),
        "cpus": len(os.sched_getaffinity(0)),
        "memory": _field("/proc/meminfo", "MemTotal"),
        "kernel": platform.release(),
        "architecture": platform.machine(),
        "load_average_before": os.getloadavg()[0],
        "python": platform.python_version(),
        **{package: _version(package) for package in ("edgeml_ipc", "numpy", "pyzmq", "msgspec")},
        **{package: found for package in PEERS if (found := _version(package)) != "not installed"},
        "commit": git.stdout.strip() or "unknown",
    }


def floor_ratio(result: Result, results: Sequence[Result]) -> float | None:
    """Return p50 over the p50 of the case's floor, same placement and run."""
    floor = _floor_of(result, results)
    return result.median("p50_us") / floor.median("p50_us") if floor and result.is_timed() else None


def _floor_of(result: Result, results: Sequence[Result]) -> Result | None:
    for other in results:
        if other.case.name == result.case.floor and other.placement == result.placement and other.is_timed():
            return other
    return None


def marks(results: Sequence[Result]) -> list[str]:
    """Say of each mark whether it was reached."""
    lines = []
    for result in results:
        for mark in result.case.marks:
            label = f"{result.case.name} ({result.placement})"
            floor = _floor_of(result, results) if mark.of_floor else None
            if result.unavailable is not None or (mark.of_floor and floor is None):
                lines.append(f"  not measured  {label}: {result.unavailable or 'its floor was not measured'}")
                continue
            value, what = result.median(mark.figure), mark.figure
            if floor is not None:
                theirs = floor.median(mark.figure)
                faster = mark.figure in {"p50_us", "p99_us"}
                value = theirs / value if faster else value / theirs
                what = f"{'times as fast as' if faster else 'of the rate of'} {floor.case.name}"
            wanted = (
                f"at least {number(mark.at_least)}" if mark.at_least is not None else f"at most {number(mark.at_most or 0)}"
            )
            shown = number(value) if value >= 100 else f"{value:.4g}"  # one digit more: it may be a near miss
            aim = "" if mark.aim is None else f", aim {number(mark.aim)}"
            lines.append(f"  {'met   ' if mark.is_met(value) else 'MISSED'}  {label}: {shown} {what}; {wanted}{aim}")
    return ["Marks:", *lines] if lines else []


def as_json(results: Sequence[Result], **settings: Any) -> dict[str, Any]:
    """Return everything measured, rounds included."""
    return {
        "machine": machine(),
        "settings": settings,
        "results": [
            {
                "case": r.case.name,
                "layer": r.case.layer,
                "what": r.case.what,
                "placement": r.placement,
                "unavailable": r.unavailable,
                "median": {key: r.median(key) for key in r.rounds[0]} if r.rounds else None,
                "floor": r.case.floor,
                "floor_ratio": floor_ratio(r, results),
                "group": r.case.group,
                "rounds": r.rounds,
            }
            for r in results
        ],
        "marks": marks(results)[1:],
    }


def number(value: float) -> str:
    """Write three significant digits, without an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def table(results: Sequence[Result]) -> str:
    """Return the results as a Markdown table: medians over the rounds."""
    head = ["case", "placement", "p50 µs", "p99 µs", "per second", "× floor", "spread", "one repetition"]
    rows = [head, ["---", "---", "--:", "--:", "--:", "--:", "--:", "---"]]
    order = {name: index for index, name in enumerate(dict.fromkeys(r.case.name for r in results))}
    for r in sorted(results, key=lambda r: order[r.case.name]):
        if r.unavailable is not None:
            rows.append([r.case.name, r.placement, "-", "-", "-", "-", "-", f"unavailable: {r.unavailable}"])
            continue
        ratio = floor_ratio(r, results)
        timed = ("p50_us", "p99_us", "per_second")
        figures = [number(r.median(key)) if r.is_timed() else "-" for key in timed]
        others = [f"; {number(r.median(key))} {key}" for key in r.rounds[0] if key not in timed]
        what = r.case.what + "".join(others)
        rows.append([r.case.name, r.placement, *figures, number(ratio) if ratio else "-", f"{r.spread():.0%}", what])
    widths = [max(len(row[column]) for row in rows if row[0] != "---") for column in range(len(head))]
    return "\n".join("| " + " | ".join(_cell(row, column, widths) for column in range(len(head))) + " |" for row in rows)


def doubts(results: Sequence[Result]) -> list[str]:
    """Say which figures of this run must not be quoted."""
    floors = {r.case.name for r in results if r.case.layer == "floor"}  # some cases are compared with a peer instead
    below = [r for r in results if r.case.floor in floors and (floor_ratio(r, results) or 1) < 1]
    impossible = [f"{r.case.name} ({r.placement})" for r in below]
    wide = [f"{r.case.name} ({r.placement})" for r in results if r.rounds and r.spread() > MAX_SPREAD]
    found = []
    if impossible:
        found.append(f"! faster than its floor, which cannot be: the floor was disturbed in this run: {', '.join(impossible)}")
    if wide:
        found.append(f"rounds differ by over {MAX_SPREAD:.0%}, do not quote ({len(wide)} of {len(results)}): {', '.join(wide)}")
    return found


def _cell(row: list[str], column: int, widths: list[int]) -> str:
    text, width = row[column], widths[column]
    if text in {"---", "--:"}:
        return "-" * (width - 1) + text[-1]
    return text.rjust(width) if 2 <= column <= 6 else text.ljust(width)
