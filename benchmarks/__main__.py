"""Run the benchmarks: `python -m benchmarks [--quick] [--json FILE] [--only NAME]`."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from benchmarks import floors, gym_vectors, ours_services, ours_transports, peers, replay
from benchmarks.harness import Case, measure
from benchmarks.report import as_json, doubts, machine, marks, table


def chosen(cases: list[Case], only: list[str]) -> list[Case]:
    """Return the cases whose names contain one of the words, and the floors that they are compared with."""
    names = {case.name for case in cases if not only or any(word in case.name for word in only)}
    needed = names | {case.floor for case in cases if case.name in names and case.floor}
    return [case for case in cases if case.name in needed]


def main() -> int:
    """Parse the arguments, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="3 short rounds instead of 5: to see that it runs, not to quote")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything, round by round, to FILE")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="only cases whose name contains NAME")
    parser.add_argument("--list", action="store_true", help="only list the cases")
    arguments = parser.parse_args()

    everything = [floors, peers, ours_transports, ours_services, gym_vectors, replay]
    cases = chosen([case for module in everything for case in module.CASES], arguments.only)
    if not cases:
        parser.error(f"no case matches {arguments.only}")
    if arguments.list:
        print("\n".join(f"{case.name:32} {case.what}" for case in cases))
        return 0

    rounds, seconds = (3, 0.1) if arguments.quick else (5, 0.4)
    before = machine()
    terminal = sys.stderr.isatty()
    began = time.monotonic()
    results = measure(
        cases,
        rounds=rounds,
        seconds=seconds,
        log=lambda text: print(
            f"\r\033[K{text}" if terminal else text, end="" if terminal else "\n", file=sys.stderr, flush=True
        ),
    )
    if terminal:
        print("\r\033[K", end="", file=sys.stderr)
    print(table(results))
    print(f"\nMedian of {rounds} interleaved rounds of {seconds} s each; hot: repetitions follow each other without a pause.")
    print("; ".join(f"{key} {value}" for key, value in before.items()))
    print("\n".join(marks(results)))
    print("\n".join(doubts(results)) or "No figure of this run is in doubt by its own spread or floor.")
    print(f"{time.monotonic() - began:.0f} s in all. Reasons for doubt: benchmarks/README.md")
    if arguments.json:
        document = as_json(results, rounds=rounds, seconds=seconds, only=arguments.only)
        document["machine"] = before
        arguments.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
