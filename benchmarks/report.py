"""Results as Markdown: tables, what was aimed at, and what must not be quoted."""

from __future__ import annotations

import re
from collections.abc import Sequence

from benchmarks.document import Run, not_installed
from benchmarks.harness import Mark, Result

MAX_SPREAD = 0.5  # (largest - smallest) / median of the rounds' p50; past this a figure says little
MAX_FOREIGN_CORES = 0.1  # kept busy by other programs during the rounds; past this a figure is doubtful
TIMED = ("p50_us", "p99_us", "per_second", "cpu_us")
HEAD = ["case", "placement", "p50 µs", "p99 µs", "per second", "CPU µs", "× floor", "spread", "others", "one repetition"]
NUMBERS = slice(2, 9)  # columns that are set to the right


def number(value: float) -> str:
    """Write three significant digits, without an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _floor_of(result: Result, results: Sequence[Result], name: str | None = None) -> Result | None:
    """Return the result of the case's floor, or of the case that is named, in the same placement."""
    name = name or result.floor
    for other in results:
        if other.case == name and other.placement == result.placement and other.is_timed():
            return other
    return None


def floor_ratio(result: Result, results: Sequence[Result]) -> float | None:
    """Return p50 over the p50 of the case's floor, same placement and run."""
    floor = _floor_of(result, results)
    return result.median("p50_us") / floor.median("p50_us") if floor and result.is_timed() else None


def marks(results: Sequence[Result]) -> list[str]:
    """Say of each mark whether it was reached."""
    lines = [
        _judged(result, mark, results)
        for result in results
        for mark in result.marks
        if mark.placement in (None, result.placement)
    ]
    return ["Marks:", *lines] if lines else []


def _judged(result: Result, mark: Mark, results: Sequence[Result]) -> str:
    label = f"{result.case} ({result.placement})"
    compared = mark.of_floor or mark.of is not None
    floor = _floor_of(result, results, mark.of) if compared else None
    if result.unavailable is not None or not result.has(mark.figure) or (compared and floor is None):
        return f"  not measured  {label}: {result.unavailable or 'not what it is compared with'}"
    value, what = result.median(mark.figure), mark.figure
    if mark.allowance_us:
        value, what = value - mark.allowance_us, f"{what} less {number(mark.allowance_us)} µs"
    if floor is not None:
        theirs = floor.median(mark.figure)
        faster = mark.figure in {"p50_us", "p99_us"}
        value = theirs / value if faster else value / theirs
        what = f"{'times as fast as' if faster else 'of the rate of'} {floor.case}"
        what += f", {number(mark.allowance_us)} µs taken off" if mark.allowance_us else ""
    wanted = f"at least {number(mark.at_least)}" if mark.at_least is not None else f"at most {number(mark.at_most or 0)}"
    shown = number(value) if value >= 100 else f"{value:.4g}"  # one digit more: it may be a near miss
    aim = "" if mark.aim is None else f", aim {number(mark.aim)}"
    return f"  {'met   ' if mark.is_met(value) else 'MISSED'}  {label}: {shown} {what}; {wanted}{aim}"


def table(results: Sequence[Result]) -> str:
    """Return the results as a Markdown table: medians over the rounds; others: cores that other programs kept busy."""
    rows = [HEAD, ["--:" if NUMBERS.start <= i < NUMBERS.stop else "---" for i in range(len(HEAD))]]
    order = {name: index for index, name in enumerate(dict.fromkeys(r.case for r in results))}
    for r in sorted(results, key=lambda r: order[r.case]):
        if r.unavailable is not None:
            rows.append([r.case, r.placement, *["-"] * 7, f"unavailable: {r.unavailable}"])
            continue
        ratio = floor_ratio(r, results)
        figures = [number(r.median(key)) if r.has(key) else "-" for key in TIMED]
        extra = [f"; {number(r.median(key))} {key}" for key in r.rounds[0] if key not in TIMED]
        foreign = f"{r.foreign():.2f}{'!' if r.foreign() > MAX_FOREIGN_CORES else ''}"
        what = r.what + "".join(extra)
        rows.append([r.case, r.placement, *figures, number(ratio) if ratio else "-", f"{r.spread():.0%}", foreign, what])
    widths = [max(len(row[column]) for row in rows if row[0] != "---") for column in range(len(HEAD))]
    return "\n".join("| " + " | ".join(_cell(row, column, widths) for column in range(len(HEAD))) + " |" for row in rows)


def _cell(row: list[str], column: int, widths: list[int]) -> str:
    text, width = row[column], widths[column]
    if text in {"---", "--:"}:
        return "-" * (width - 1) + text[-1]
    return text.rjust(width) if NUMBERS.start <= column < NUMBERS.stop else text.ljust(width)


def doubts(results: Sequence[Result]) -> list[str]:
    """Say which figures of this run must not be quoted."""
    floors = {r.case for r in results if r.layer == "floor"}  # some cases are compared with a peer instead
    below = [r for r in results if r.floor in floors and (floor_ratio(r, results) or 1) < 1]
    wide = [r for r in results if r.rounds and r.spread() > MAX_SPREAD]
    beside = [r for r in results if r.foreign() > MAX_FOREIGN_CORES]
    share = f"of {len(results)}"
    told = [
        ("! faster than its floor, which cannot be: the floor was disturbed in this run", below),
        (f"rounds differ by over {MAX_SPREAD:.0%}, do not quote ({len(wide)} {share})", wide),
        (f"other programs kept over {MAX_FOREIGN_CORES:g} cores busy meanwhile ({len(beside)} {share})", beside),
    ]
    return [f"{what}: {', '.join(_named(found))}" for what, found in told if found]


def _named(results: Sequence[Result]) -> list[str]:
    return [f"{r.case} ({r.placement})" for r in results]


def conditions(run: Run) -> list[str]:
    """Say how and where it was measured, and what was not installed."""
    rounds, seconds = run.settings["rounds"], run.settings["seconds"]
    hot = "hot (repetitions follow each other without a pause) unless the case says otherwise"
    missing = not_installed(run.machine)
    there = {key: value for key, value in run.machine.items() if key not in missing}
    lines = [f"Median of {rounds} interleaved rounds of {seconds} s each, {hot}. CPU: user and system time of all processes."]
    lines.append("; ".join(f"{key} {value}" for key, value in there.items()))
    return [*lines, f"not installed: {', '.join(missing)}"] if missing else lines


def summary(run: Run) -> str:
    """Return what a run prints at its end."""
    doubtful = doubts(run.results) or ["No figure of this run is in doubt by its own spread, its floor, or other programs."]
    return "\n".join([table(run.results), "", *conditions(run), *marks(run.results), *doubtful])


def page(run: Run, pictures: Sequence[str]) -> str:
    """Return a page with one table for each group of cases.

    Args:
        pictures: names of files beside the page.
    """
    lines = ["# Results", "", *conditions(run), ""]
    lines += [f"![{name.rsplit('.', 1)[0].replace('-', ' ')}]({name})\n" for name in pictures]
    groups = dict.fromkeys(_section(r) for r in run.results)
    for group in groups:
        members = [r for r in run.results if _section(r) == group]
        floors = {r.floor for r in members} - {r.case for r in members}
        needed = [r for r in run.results if r.case in floors]
        lines += [f"## {group}", "", table([*needed, *members]), ""]
    lines += ["## What was aimed at, and what is in doubt", "", "```", *marks(run.results), *doubts(run.results), "```"]
    return "\n".join(lines) + "\n"


def _section(result: Result) -> str:
    return re.sub(r"^(sweep|scale)\..*", r"\1", result.group) or "other"
