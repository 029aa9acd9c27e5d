"""The quickstart runs as a user would run it."""

import subprocess
import sys

from tests.meta.source import ROOT


def test_quickstart_prints_three_actions_and_ends() -> None:
    command = [sys.executable, "examples/quickstart"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    assert {line.split(" over ")[0] for line in lines} == {"[-0.1 -0.1 -0.1 -0.1 -0.1 -0.1]"}
    assert {line.split(" over ")[1] for line in lines} <= {"shm", "tcp"}
