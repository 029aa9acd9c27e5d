"""The picture: calls per second and their latency against clients, measured points on the model's curves. Needs matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.capacity.checks import CLIENTS, calls_per_second, free_cores, most_per_second
from benchmarks.capacity.formulas import knee
from benchmarks.capacity.parameters import SCHEMES, Parameters, measured
from benchmarks.document import Run
from benchmarks.pictures import OURS, pyplot_for_files

FILE = "capacity.svg"
CURVE = range(1, CLIENTS[-1] + 1)


def draw(run: Run, known: Parameters, folder: Path) -> list[str]:
    """Draw it, and return the names of the files.

    Raises:
        RuntimeError: matplotlib is not installed.
    """
    pyplot = pyplot_for_files()
    figure, (rates, times) = pyplot.subplots(1, 2, figsize=(12, 5.5), layout="constrained")
    for scheme, colour in zip(SCHEMES, OURS, strict=False):
        _scheme(run, known, scheme, colour, rates, times)
    for axes, label in ((rates, "calls per second, of all"), (times, "p50 of a call, µs")):
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(CLIENTS, [str(clients) for clients in CLIENTS])
        axes.set_xlabel("clients")
        axes.set_title(label, loc="left")
        axes.grid(visible=True, which="major", color="#e5e5e5")
        axes.spines[["top", "right"]].set_visible(False)
        axes.minorticks_off()
    rates.legend(fontsize=8, frameon=False)
    figure.savefig(folder / FILE, metadata={"Date": None})
    pyplot.close(figure)
    return [FILE]


def _scheme(run: Run, known: Parameters, scheme: str, colour: str, rates: Any, times: Any) -> None:
    results = {number: measured(run, f"scale.clients.{scheme}.{number}") for number in CLIENTS}
    there = {number: result for number, result in results.items() if result}
    cores = sum(free_cores(known.cpus, result) for result in there.values()) / len(there)
    curve = [calls_per_second(known, scheme, clients, cores) for clients in CURVE]
    rates.plot(CURVE, curve, color=colour, label=f"{scheme}: model, with {cores:.1f} cores")
    times.plot(CURVE, [1e6 * clients / rate for clients, rate in zip(CURVE, curve, strict=True)], color=colour)
    dots = {"color": colour, "linestyle": "", "marker": "o"}
    rates.plot(list(there), [result.median("per_second") for result in there.values()], label=f"{scheme}: measured", **dots)
    times.plot(list(there), [result.median("p50_us") for result in there.values()], **dots)
    bend = knee(known.alone_s[scheme], most_per_second(known, scheme, cores))
    for axes in (rates, times):
        axes.axvline(max(1.0, bend), color=colour, linestyle=":", linewidth=1)
    rates.annotate(
        f"knee: {bend:.1f}", (max(1.0, bend), curve[-1]), color=colour, fontsize=8, xytext=(4, 8), textcoords="offset points"
    )
