"""A logger that is killed anywhere leaves every episode that had ended, in files that tensorflow-datasets reads."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from tests.datasets.killed_logger import EPISODES
from tests.meta.source import ROOT

SEED = int.from_bytes(os.urandom(4))


def numbers_in(directory: Path) -> list[int]:
    """Return which episodes a data set has, after a look at each of their steps."""
    if not (directory / "dataset_info.json").exists():
        return []
    builder = tfds.builder_from_directory(str(directory))
    if not builder.info.splits:
        return []
    order = tfds.ReadConfig(interleave_cycle_length=1)
    found = []
    for episode in builder.as_dataset(split="train", read_config=order):
        steps = next(iter(tfds.as_numpy(episode["steps"].batch(10))))
        assert steps["is_last"].tolist() == [False, False, True]
        (number,) = set(steps["observation"].ravel().tolist())
        found.append(int(number))
    return found


def test_killed_before_each_operation_on_a_file(tmp_path: Path) -> None:
    script = Path(__file__).with_name("killed_logger.py")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)], env=environment, capture_output=True, text=True, timeout=100
    )
    assert (done.returncode, done.stderr) == (0, "")
    operations = int(done.stdout)
    assert operations > 50
    again: dict[bytes, list[int]] = {}  # many are alike
    for number in range(1, operations + 1):
        here = tmp_path / str(number)
        recorded = (here / "recorded").stat().st_size
        found = numbers_in(here / "killed")
        # Between the end of `record` and the byte that says so the process may have been killed.
        assert found in (list(range(recorded)), list(range(recorded + 1))), f"killed at operation {number}"
        paths = sorted((here / "again").iterdir())
        content = b"".join(path.name.encode() + path.read_bytes() for path in paths)
        if content not in again:
            again[content] = numbers_in(here / "again")
        assert again[content] == [*found, 99], f"killed at operation {number}"
        files = [path.name for path in paths if "tfrecord" in path.name]
        assert [path.name for path in paths] == ["dataset_info.json", "features.json", *files], f"killed at operation {number}"
        assert len(files) <= 1 + -(-EPISODES // 3)


@pytest.mark.parametrize("round_", range(6))
def test_killed_at_any_moment(tmp_path: Path, round_: int) -> None:
    rng = np.random.default_rng([SEED, round_])
    code = f"""
import itertools, sys
from tests.datasets.killed_logger import episode
from edgeml_ipc import RLDSLogger
import numpy as np
from gymnasium.spaces import Box
box = Box(-np.inf, np.inf, (2,))
with RLDSLogger(box, box, "walks", {str(tmp_path)!r}, max_episodes_per_file=3) as log:
    for number in itertools.count():
        log.batch_record(episode(number))
        print(number, flush=True)
"""
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        last = -1
        for _ in range(int(rng.integers(1, 40))):
            last = int(process.stdout.readline())
        process.kill()
        rest = [int(line) for line in process.stdout]
    last = rest[-1] if rest else last
    found = numbers_in(tmp_path)
    assert found in (list(range(last + 1)), list(range(last + 2))), f"seed {SEED}, round {round_}"
