"""A run as JSON: the machine, the settings, every round of every result; and back."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.harness import Axis, Mark, Result

FORMAT = 2
NEEDED = ("edgeml_ipc", "numpy", "pyzmq", "msgspec")
PEERS = (
    *("iceoryx2", "portal", "eclipse-zenoh", "faster-fifo", "grpcio", "websockets", "msgpack", "lz4", "ray"),
    *("cpprb", "stable-baselines3", "tianshou", "torchrl", "torch", "flashbax", "jax", "dm-reverb"),
)


@dataclass(frozen=True)
class Run:
    """What one run measured.

    Attributes:
        machine: what the numbers depend on. settings: rounds, seconds of each, what was left out.
    """

    machine: dict[str, Any]
    settings: dict[str, Any]
    results: list[Result]

    def write(self, path: Path) -> None:
        """Write all of it."""
        document = {
            "format": FORMAT,
            "machine": self.machine,
            "settings": self.settings,
            "results": [asdict(result) for result in self.results],
        }
        path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def read(path: Path) -> Run:
    """Read what `Run.write` wrote.

    Raises:
        ValueError: it is not that, or of another format.
    """
    foreign = f"{path} was not written by `python -m benchmarks run --json` of this version"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{foreign}: {error}") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ValueError(foreign)
    try:
        return Run(document["machine"], document["settings"], [_result(fields) for fields in document["results"]])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{foreign}: it has other fields: {error}") from error


def _result(fields: dict[str, Any]) -> Result:
    marks = tuple(Mark(**mark) for mark in fields.pop("marks"))
    axis = fields.pop("axis")
    return Result(**fields, marks=marks, axis=Axis(**axis) if axis else None)


def _field(path: str, key: str) -> str:
    """Return the value of the first `key: value` line of a file in /proc."""
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return "unknown"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def machine() -> dict[str, Any]:
    """Describe what the numbers depend on."""
    root = Path(__file__).resolve().parents[1]
    git = subprocess.run(["git", "-C", root, "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return {
        "cpu": _field("/proc/cpuinfo", "model name"),
        "cpus": len(os.sched_getaffinity(0)),
        "memory": _field("/proc/meminfo", "MemTotal"),
        "kernel": platform.release(),
        "architecture": platform.machine(),
        "load_average_before": os.getloadavg()[0],
        "python": platform.python_version(),
        **{package: _version(package) for package in (*NEEDED, *PEERS)},
        "commit": git.stdout.strip() or "unknown",
    }


def differences(one: Run, other: Run) -> list[str]:
    """Say in what the machines, or the settings, of two runs differ; the load and the commit are expected to."""
    expected = {"load_average_before", "commit"}
    pairs = [
        (key, mine.get(key), theirs.get(key))
        for mine, theirs in ((one.machine, other.machine), (one.settings, other.settings))
        for key in dict.fromkeys((*mine, *theirs))
        if key not in expected
    ]
    return [f"{key}: {a} against {b}" for key, a, b in pairs if a != b]


def not_installed(found: dict[str, Any], packages: Sequence[str] = PEERS) -> list[str]:
    """List the peers that this run could not have."""
    return [package for package in packages if found.get(package) == "not installed"]
