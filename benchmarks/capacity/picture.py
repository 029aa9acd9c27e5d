"""The picture: calls per second and their latency against clients, measured points beside the model's curves; knees are dotted.

Needs matplotlib.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from benchmarks.capacity.checks import (
    CLIENTS,
    calls_per_second,
    device_answer_ms,
    device_loop_s,
    free_cores,
    most_per_second,
)
from benchmarks.capacity.formulas import knee
from benchmarks.capacity.parameters import SCHEMES, Parameters, measured
from benchmarks.document import Run
from benchmarks.ours.scale import DEVICE_CLIENTS, DEVICE_SECONDS, MEAN, THINK_SECONDS
from benchmarks.pictures import OURS, pyplot_for_files

FILE = "capacity.svg"
CURVE = range(1, CLIENTS[-1] + 1)


def draw(run: Run, known: Parameters, folder: Path) -> list[str]:
    """Draw it, and return the names of the files.

    Raises:
        RuntimeError: matplotlib is not installed.
    """
    pyplot = pyplot_for_files()
    figure, (rates, times, waits) = pyplot.subplots(1, 3, figsize=(16, 5.5), layout="constrained")
    for scheme, colour in zip(SCHEMES, OURS, strict=False):
        _scheme(run, known, scheme, colour, rates, times)
    _device(run, known, waits)
    titles = {
        rates: "calls per second, of all",
        times: "p50 of a call, µs",
        waits: f"with {1e3 * THINK_SECONDS:g} ms of thought, a callback of {1e3 * DEVICE_SECONDS:g} ms: mean, ms",
    }
    for axes, label in titles.items():
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(CLIENTS, [str(clients) for clients in CLIENTS])
        axes.set_xlabel("clients")
        axes.set_title(label, loc="left")
        axes.grid(visible=True, which="major", color="#e5e5e5")
        axes.spines[["top", "right"]].set_visible(False)
        axes.minorticks_off()
    figure.legend(*rates.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8, frameon=False)
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


def _device(run: Run, known: Parameters, axes: Any) -> None:
    """Draw clients that think between calls, to a server whose callback waits for a device."""
    service_s, think_s, _ = device_loop_s(known)
    bend = knee(service_s + think_s, 1 / service_s)
    curve = [device_answer_ms(known, clients) for clients in CURVE]
    axes.plot(CURVE, curve, color=OURS[0], linestyle="--", label=f"tcp: model; knee: {bend:.1f}")
    axes.axvline(bend, color=OURS[0], linestyle=":", linewidth=1)
    results = {number: measured(run, f"scale.device.tcp.{number}") for number in DEVICE_CLIENTS}
    there = {number: result for number, result in results.items() if result}
    points = [result.median(MEAN) / 1e3 for result in there.values()]
    axes.plot(list(there), points, color=OURS[0], linestyle="", marker="o", label="tcp: measured")
    axes.legend(fontsize=8, frameon=False)
