"""Tests of edgeml_ipc.launch."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import psutil

from edgeml_ipc.launch import pipe, spawn


def report_self(writer: Any, *parts: str) -> None:
    """Send process id, whether Ctrl-C is held back, and the arguments (runs in the child)."""
    masked = signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    writer.send_bytes(f"{os.getpid()} {masked} {' '.join(parts)}".encode())


def test_a_spawned_process_gets_its_arguments_and_no_ctrl_c() -> None:
    reader, writer = pipe()
    process = spawn(report_self, writer, "a", "b", name="child")
    writer.close()
    assert reader.poll(60)
    assert reader.recv_bytes().decode() == f"{process.pid} True a b"
    process.join(60)
    assert process.exitcode == 0
    assert process.name == "child"


def test_the_parent_keeps_its_ctrl_c() -> None:
    reader, writer = pipe()
    process = spawn(report_self, writer, name="child")
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    process.join(60)
    reader.close()
    writer.close()


def wait_for_ever() -> None:
    """Say who this is, then do nothing at all: only the end of the parent can end it (runs in the child)."""
    print(os.getpid(), flush=True)
    threading.Event().wait()


PARENT = """
from edgeml_ipc.launch import spawn
from tests.test_launch import wait_for_ever

if __name__ == "__main__":
    spawn(wait_for_ever, name="child").join()
"""


def test_a_spawned_process_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    root = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True, env=environment) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    try:
        child.wait(30)
    finally:
        if child.is_running():
            child.kill()
