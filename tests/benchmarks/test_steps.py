"""`python -m benchmarks steps`: every step of a call, and nothing that is not one."""

import re
import subprocess
import sys

from benchmarks.steps import STEPS, call_steps
from tests.meta.source import ROOT


def test_large_messages_cost_more_where_they_are_copied() -> None:
    small, large = call_steps(64, 200), call_steps(8 << 20, 20)
    assert tuple(small) == tuple(large) == STEPS
    assert sum(small.values()) > 0
    send, decoding = "client: envelope, send", "client: open the envelope, decode"
    assert large[send] > 10 * small[send]
    assert large[decoding] < large[send]


def test_the_command_prints_all_steps() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "steps"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    for step in STEPS:
        assert re.search(rf"\| {re.escape(step)} \| [\d,]+ \| [\d,]+ \|", done.stdout)
    assert re.search(r"\| encode the request \| [\d,]+ \|", done.stdout)
