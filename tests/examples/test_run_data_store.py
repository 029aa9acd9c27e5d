"""The data store example runs as a user would run it: in one process, in two, and until Ctrl-C."""

import re
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.meta.source import ROOT

COMMAND = [sys.executable, "examples/run_data_store"]
LEARNED = re.compile(r"learner: (\d+) transitions, (\d+) held; (\d+) batches of 256, [\d,]+ rows/s; mean reward -\d+\.\d+")


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        process.kill()
        process.communicate()


def start(processes: list[subprocess.Popen[str]], *options: str) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    processes.append(subprocess.Popen([*COMMAND, *options], cwd=ROOT, stdout=pipe, stderr=pipe, text=True))
    return processes[-1]


def start_server(processes: list[subprocess.Popen[str]], *options: str) -> tuple[subprocess.Popen[str], str]:
    server = start(processes, "--server", "--port", "0", *options)
    assert server.stdout is not None
    line = server.stdout.readline()
    assert line.startswith("learner: waiting for actors at auto://127.0.0.1:"), line
    return server, line.strip().rpartition(":")[2]


def check_end(learner: str, steps: int, capacity: int) -> None:
    last = LEARNED.fullmatch(learner.splitlines()[-1])
    assert last is not None, learner
    inserted, held, batches = map(int, last.groups())
    assert (inserted, held) == (steps, capacity)
    assert batches >= 1


def test_one_process() -> None:
    command = [*COMMAND, "--steps", "3000", "--capacity", "2000"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert any(line.startswith("actor: sent 3000 transitions of ") for line in lines)
    check_end("\n".join(line for line in lines if line.startswith("learner")), 3000, 2000)


def test_two_processes(processes: list[subprocess.Popen[str]]) -> None:
    server, port = start_server(processes, "--steps", "3000", "--capacity", "2000")
    client = start(processes, "--client", "--port", port, "--steps", "3000")
    out, errors = client.communicate(timeout=100)
    assert (client.returncode, errors) == (0, "")
    assert re.search(r"connected over (shm|tcp)\nactor: sent 3000 transitions of \d+ whole episodes\n$", out), out
    out, errors = server.communicate(timeout=100)
    assert (server.returncode, errors) == (0, "")
    check_end(out, 3000, 2000)


def test_two_actors(processes: list[subprocess.Popen[str]]) -> None:
    server, port = start_server(processes, "--steps", "2000")
    for _ in range(2):
        client = start(processes, "--client", "--port", port, "--steps", "1000")
        out, _ = client.communicate(timeout=100)
        assert "actor: sent 1000 transitions" in out
    check_end(server.communicate(timeout=100)[0], 2000, 2000)


def test_ctrl_c_ends_a_server_that_waits(processes: list[subprocess.Popen[str]]) -> None:
    server, _ = start_server(processes)
    server.send_signal(signal.SIGINT)
    out, errors = server.communicate(timeout=100)
    assert (server.returncode, out, errors) == (0, "interrupted\n", "")


def test_ctrl_c_ends_both_of_one_process(processes: list[subprocess.Popen[str]]) -> None:
    process = start(processes, "--steps", "1000000000")
    assert process.stdout is not None
    for line in process.stdout:
        if LEARNED.match(line):
            break
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=100)
    assert (process.returncode, errors) == (0, "")
    assert out.endswith("interrupted\n")


def test_an_actor_says_that_its_learner_went(processes: list[subprocess.Popen[str]]) -> None:
    server, port = start_server(processes, "--steps", "1000000000")
    client = start(processes, "--client", "--port", port, "--steps", "1000000000")
    assert server.stdout is not None
    assert LEARNED.match(server.stdout.readline())
    server.send_signal(signal.SIGINT)
    server.communicate(timeout=100)
    out, _ = client.communicate(timeout=100)
    assert client.returncode == 0
    assert "actor: the learner does not answer any more: " in out


def test_help() -> None:
    done = subprocess.run([*COMMAND, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0
    for option in ("--server", "--client", "--ip", "--port", "--steps"):
        assert option in done.stdout
