"""`python -m benchmarks run`, `report` and `compare`, as a user calls them."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.meta.source import ROOT

SECONDS = 100
CASES = (
    "codec.encode.small.compiled",
    "sweep.64B.transport.shm",
    "sweep.1KiB.transport.shm",
    "update.shm.stream.list50",
    "floor.pingpong.python",
)


def benchmarks(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS, check=False)


@dataclass(frozen=True)
class Finished:
    """A run, what it wrote, and what names it left."""

    done: subprocess.CompletedProcess[str]
    path: Path
    left: set[str]

    @property
    def document(self) -> dict[str, Any]:
        return json.loads(self.path.read_text(encoding="utf-8"))  # type: ignore[no-any-return]

    def changed(self, path: Path, change: Callable[[dict[str, Any]], None], case: str) -> Path:
        """Write the same run, but for the rounds of one case."""
        document = copy.deepcopy(self.document)
        for result in document["results"]:
            if result["case"] == case:
                for one in result["rounds"]:
                    change(one)
        path.write_text(json.dumps(document), encoding="utf-8")
        return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    path = tmp_path_factory.mktemp("run") / "run.json"
    before = set(os.listdir("/dev/shm"))
    only = [word for case in CASES for word in ("--only", case)]
    done = benchmarks("run", "--quick", "--json", str(path), *only)
    assert done.returncode == 0, done.stdout + done.stderr
    return Finished(done, path, {name for name in set(os.listdir("/dev/shm")) - before if "edgeml" in name})


def test_a_run_has_what_was_asked_for_and_the_floors(finished: Finished) -> None:
    results = {result["case"]: result for result in finished.document["results"]}
    assert set(results) == {*CASES, "floor.pingpong.spin"}
    for name, result in results.items():
        assert result["unavailable"] is None
        assert result["placement"] == "unpinned"
        assert len(result["rounds"]) == len(result["foreign_cores"]) == 3
        for figures in result["rounds"]:
            assert 0 < figures["p50_us"] <= figures["p99_us"], name
            assert figures["per_second"] > 0
    for name in CASES:
        assert all(figures["cpu_us"] > 0 for figures in results[name]["rounds"])
        assert f"| {name} " in finished.done.stdout


def test_a_run_shows_how_far_it_is_and_leaves_nothing(finished: Finished) -> None:
    assert "[  17/18] unpinned: round 3/3: update.shm.stream.list50" in finished.done.stderr
    assert finished.left == set()


def test_a_run_names_its_machine_and_what_it_aimed_at(finished: Finished) -> None:
    machine = finished.document["machine"]
    assert machine["cpus"] == len(os.sched_getaffinity(0))
    assert machine["python"].startswith(f"{sys.version_info.major}.{sys.version_info.minor}")
    assert "update.shm.stream.list50 (unpinned)" in finished.done.stdout.partition("Marks:")[2]


def test_a_report_has_tables_and_pictures(finished: Finished, tmp_path: Path) -> None:
    done = benchmarks("report", str(finished.path), "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    pictures = sorted(path.name for path in (tmp_path / "out").glob("*.svg"))
    assert pictures == ["cpu-against-size.svg", "latency-against-size.svg", "throughput-against-size.svg"]
    page = (tmp_path / "out" / "results.md").read_text(encoding="utf-8")
    assert all(f"]({name})" in page for name in pictures)
    assert all(f"| {name} " in page for name in CASES)
    assert all(f"\n## {section}\n" in page for section in ("codec", "sweep", "one way"))
    drawn = (tmp_path / "out" / "latency-against-size.svg").read_text(encoding="utf-8")
    assert "<!-- 1 KiB -->" in drawn


def test_a_report_without_a_folder_is_what_the_run_printed(finished: Finished) -> None:
    done = benchmarks("report", str(finished.path))
    assert done.returncode == 0
    assert finished.done.stdout.startswith(done.stdout.strip())


def compared(before: Path, after: Path) -> dict[tuple[str, str], list[str]]:
    """Return (case, figure) -> before, after, ratio, what the rounds allow, verdict."""
    done = benchmarks("compare", str(before), str(after))
    assert done.returncode == 0, done.stderr
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines() if line.startswith("| ")]
    return {(row[0], row[2]): row[3:] for row in rows[1:]}


def test_a_run_equals_itself(finished: Finished) -> None:
    rows = compared(finished.path, finished.path)
    assert {case for case, _ in rows} == {*CASES, "floor.pingpong.spin"}
    assert all(row[2] == "1.00" and row[4] == "within noise" for row in rows.values())


def test_twice_the_time_is_found(finished: Finished, tmp_path: Path) -> None:
    case = CASES[1]
    steady = finished.changed(tmp_path / "steady.json", lambda one: one.update(p50_us=10.0), case)
    slower = finished.changed(tmp_path / "slower.json", lambda one: one.update(p50_us=20.0), case)
    assert compared(steady, slower)[case, "p50_us"][2:] == ["2.00", "2.00–2.00", "WORSE"]
    assert compared(slower, steady)[case, "p50_us"][2:] == ["0.50", "0.50–0.50", "better"]
    rows = compared(steady, slower)
    assert [key for key, row in rows.items() if row[4] != "within noise"] == [(case, "p50_us")]


def test_a_lower_rate_is_worse(finished: Finished, tmp_path: Path) -> None:
    case = CASES[3]
    before = finished.changed(tmp_path / "before.json", lambda one: one.update(per_second=1000.0), case)
    after = finished.changed(tmp_path / "after.json", lambda one: one.update(per_second=500.0), case)
    assert compared(before, after)[case, "per_second"][4] == "WORSE"


def test_rounds_that_overlap_are_noise(finished: Finished, tmp_path: Path) -> None:
    case, times = CASES[1], iter([10.0, 11.0, 30.0, 20.0, 22.0, 24.0])
    before = finished.changed(tmp_path / "before.json", lambda one: one.update(p50_us=next(times)), case)
    after = finished.changed(tmp_path / "after.json", lambda one: one.update(p50_us=next(times)), case)
    assert compared(before, after)[case, "p50_us"][2:] == ["2.00", "0.67–2.40", "within noise"]


def test_another_machine_is_pointed_out(finished: Finished, tmp_path: Path) -> None:
    document = finished.document
    document["machine"]["cpu"] = "another"
    document["results"] = document["results"][1:]
    other = tmp_path / "other.json"
    other.write_text(json.dumps(document), encoding="utf-8")
    printed = benchmarks("compare", str(finished.path), str(other)).stdout
    assert f"! not the same: cpu: {finished.document['machine']['cpu']} against another" in printed
    assert "not in the second run: floor.pingpong.spin (unpinned)" in printed


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text("{}", encoding="utf-8")
    for words in (("report", str(path)), ("compare", str(path), str(path)), ("report", str(tmp_path / "missing"))):
        done = benchmarks(*words)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1, done.stderr


def test_ctrl_c_keeps_what_was_measured(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    only = ("--only", "codec.encode.small", "--only", "idle.shm", "--json", str(path))
    command = [sys.executable, "-m", "benchmarks", "run", "--quick", *only]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr is not None
        for line in running.stderr:
            if "opening idle.shm" in line:
                break
        running.send_signal(signal.SIGINT)
        printed, told = running.communicate(timeout=SECONDS)
    assert running.returncode == 130, told
    assert told.splitlines()[-1] == "interrupted: what is missing was not measured"
    results = json.loads(path.read_text(encoding="utf-8"))["results"]
    assert [result["case"] for result in results] == ["codec.encode.small.compiled", "codec.encode.small.python"]
    assert "codec.encode.small.python" in printed


def test_without_a_word_it_runs_and_lists() -> None:
    listed = benchmarks("--list", "--only", "transport.shm")
    assert listed.returncode == 0
    assert "transport.shm.64B " in listed.stdout
    assert "update.tcp" not in listed.stdout
    unknown = benchmarks("run", "--only", "nothing has this name")
    assert (unknown.returncode, unknown.stdout) == (2, "")
    assert "nothing has this name" in unknown.stderr
