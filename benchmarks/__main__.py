"""Measure, report, compare, foretell: `python -m benchmarks run|report|compare|capacity`; without a word: run."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

SECONDS = {"quick": 0.1, "normal": 0.4, "full": 0.4}
ROUNDS = {"quick": 3, "normal": 5, "full": 5}
COMMANDS = ("run", "report", "compare", "capacity", "steps")


def run(arguments: argparse.Namespace) -> int:
    """Measure, print, and write."""
    from benchmarks.catalog import CASES, chosen
    from benchmarks.document import Run, machine
    from benchmarks.harness import Result, measure, placements
    from benchmarks.report import summary

    cases = chosen(CASES, arguments.only, arguments.without, full=arguments.full or arguments.list)
    if not cases:
        words = f"one of {arguments.only}" if arguments.only else "anything"
        sys.stderr.write(f"no case has a name that contains {words} and none of {arguments.without}; --list shows them\n")
        return 2
    if arguments.list:
        print("\n".join(f"{case.name:40} {'full   ' if case.heavy else '       '} {case.what}" for case in cases))
        return 0
    size = "quick" if arguments.quick else "full" if arguments.full else "normal"
    before, began = machine(), time.monotonic()
    where = [p for p in placements() if not arguments.quick or p.name == "unpinned"]
    results: list[Result] = []
    interrupted = False
    try:
        measure(cases, rounds=ROUNDS[size], seconds=SECONDS[size], log=_progress(began), where=where, results=results)
    except KeyboardInterrupt:
        interrupted = True
    settings = {
        "size": size,
        "rounds": ROUNDS[size],
        "seconds": SECONDS[size],
        "only": arguments.only,
        "without": arguments.without,
    }
    done = Run(before, settings, [result for result in results if result.rounds or result.unavailable])
    if sys.stderr.isatty():
        sys.stderr.write("\r\033[K")
    if arguments.json:
        done.write(arguments.json)
    print(summary(done))
    print(f"{time.monotonic() - began:.0f} s in all. Reasons for doubt: benchmarks/README.md")
    if interrupted:
        sys.stderr.write("interrupted: what is missing was not measured\n")
    return 130 if interrupted else 0


def _progress(began: float) -> Callable[[str], None]:
    """Return what shows how far it is: on one line of a terminal, else on a line each."""
    terminal = sys.stderr.isatty()

    def log(text: str) -> None:
        line = f"{time.monotonic() - began:6.0f} s {text}"
        sys.stderr.write(f"\r\033[K{line[:120]}" if terminal else f"{line}\n")
        sys.stderr.flush()

    return log


def report(arguments: argparse.Namespace) -> int:
    """Write a page of tables, and pictures beside it."""
    from benchmarks.document import read
    from benchmarks.pictures import draw
    from benchmarks.report import page, summary

    done = read(arguments.file)
    if arguments.out is None:
        print(summary(done))
        return 0
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "results.md").write_text(page(done, draw(done.results, arguments.out)), encoding="utf-8")
    print(f"wrote {arguments.out}/results.md")
    return 0


def compare(arguments: argparse.Namespace) -> int:
    """Print what differs."""
    from benchmarks.compare import comparison
    from benchmarks.document import read

    print(comparison(read(arguments.before), read(arguments.after)))
    return 0


def capacity(arguments: argparse.Namespace) -> int:
    """Print what the model says of a run, or write it with a picture."""
    from benchmarks.capacity.page import Question, page
    from benchmarks.capacity.parameters import parameters
    from benchmarks.capacity.picture import draw
    from benchmarks.document import read

    done = read(arguments.file)
    known = parameters(done)
    links = tuple(arguments.link_gbit or Question.links_gbit)
    question = Question(links, arguments.calls_per_second, arguments.callback_ms / 1e3, arguments.clients_per_host)
    if arguments.out is None:
        print(page(done, known, question), end="")
        return 0
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "capacity.md").write_text(page(done, known, question, draw(done, known, arguments.out)), encoding="utf-8")
    print(f"wrote {arguments.out}/capacity.md")
    return 0


def steps(_: argparse.Namespace) -> int:
    """Print where the time of a call goes."""
    from benchmarks.steps import page

    print(page())
    return 0


def _positive(word: str) -> float:
    """Parse a number above 0."""
    value = float(word)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{word} is no number above 0")
    return value


def _clients(word: str) -> int:
    """Parse a number of clients, 1 or more."""
    if not word.isdecimal() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"{word} is no number of clients")
    return int(word)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    top = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    words = top.add_subparsers(required=True)
    running = words.add_parser("run", help="measure")
    running.set_defaults(call=run)
    size = running.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="3 short rounds, unpinned only: to see that it runs, not to quote")
    size.add_argument("--full", action="store_true", help="also sizes from 0 to 256 MiB, more processes, untrimmed malloc")
    running.add_argument("--json", type=Path, metavar="FILE", help="also write everything, round by round, to FILE")
    running.add_argument("--only", action="append", default=[], metavar="NAME", help="only cases whose name contains NAME")
    running.add_argument("--without", action="append", default=[], metavar="NAME", help="no cases whose name contains NAME")
    running.add_argument("--list", action="store_true", help="only list the cases; `full`: those that need --full, or --only")
    reporting = words.add_parser("report", help="tables, and pictures, of a run")
    reporting.set_defaults(call=report)
    reporting.add_argument("file", type=Path, metavar="FILE", help="what `run --json` wrote")
    reporting.add_argument("--out", type=Path, metavar="DIR", help="write results.md and pictures there, instead of printing")
    comparing = words.add_parser("compare", help="two runs, case by case")
    comparing.set_defaults(call=compare)
    comparing.add_argument("before", type=Path, metavar="A.json")
    comparing.add_argument("after", type=Path, metavar="B.json")
    stepping = words.add_parser("steps", help="where the time of a call over shared memory goes, step by step")
    stepping.set_defaults(call=steps)
    needs = "FILE is what this wrote: python -m benchmarks run --only scale --json FILE. All parameters are read from it."
    foretelling = words.add_parser("capacity", help="what one server carries, on paper", description=needs)
    foretelling.set_defaults(call=capacity)
    foretelling.add_argument(
        "file", type=Path, metavar="FILE", help="needs the cases scale.cost.*, scale.clients.*, scale.tcp.*"
    )
    foretelling.add_argument(
        "--out", type=Path, metavar="DIR", help="write capacity.md and a picture there, instead of printing"
    )
    foretelling.add_argument("--link-gbit", type=_positive, action="append", help="of each machine, Gbit/s; default: 1 and 10")
    foretelling.add_argument("--calls-per-second", type=_positive, default=10.0, help="of each client (default %(default)g)")
    foretelling.add_argument("--callback-ms", type=_positive, default=2.0, help="that a policy takes (default %(default)g)")
    foretelling.add_argument("--clients-per-host", type=_clients, default=8, help="that share a relay (default %(default)d)")
    return top


def main(words: Sequence[str]) -> int:
    """Parse and do."""
    first = next(iter(words), "")
    known = first in COMMANDS or first in {"-h", "--help"}
    arguments = parser().parse_args(words if known else ["run", *words])
    try:
        return int(arguments.call(arguments))
    except (ValueError, OSError, RuntimeError) as error:
        if arguments.call is run:
            raise
        sys.stderr.write(f"{error}\n")
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
