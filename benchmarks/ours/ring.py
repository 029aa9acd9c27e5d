"""The C core under the shared-memory transport, without Python; see ring.c."""

from __future__ import annotations

from pathlib import Path

from benchmarks.compiled import program
from benchmarks.harness import Case
from benchmarks.shapes import SPIN

CORE = Path(__file__).resolve().parents[2] / "transports"
SOURCES = [*sorted(CORE.glob("*.c")), Path(__file__).with_name("ring.c")]


def _case(name: str, mode: str, ns_guess: int, what: str) -> Case:
    return Case(name, "ours", what, lambda p: program(p, SOURCES, mode, ns_guess, f"-I{CORE}"), SPIN, "there and back")


CASES = [
    _case("ring.alone", "alone", 150, "C core: 64 bytes sent, and read at the other end by the same thread"),
    _case("ring.pair", "pair", 1500, "C core: 64 bytes there and back between two threads"),
]
