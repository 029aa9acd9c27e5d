"""The slow link for real: namespaces are made, both sides run in them, and nothing of it is left. Needs root."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.conftest import eventually
from tests.examples.programs import Program
from tests.meta.source import ROOT

RESULT = (
    r"^server: tcp: ([\d.]+) frames/s, (\d+) ms old \(p99 \d+\), ([\d.]+) MB/s; ([\d.]+) actions/s, (\d+) ms after the frame; "
    r"the ball is (\d+) pixels off$"
)


def left(pid: int) -> list[str]:
    """Return the namespaces and devices that a run made and that are still there."""
    namespaces = [path.name for path in Path("/run/netns").glob(f"edgeml-*-{pid}")]
    return namespaces + [path.name for path in Path("/sys/class/net").glob(f"*{pid}")]


def test_jpeg_against_raw() -> None:
    with Program("remote_edge", "--seconds", "4") as program:
        program.wait_for(r"^edge: publishes 30 frames/s, raw, ")
        assert len(left(program.process.pid)) == 2
        raw_rate, raw_age, raw_mb, _, raw_reaction, _ = map(float, program.wait_for(RESULT).groups())
        program.wait_for(r"^edge: publishes 30 frames/s, jpeg:90, ")
        rate, age, mb, actions, reaction, _ = map(float, program.wait_for(RESULT).groups())
        program.finish()
        assert left(program.process.pid) == []
    assert raw_mb < 2.6  # what 20 Mbit/s carry
    assert mb < 2.6
    assert rate > 3 * raw_rate
    assert age < raw_age / 2
    assert reaction < raw_reaction / 2
    assert age >= 20  # half the round trip
    assert reaction >= 40
    assert actions > 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_takes_all_down(number: signal.Signals) -> None:
    with Program("remote_edge", "--seconds", "100") as program:
        program.wait_for("^edge: publishes")
        eventually(lambda: len(psutil.Process(program.process.pid).children()) == 2)
        children = psutil.Process(program.process.pid).children(recursive=True)
        program.process.send_signal(number)
        program.finish()
        assert psutil.wait_procs(children, timeout=0)[1] == []
        assert left(program.process.pid) == []


def test_a_side_that_dies_ends_the_other_and_the_link() -> None:
    with Program("remote_edge", "--seconds", "100") as program:
        program.wait_for("^edge: publishes")
        parent = psutil.Process(program.process.pid)
        eventually(lambda: len(parent.children()) == 2)
        children = parent.children()
        next(child for child in children if "--server" in child.cmdline()).kill()
        program.wait_for("^the server ended with exit code -9$")
        assert program.process.wait(20) == 1
        assert psutil.wait_procs(children, timeout=0)[1] == []
        assert left(program.process.pid) == []


def test_a_link_for_other_programs() -> None:
    with Program("remote_edge", "--link") as link:
        edge = link.wait_for(r"^link: the edge's programs: (ip netns exec \S+) \.\.\.$")[1].split()
        address = link.wait_for(r"^link: the edge's address is (\S+);")[1]
        out = subprocess.run([*edge, "ip", "-o", "address"], capture_output=True, text=True, timeout=20).stdout
        assert f" {address}/24 " in out
        link.interrupt()
        assert link.finish().endswith("interrupted")
        assert left(link.process.pid) == []


def test_without_root_it_says_how_to_run_it() -> None:
    code = "import os, sys; sys.path.insert(0, 'examples/remote_edge'); from link import Link; os.seteuid(65534)"
    code += "; Link(20, 40).__enter__()"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    assert done.stderr == "to make network namespaces takes root: sudo -E python3 examples/remote_edge\n"


def test_help() -> None:
    with Program("remote_edge", "--help") as program:
        text = program.finish()
    for option in ("edge", "server", "ip", "port", "policy", "mbit", "round-trip-ms", "seconds", "insecure"):
        assert re.search(rf"--{option}\b", text)
