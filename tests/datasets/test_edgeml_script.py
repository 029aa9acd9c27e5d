"""What scripts for edgeml and agentlace do with RLDS runs with `compat`, and gets every transition."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gymnasium import spaces

from edgeml_ipc.compat.data.jaxrl_data_store import ReplayBufferDataStore, make_default_trajectory_buffer
from edgeml_ipc.compat.data.tfds import RLDSLogger, make_datastore

SPACE = spaces.Dict({"position": spaces.Box(0, 10, (1,), np.int32), "velocity": spaces.Box(-1, 1, (1,), np.float32)})
ACTIONS = spaces.Box(-1, 1, (1,), np.float32)


@pytest.mark.parametrize("type", ["replay_buffer", "trajectory_buffer"])
def test_a_small_store_with_a_logger_and_back(tmp_path: Path, type: str) -> None:
    logger = RLDSLogger(
        observation_space=SPACE,
        action_space=ACTIONS,
        dataset_name="test_rlds_env",
        directory=str(tmp_path),
        max_episodes_per_file=5,
    )
    make = ReplayBufferDataStore if type == "replay_buffer" else make_default_trajectory_buffer
    store = make(SPACE, ACTIONS, capacity=20, rlds_logger=logger)
    rng = np.random.default_rng(0)
    rewards = rng.normal(size=150).astype(np.float32)
    seen = {"position": rng.integers(0, 10, 1), "velocity": rng.uniform(-1, 1, 1)}
    for number, reward in enumerate(rewards):
        done = number % 15 == 14
        sample = {"observations": seen, "next_observations": seen, "actions": rng.normal(size=1), "rewards": reward}
        store.insert({**sample, "masks": 1 - done, **({} if type == "replay_buffer" else {"end_of_trajectory": False})})
    logger.close()
    assert len(list(tmp_path.iterdir())) == 4
    back = make_datastore(str(tmp_path), capacity=200, type=type)
    assert len(back) == 150  # theirs had 10 fewer: the last transition of each episode was lost
    rows = back.get_latest_data(-1)
    assert [row["rewards"] for row in rows] == rewards.tolist()
    assert [row["masks"] for row in rows] == ([1] * 14 + [0]) * 10
