"""Pictures of a run: latency, throughput and CPU against size, and how cost grows with processes. Needs matplotlib."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness import Result

EMPTY_AT = 16.0  # where a logarithmic axis shows messages of 0 bytes
SIZE_TICKS = {
    EMPTY_AT: "0 B",
    64: "64 B",
    1 << 10: "1 KiB",
    1 << 14: "16 KiB",
    1 << 18: "256 KiB",
    1 << 22: "4 MiB",
    1 << 26: "64 MiB",
}
OURS = ("#0b5cad", "#c2410c", "#0f766e", "#7e22ce")
OTHERS = ("#8a8a8a", "#b7924f", "#7fa37f", "#a37f9c", "#7f8fa3")
DASHES = ("-", "--", ":", "-.")
MARKERS = "ovs^DPX*<>"


@dataclass(frozen=True)
class Picture:
    """One file.

    Attributes:
        axis: the `Axis.picture` of its results. key: of `Sample.summary`. value: makes of it, and of x, what is drawn.
    """

    file: str
    axis: str
    title: str
    label: str
    key: str
    value: Callable[[float, float], float]


def _same(y: float, _: float) -> float:
    return y


_TRIP, _CLIENTS = "There and back: a message of that size, 48 bytes back", "Clients of one server, 64 bytes there, 48 back"
_BYTES, _CPU = "Bytes carried, one message at a time", "CPU time of both processes for one message"
_NETWORK, _ROWS = "50 MB, until all subscribers have read it", "Actors that insert one by one into one buffer"
PICTURES = (
    Picture("latency-against-size", "size", _TRIP, "p50, µs", "p50_us", _same),
    Picture("throughput-against-size", "size", _BYTES, "MB/s", "per_second", lambda y, x: y * x / 1e6),
    Picture("cpu-against-size", "size", _CPU, "CPU, µs", "cpu_us", _same),
    Picture("clients", "clients", _CLIENTS, "calls per second, of all", "per_second", _same),
    Picture("clients-latency", "clients", _CLIENTS, "p99 of a call, µs", "p99_us", _same),
    Picture("subscribers", "subscribers", _NETWORK, "p50, ms", "p50_us", lambda y, _: y / 1e3),
    Picture("actors", "actors", _ROWS, "rows per second, of all", "per_second", _same),
)


def draw(results: Sequence[Result], folder: Path) -> list[str]:
    """Draw what there are results for, unpinned ones, and return the names of the files.

    Raises:
        RuntimeError: matplotlib is not installed.
    """
    pyplot = pyplot_for_files()
    written = []
    for picture in PICTURES:
        shown = [r for r in results if r.axis and r.axis.picture == picture.axis and r.has(picture.key)]
        shown = [r for r in shown if r.placement == "unpinned"]
        if shown:
            name = f"{picture.file}.svg"
            _draw(pyplot, picture, shown, folder / name)
            written.append(name)
    return written


def pyplot_for_files() -> Any:
    """Import matplotlib, and return its pyplot, which draws the same file from the same results.

    Raises:
        RuntimeError: it is not installed.
    """
    try:
        matplotlib = importlib.import_module("matplotlib")
    except ImportError as error:
        raise RuntimeError("pictures need matplotlib: pip install 'edgeml_ipc[plot]'") from error
    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "edgeml_ipc"
    return importlib.import_module("matplotlib.pyplot")


def _draw(pyplot: Any, picture: Picture, results: Sequence[Result], path: Path) -> None:
    figure, axes = pyplot.subplots(figsize=(10, 6), layout="constrained")
    lines: dict[str, list[Result]] = {}
    for result in results:
        assert result.axis
        lines.setdefault(result.axis.line, []).append(result)
    ours = others = 0
    drawn: list[tuple[float, float]] = []
    for line, members in sorted(lines.items(), key=lambda item: item[1][0].layer != "ours"):
        points = [(x, y) for x, y in (_point(picture, r) for r in sorted(members, key=_x)) if y > 0]
        if not points:
            continue  # an empty message carries nothing
        drawn += points
        style: dict[str, Any]
        if members[0].layer == "ours":
            style = {"color": OURS[ours % len(OURS)], "linewidth": 2.4, "zorder": 3}
            ours += 1
        else:
            style = {"color": OTHERS[others % len(OTHERS)], "linewidth": 1, "linestyle": DASHES[others // len(OTHERS)]}
            others += 1
        marker = MARKERS[(ours + others) % len(MARKERS)]
        axes.plot(*zip(*points, strict=True), label=line, marker=marker, markersize=4, **style)
    _dress(axes, picture, {x for x, _ in drawn})
    if len(lines) > 1:
        figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def _x(result: Result) -> float:
    assert result.axis
    return result.axis.x


def _point(picture: Picture, result: Result) -> tuple[float, float]:
    x = _x(result)
    return x or EMPTY_AT, picture.value(result.median(picture.key), x)


def _dress(axes: Any, picture: Picture, xs: set[float]) -> None:
    axes.set_title(picture.title, loc="left")
    axes.set_ylabel(picture.label)
    axes.grid(visible=True, which="major", color="#e5e5e5")
    axes.spines[["top", "right"]].set_visible(False)
    if picture.axis == "size":
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        ticks = {x: text for x, text in SIZE_TICKS.items() if x in xs}
        axes.set_xticks(list(ticks), list(ticks.values()))
        axes.set_xlabel("size of the message")
    else:
        axes.set_xscale("log", base=2)
        axes.set_xticks(sorted(xs), [f"{x:.0f}" for x in sorted(xs)])
        axes.set_xlabel(picture.axis)
        axes.set_ylim(bottom=0)
    axes.minorticks_off()
