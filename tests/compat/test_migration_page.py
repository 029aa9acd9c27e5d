"""What docs/migration.md shows is what runs, and what it names is there."""

from __future__ import annotations

import importlib
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "migration.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
PROGRAMS = {block.partition("\n")[0].removeprefix("# "): block for block in BLOCKS if block.startswith("# ")}

# Every command of edgeml's readme.
COMMANDS = [
    "pip install -e .",
    "python3 examples/action_streamer.py --server",
    "python3 examples/action_streamer.py --client",
    "python3 examples/run_data_store.py",
    "python3 examples/async_learner_actor.py",
    "python3 edgeml/tests/test_action.py",
    "python3 edgeml/tests/test_inference.py",
    "python3 edgeml/tests/test_trainer.py",
    "python3 edgeml/tests/test_tfds.py",
    "python3 edgeml/tests/test_all.py",
    "pytest-3 edgeml/tests/test_data_store.py",
]


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def run(code: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONUNBUFFERED": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True)


@pytest.mark.parametrize(
    ("service", "port", "expected"),
    [
        ("action", 6379, r"\{'status': 'received', 'key': 'move', 'action': \{'towards': 'some value'\}\}\n"),
        ("inference", 6379, r"\{'prediction': 16\}\n"),
        ("trainer", 5555, r"\{'bias': \d+\.\d*\}\n"),
    ],
)
def test_the_programs_run(service: str, port: int, expected: str) -> None:
    chosen = str(free_port())
    server, client = (run(PROGRAMS[f"{service} {side}"].replace(str(port), chosen)) for side in ("server", "client"))
    try:
        said, complained = client.communicate(timeout=100)
        assert client.returncode == 0, complained
        assert re.fullmatch(expected, said), said
        assert server.poll() is None
    finally:
        for process in (server, client):
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
            process.communicate(timeout=60)


def test_the_other_blocks_run() -> None:
    others = [block for block in BLOCKS if not block.startswith("# ")]
    assert len(others) == 1
    code = others[0].replace('"my-run"', f'"my-run-{os.getpid()}"')
    process = run(code)
    said, complained = process.communicate(timeout=100)
    assert (process.returncode, said, complained) == (0, "", "")


def test_every_command_of_the_readme_is_named() -> None:
    rows = dict(re.findall(r"^\| `([^`]*)` \| (.*) \|$", PAGE.partition("## The commands")[2], re.MULTILINE))
    assert list(rows) == COMMANDS
    for there, here in rows.items():
        for target in re.findall(r"(?:python3 |ARGS=)([a-z_/.]+)", here):
            assert (ROOT / target).exists(), f"{there}: there is no {target}"


def test_every_module_of_the_table_is_there() -> None:
    modules = set(re.findall(r"`(?:from edgeml_ipc\.|import edgeml_ipc\.)?(compat[a-z_.]*)", PAGE.partition("##")[0]))
    assert len(modules) >= 14
    for module in modules:
        importlib.import_module(f"edgeml_ipc.{module}")


def test_the_names_of_the_main_api_are_there() -> None:
    import edgeml_ipc

    names = PAGE.partition("## Names")[2].partition("##")[0]
    ours = {cell for row in re.findall(r"^\|.*\|(.*)\|$", names, re.MULTILINE) for cell in re.findall(r"`([A-Z]\w+)", row)}
    assert ours >= {"TrajectoryBuffer", "ReplayBuffer", "TrainerTunnel", "EnvServer", "RemoteEnv"}
    service = importlib.import_module("edgeml_ipc.service")
    assert [name for name in ours if not hasattr(edgeml_ipc, name) and not hasattr(service, name)] == []
