"""Minari: what is written is read by minari itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import minari
import numpy as np
import pytest

from edgeml_ipc import ReplayBuffer, export_minari
from edgeml_ipc.data.replay_buffer import SharedBuffer
from edgeml_ipc.errors import DatasetError
from tests.datasets.worlds import (
    ACTIONS,
    OBSERVATIONS,
    PLAIN_OBSERVATIONS,
    assert_same,
    replay_buffer,
    rows_of,
    trajectory_buffer,
    transitions,
)

ENDS = [(4, True), (7, False), (3, False), (1, True), (6, False), (5, False)]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))


def at(tree: Any, place: int) -> Any:
    return {key: at(child, place) for key, child in tree.items()} if isinstance(tree, dict) else tree[place]


@pytest.mark.parametrize("make", [replay_buffer, trajectory_buffer])
def test_every_row_comes_back(make: Any) -> None:
    with make(0) as buffer:
        export_minari(buffer, "walks/mine-v0", OBSERVATIONS, ACTIONS, author="us")
        rows = iter(rows_of(buffer))
    dataset = minari.load_dataset("walks/mine-v0")
    assert (dataset.total_episodes, dataset.total_steps, dataset.observation_space) == (6, 26, OBSERVATIONS)
    for episode, (steps, terminated) in zip(dataset.iterate_episodes(), ENDS, strict=True):
        assert len(episode) == steps
        assert episode.terminations.tolist() == [False] * (steps - 1) + [terminated]
        assert episode.truncations.tolist() == [False] * (steps - 1) + [not terminated]
        for step in range(steps):
            row = next(rows)
            assert_same(at(episode.observations, step), row["observations"])
            assert_same(at(episode.observations, step + 1), row["next_observations"])
            assert_same(at(episode.actions, step), row["actions"])
            assert_same(episode.rewards[step], row["rewards"])
    assert next(rows, None) is None


def test_spaces_that_are_not_given_are_boxes_of_the_fields() -> None:
    with replay_buffer(0) as buffer:
        dataset = export_minari(buffer, "walks-v0")
        fields = {shape.name: (shape.shape, shape.dtype) for shape in buffer.data_shapes}
    joints = dataset.observation_space["arm"]["joints"]
    assert isinstance(joints, gymnasium.spaces.Box)
    assert (joints.shape, joints.dtype.name) == fields["observations.arm.joints"]
    assert (dataset.action_space.shape, dataset.action_space.dtype.name) == fields["actions"]
    for episode in minari.load_dataset("walks-v0").iterate_episodes():
        assert dataset.observation_space.contains(at(episode.observations, 0))


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ReplayBuffer(PLAIN_OBSERVATIONS, ACTIONS, 10) as buffer:
        with pytest.raises(DatasetError, match="empty"):
            export_minari(buffer, "walks-v0")
        buffer.batch_insert(transitions(np.random.default_rng(0), 3, PLAIN_OBSERVATIONS, truncated=True))
        with pytest.raises(TypeError, match="no_such_argument"):
            export_minari(buffer, "walks-v0", no_such_argument=1)
        export_minari(buffer, "walks-v0")
        with pytest.raises(ValueError, match="already"):
            export_minari(buffer, "walks-v0")
        assert len(minari.load_dataset("walks-v0")) == 1

        def fails(buffer: SharedBuffer) -> Any:
            raise OSError("No space left on device")

        monkeypatch.setattr("edgeml_ipc.datasets.minari_export.episodes", fails)
        with pytest.raises(DatasetError, match="No space left"):
            export_minari(buffer, "others-v0")
    assert list(minari.list_local_datasets()) == ["walks-v0"]
