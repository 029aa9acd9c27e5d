"""The picture: calls per second and their latency against clients, measured points on the model's curves. Needs matplotlib."""

from __future__ import annotations

import math
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
    figure.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    figure.savefig(folder / FILE, metadata={"Date": None})
    pyplot.close(figure)
    return [FILE]


def _scheme(run: Run, known: Parameters, scheme: str, colour: str, rates: Any, times: Any) -> None:
    """Draw what was measured, the model of that, and the model of clients that leave all CPUs to the server."""
    results = {number: measured(run, f"scale.clients.{scheme}.{number}") for number in CLIENTS}
    there = {number: result for number, result in results.items() if result}
    cores = sum(free_cores(known.cpus, result) for result in there.values()) / len(there)
    for words, share, dashes in ((f"with {cores:.1f} cores for all", cores, "-"), ("clients elsewhere", math.inf, "--")):
        curve = [calls_per_second(known, scheme, clients, share) for clients in CURVE]
        bend = knee(known.alone_s[scheme], most_per_second(known, scheme, share))
        style = {"color": colour, "linestyle": dashes}
        rates.plot(CURVE, curve, label=f"{scheme}: model, {words}; knee: {bend:.1f}", **style)
        times.plot(CURVE, [1e6 * clients / rate for clients, rate in zip(CURVE, curve, strict=True)], **style)
        for axes in (rates, times):
            axes.axvline(max(1.0, bend), color=colour, linestyle=":", linewidth=1)
    dots = {"color": colour, "linestyle": "", "marker": "o"}
    rates.plot(list(there), [result.median("per_second") for result in there.values()], label=f"{scheme}: measured", **dots)
    times.plot(list(there), [result.median("p50_us") for result in there.values()], **dots)
