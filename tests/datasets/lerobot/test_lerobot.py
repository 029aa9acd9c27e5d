"""LeRobot: what is written is read by LeRobot itself, without a network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lerobot.datasets.compute_stats import compute_episode_stats
from lerobot.datasets.lerobot_dataset import LeRobotDataset

from edgeml_ipc import DataShape, ReplayBuffer, TrajectoryBuffer, export_lerobot
from edgeml_ipc.datasets import lerobot_export
from edgeml_ipc.errors import DatasetError
from tests.datasets.worlds import ACTIONS, EXTRA, PLAIN_OBSERVATIONS, replay_buffer, rows_of, trajectory_buffer, transitions

ENDS = [(4, True), (7, False), (3, False), (1, True), (6, False), (5, False)]
FIELDS = {
    "observation.images.image": ("observations", "image"),
    "observation.images.grey": ("observations", "grey"),
    "observation.stack": ("observations", "stack"),
    "observation.few_bytes": ("observations", "few_bytes"),
    "observation.arm.joints": ("observations", "arm", "joints"),
    "observation.arm.exact": ("observations", "arm", "exact"),
    "observation.half": ("observations", "half"),
    "observation.mode": ("observations", "mode"),
    "observation.signed": ("observations", "signed"),
    "observation.touch": ("observations", "touch"),
    "action": ("actions",),
    "next.reward": ("rewards",),
}


@pytest.fixture(autouse=True)
def _offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def given(row: dict[str, Any], path: tuple[str, ...]) -> Any:
    value: Any = row
    for key in path:
        value = value[key]
    return value


def read(item: dict[str, Any], name: str) -> Any:
    """Return an item's value as it was written; of doubles LeRobot makes floats."""
    value = item[name].numpy()
    return np.round(np.moveaxis(value, 0, -1) * 255).astype(np.uint8) if ".images." in name else value


@pytest.mark.parametrize("make", [lambda seed: replay_buffer(seed, EXTRA[:2]), trajectory_buffer], ids=["replay", "trajectory"])
def test_every_row_comes_back(tmp_path: Path, make: Any) -> None:
    with make(0) as buffer:
        assert export_lerobot(buffer, tmp_path / "walks", 20, task="walk") == 6
        rows = rows_of(buffer)
    dataset = LeRobotDataset("us/walks", root=tmp_path / "walks")
    assert (dataset.num_episodes, dataset.num_frames, dataset.fps) == (6, 26, 20)
    at = 0
    for number, (steps, terminated) in enumerate(ENDS):
        for step in range(steps):
            item, row = dataset[at], rows[at]
            for name, path in FIELDS.items():
                value, wanted = read(item, name), np.asarray(given(row, path))
                wanted = wanted.astype(np.float32) if wanted.dtype == np.float64 else wanted
                assert value.tolist() == wanted.tolist(), (name, at)
            last = step == steps - 1
            assert (bool(item["next.done"]), bool(item["next.terminated"])) == (last, last and terminated)
            assert (int(item["episode_index"]), int(item["frame_index"]), int(item["index"])) == (number, step, at)
            assert item["timestamp"] == np.float32(step / 20)
            assert item["task"] == "walk"
            at += 1
    assert dataset.meta.episodes["length"] == [steps for steps, _ in ENDS]


def test_further_fields_come_back_and_windows_stay_in_their_episode(tmp_path: Path) -> None:
    with replay_buffer(0, EXTRA[:2]) as buffer:
        export_lerobot(buffer, tmp_path / "walks", 10)
        rows = rows_of(buffer)
    dataset = LeRobotDataset("us/walks", root=tmp_path / "walks", delta_timestamps={"action": [0.0, 0.1]})
    assert [dataset[at]["yes"].item() for at in range(26)] == [bool(row["yes"]) for row in rows]
    doubles = dataset.hf_dataset.data.table
    assert doubles["goal"].to_pylist() == [row["goal"].tolist() for row in rows]
    assert doubles["observation.arm.exact"].to_pylist() == [row["observations"]["arm"]["exact"].tolist() for row in rows]
    assert [dataset[at]["action_is_pad"].tolist() for at in (2, 3)] == [[False, False], [False, True]]


