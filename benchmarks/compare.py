"""Two runs, case by case: how much one takes of what the other took, and what is within noise."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.document import Run, differences
from benchmarks.harness import Result
from benchmarks.report import number

SAME_SIZE = 0.02  # a difference smaller than this is never called one


@dataclass(frozen=True)
class Change:
    """One figure of one case in two runs.

    Attributes:
        ratio: median of the second run over that of the first. low, high: the least and the most that any two rounds give.
        more_is_better: for rates.
    """

    case: str
    placement: str
    figure: str
    before: float
    after: float
    low: float
    high: float
    more_is_better: bool

    @property
    def ratio(self) -> float:
        """Return how much the second run has of what the first had."""
        return self.after / self.before

    @property
    def verdict(self) -> str:
        """Say what the rounds allow to say: a change only where every round of one run lies beyond every round of the other."""
        if self.low <= 1 <= self.high or abs(self.ratio - 1) < SAME_SIZE:
            return "within noise"
        return "better" if (self.ratio > 1) == self.more_is_better else "WORSE"


def changes(before: Run, after: Run) -> Iterator[Change]:
    """Compare p50 and CPU of timed cases, the rate where it is one of its own, and the figures of the others."""
    theirs = {(r.case, r.placement): r for r in after.results}
    for one in before.results:
        other = theirs.get((one.case, one.placement))
        if other is None or not one.rounds or not other.rounds:
            continue
        for figure in _figures(one):
            if other.has(figure):
                change = _change(one, other, figure)
                if change is not None:
                    yield change


def _figures(result: Result) -> list[str]:
    if not result.is_timed():
        return list(result.rounds[0])
    one_way = result.group == "one way"
    return [figure for figure in ("p50_us", *(["per_second"] if one_way else []), "cpu_us") if result.has(figure)]


def _change(one: Result, other: Result, figure: str) -> Change | None:
    mine, theirs = [r[figure] for r in one.rounds], [r[figure] for r in other.rounds]
    if min(*mine, *theirs) <= 0:
        return None
    low, high = min(theirs) / max(mine), max(theirs) / min(mine)
    more_is_better = figure == "per_second" or "/s" in figure
    return Change(one.case, one.placement, figure, one.median(figure), other.median(figure), low, high, more_is_better)


def comparison(before: Run, after: Run) -> str:
    """Return a Markdown table, the largest changes first, and what the runs do not share."""
    found = list(changes(before, after))
    real = sorted((c for c in found if c.verdict != "within noise"), key=lambda c: -max(c.ratio, 1 / c.ratio))
    noise = [c for c in found if c.verdict == "within noise"]
    lines = [f"! not the same: {text}" for text in differences(before, after)]
    lines += ["| case | placement | figure | before | after | ratio | rounds allow | |", "|---|---|---|--:|--:|--:|--:|---|"]
    lines += [
        f"| {c.case} | {c.placement} | {c.figure} | {number(c.before)} | {number(c.after)} | {c.ratio:.2f} "
        f"| {c.low:.2f}–{c.high:.2f} | {c.verdict} |"
        for c in (*real, *noise)
    ]
    names = [{(r.case, r.placement) for r in run.results if r.rounds} for run in (before, after)]
    lines += ["", f"{len(real)} of {len(found)} figures differ by more than their rounds do."]
    for which, missing in (("second", names[0] - names[1]), ("first", names[1] - names[0])):
        if missing:
            lines.append(f"not in the {which} run: " + ", ".join(f"{case} ({where})" for case, where in sorted(missing)))
    return "\n".join(lines)
