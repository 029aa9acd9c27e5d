"""Tests of the demo as a user starts it: real processes, tcp, few steps."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from edgeml_ipc.cli import main

ROOT = Path(__file__).parents[2]
DEADLINE_SECONDS = 100


Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start `edgeml-ipc demo` in process groups of their own, of which nothing is left in the end."""
    started: list[subprocess.Popen[str]] = []

    def start_one(*arguments: str) -> subprocess.Popen[str]:
        started.append(
            subprocess.Popen(
                [sys.executable, "-m", "edgeml_ipc", "demo", *arguments],
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
        )
        return started[-1]

    yield start_one
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def children_once_it_says(process: subprocess.Popen[str], pattern: str) -> list[psutil.Process]:
    """Wait for a line of output and return the children that live then."""
    assert process.stdout is not None
    for line in process.stdout:
        if re.search(pattern, line):
            return psutil.Process(process.pid).children(recursive=True)
    raise AssertionError(f"the demo ended without a line that matches {pattern!r}")


def summary_of(output: str) -> dict[str, str]:
    return dict(part.split("=") for part in output.splitlines()[-1].split())


def test_a_short_run_loses_and_doubles_nothing_and_learns_nothing(start: Start) -> None:
    process = start("--transport", "tcp", "--steps", "1400", "--seed", "3")
    output, _ = process.communicate(timeout=DEADLINE_SECONDS)
    assert "Traceback" not in output, output
    assert re.search(r"killed actor-\d\.0 by SIGKILL near step \d+, and replaced it", output), output
    assert "did not learn: the mean evaluation return is -" in output
    summary = summary_of(output)
    assert list(summary) == ["return", "transport", "inserted", "lost", "duplicated", "evicted", "seconds"]
    assert float(summary["return"]) < -300
    assert int(summary["inserted"]) >= 1400
    assert (summary["transport"], summary["lost"], summary["duplicated"], summary["evicted"]) == ("tcp", "0", "0", "0")
    assert process.returncode == 1


def test_the_halves_run_by_themselves(start: Start) -> None:
    learner = start("--learner", "--transport", "tcp", "--port", "0", "--steps", "300")
    assert learner.stdout is not None
    port = re.search(r"listens at tcp://127\.0\.0\.1:(\d+)", learner.stdout.readline())
    assert port is not None
    actor = start("--actor", "--transport", "tcp", "--ip", "127.0.0.1", "--port", port[1])
    output, _ = actor.communicate(timeout=DEADLINE_SECONDS)
    assert re.fullmatch(r"acknowledged=3\d\d evicted=0 transport=tcp\n", output), output
    assert actor.returncode == 0
    output, _ = learner.communicate(timeout=DEADLINE_SECONDS)
    summary = summary_of(output)
    assert (summary["transport"], summary["lost"], summary["duplicated"]) == ("tcp", "0", "0")
    assert int(summary["inserted"]) >= 300
    assert learner.returncode == 1


def test_ctrl_c_is_clean(start: Start) -> None:
    process = start("--transport", "tcp")
    children = children_once_it_says(process, "the learner listens")
    assert len(children) >= 3  # a learner and two actors
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: all of the group gets it
    output, _ = process.communicate(timeout=DEADLINE_SECONDS)
    assert "Traceback" not in output, output
    assert output.endswith("interrupted\n")
    assert process.returncode == 130
    assert psutil.wait_procs(children, timeout=DEADLINE_SECONDS)[1] == []


def test_no_process_outlives_a_killed_launcher(start: Start) -> None:
    process = start("--transport", "tcp")
    children = children_once_it_says(process, "the learner listens")
    assert len(children) >= 3  # a learner and two actors
    process.kill()
    process.communicate(timeout=DEADLINE_SECONDS)
    assert psutil.wait_procs(children, timeout=DEADLINE_SECONDS)[1] == []


def test_impossible_settings_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--steps", "0"]) == 2
    assert "steps must be at least 1, got 0" in capsys.readouterr().err


def test_help_names_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ending:
        main(["--help"])
    assert ending.value.code == 0
    assert "demo" in capsys.readouterr().out