def test_the_statistics_are_those_that_lerobot_computes(tmp_path: Path) -> None:
    with replay_buffer(0, EXTRA[:2]) as buffer:
        export_lerobot(buffer, tmp_path / "walks", 10)
        rows = rows_of(buffer)
    dataset = LeRobotDataset("us/walks", root=tmp_path / "walks")
    names = ["observation.arm.joints", "action", "next.reward"]
    arrays = {name: np.array([given(row, FIELDS[name]) for row in rows], np.float64) for name in names}
    theirs = compute_episode_stats(arrays, dataset.features)
    stats = dataset.meta.stats
    assert stats is not None
    for name in names:
        for key in ("min", "max", "mean", "std", "count"):
            np.testing.assert_allclose(stats[name][key], theirs[name][key], rtol=1e-9, err_msg=f"{name} {key}")
    images = np.array([row["observations"]["image"] for row in rows]) / 255
    image = stats["observation.images.image"]
    np.testing.assert_allclose(image["mean"], images.mean(axis=(0, 1, 2)).reshape(3, 1, 1))
    np.testing.assert_allclose(image["std"], images.std(axis=(0, 1, 2)).reshape(3, 1, 1))
    assert image["count"].tolist() == [26]


def test_an_observation_without_names_is_the_state(tmp_path: Path) -> None:
    with ReplayBuffer(PLAIN_OBSERVATIONS, ACTIONS, 10) as buffer:
        buffer.batch_insert(transitions(np.random.default_rng(0), 3, PLAIN_OBSERVATIONS, truncated=True))
        export_lerobot(buffer, tmp_path / "walks", 10)
        rows = rows_of(buffer)
    dataset = LeRobotDataset("us/walks", root=tmp_path / "walks")
    assert [dataset[at]["observation.state"].tolist() for at in range(3)] == [row["observations"].tolist() for row in rows]


def test_frames_go_into_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lerobot_export, "_FILE_MB", 0)
    monkeypatch.setattr(lerobot_export, "_FILES_PER_CHUNK", 2)
    with replay_buffer(0, EXTRA[:2]) as buffer:
        export_lerobot(buffer, tmp_path / "walks", 10)
        actions = [row["actions"].tolist() for row in rows_of(buffer)]
    assert len(list((tmp_path / "walks" / "data").glob("chunk-00[0-2]/file-00[01].parquet"))) == 6
    dataset = LeRobotDataset("us/walks", root=tmp_path / "walks")
    assert [dataset[at]["action"].tolist() for at in range(26)] == actions
    assert dataset.meta.get_data_file_path(3) == Path("data/chunk-001/file-001.parquet")


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    with ReplayBuffer(PLAIN_OBSERVATIONS, ACTIONS, 10) as buffer:
        with pytest.raises(DatasetError, match="empty"):
            export_lerobot(buffer, tmp_path / "walks", 10)
        buffer.batch_insert(transitions(np.random.default_rng(0), 3, PLAIN_OBSERVATIONS, truncated=True))
        with pytest.raises(ValueError, match="fps"):
            export_lerobot(buffer, tmp_path / "walks", 0)
        with replay_buffer(0) as other, pytest.raises(TypeError, match="'large' has dtype uint64"):
            export_lerobot(other, tmp_path / "walks", 10)
        (tmp_path / "file").write_text("")
        with pytest.raises(DatasetError, match="cannot be written"):
            export_lerobot(buffer, tmp_path / "file" / "walks", 10)
        export_lerobot(buffer, tmp_path / "walks", 10)
        before = json.loads((tmp_path / "walks" / "meta" / "info.json").read_text())
        with pytest.raises(DatasetError, match="already"):
            export_lerobot(buffer, tmp_path / "walks", 10)
    with TrajectoryBuffer(10, [DataShape("joints", (3,))]) as buffer, pytest.raises(ValueError, match="needs"):
        export_lerobot(buffer, tmp_path / "others", 10)
    assert json.loads((tmp_path / "walks" / "meta" / "info.json").read_text()) == before
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "cache") == ["file", "walks"]
