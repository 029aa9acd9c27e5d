"""Tests of edgeml_ipc.demo.metrics and edgeml_ipc.demo.environment."""

import builtins
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import gymnasium
import mujoco
import numpy as np
import pytest

from edgeml_ipc.demo import metrics
from edgeml_ipc.demo.environment import make_env
from edgeml_ipc.demo.metrics import Metrics


def test_lines_come_every_few_seconds_with_means_of_ten(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    now = 0.0
    monkeypatch.setattr(metrics.time, "monotonic", lambda: now)
    picture = tmp_path / "curve.svg"
    with Metrics("a title", str(picture)) as run:
        run.progress(1, {"updates": 0}, now=True)
        for step in range(1, 31):
            now += 0.25
            run.episode(step * 10, float(step))
            run.progress(step * 10, {"updates": step, "loss": 0.123456})
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "step 1  return -  updates 0  0.0 s",
        "step 80  return 4.5 (mean of 8)  updates 8  loss 0.1235  2.0 s",
        "step 160  return 11.5 (mean of 10)  updates 16  loss 0.1235  4.0 s",
        "step 240  return 19.5 (mean of 10)  updates 24  loss 0.1235  6.0 s",
        "episodes 30: the last 10 returned 25.5 on average",
        f"the learning curve is in {picture}",
    ]
    assert "a title" in picture.read_text(encoding="utf-8")


def test_nothing_is_drawn_of_no_episode(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Metrics("a title", str(tmp_path / "curve.png")).close()
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("package", "options", "extra"),
    [
        ("matplotlib", {"plot": "curve.png"}, r"edgeml_ipc\[plot\]"),
        ("tensorboardX", {"tensorboard": "boards"}, r"edgeml_ipc\[tensorboard\]"),
    ],
)
def test_a_missing_package_is_named_at_once(
    monkeypatch: pytest.MonkeyPatch, package: str, options: dict[str, str], extra: str
) -> None:
    real_import = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] == package:
            raise ImportError(f"No module named {name!r}")
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=extra):
        Metrics("a title", **options)


def test_actions_are_scaled_and_observations_are_float32() -> None:
    pendulum, cheetah = make_env(), make_env("HalfCheetah-v5")
    for env in (pendulum, cheetah):
        observation, _ = env.reset(seed=0)
        assert observation.dtype == env.observation_space.dtype == np.float32
        assert env.observation_space.contains(observation)
        assert (env.action_space.low == -1).all()
        assert (env.action_space.high == 1).all()
    assert pendulum.unwrapped.action_space.high == 2


def test_mujocos_own_files_and_lines_are_not_made(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    code = "from edgeml_ipc.demo.environment import make_env; make_env('HalfCheetah-v5').reset(seed=0)"
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


def test_mujocos_other_warnings_are_heard() -> None:
    env = make_env("HalfCheetah-v5")
    env.reset(seed=0)
    model, data = env.unwrapped.model, env.unwrapped.data
    data.qpos[:] = np.nan
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        mujoco.mj_step(model, data)
    assert any("mujoco: " in str(warning.message) for warning in heard)


def test_environments_without_vectors_are_refused() -> None:
    with pytest.raises(ValueError, match=r"the actions of CartPole-v1 must be a Box of shape \(n,\), got Discrete\(2\)"):
        make_env("CartPole-v1")
    with pytest.raises(gymnasium.error.NameNotFound):
        make_env("NoSuchThing-v0")
