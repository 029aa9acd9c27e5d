"""agentlace's test of its RLDS logger and import: the same calls, and what comes back is what was inserted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from edgeml_ipc.compat.data.jaxrl_data_store import (
    ReplayBufferDataStore,
    TrajectoryBufferDataStore,
    make_default_trajectory_buffer,
)
from edgeml_ipc.compat.data.tfds import RLDSLogger, make_datastore

EPISODES, STEPS = 10, 15
ACTIONS = spaces.Box(-1, 1, (1,), np.float32)
BOX = spaces.Box(-np.inf, np.inf, (2,), np.float32)
DICT = spaces.Dict({"position": spaces.Box(0, 1000, (1,), np.int32), "velocity": spaces.Box(-np.inf, np.inf, (1,), np.float32)})


def observation(space: spaces.Space[Any], number: int) -> Any:
    if space is BOX:
        return np.full(2, number, np.float32)
    return {"position": np.array([number], np.int32), "velocity": np.array([number / 2], np.float32)}


@pytest.mark.parametrize(
    ("type", "space"),
    [("replay_buffer", DICT), ("replay_buffer", BOX), ("trajectory_buffer", BOX)],
    ids=["replay_buffer-dict", "replay_buffer-box", "trajectory_buffer-box"],
)
def test_what_was_logged_comes_back(type: str, space: spaces.Space[Any], tmp_path: Path) -> None:
    logger = RLDSLogger(
        observation_space=space,
        action_space=ACTIONS,
        dataset_name="test_rlds_env",
        directory=str(tmp_path),
        max_episodes_per_file=5,
    )
    make = ReplayBufferDataStore if type == "replay_buffer" else make_default_trajectory_buffer
    store = make(space, ACTIONS, capacity=20, rlds_logger=logger)
    for episode in range(EPISODES):
        for step in range(STEPS):
            number = 100 * episode + step
            done = step == STEPS - 1
            sample = {
                "observations": observation(space, number),
                "next_observations": observation(space, number + 1),
                "actions": np.array([number / 1000], np.float32),
                "rewards": float(number),
                "masks": 1 - int(done),
            }
            if type == "trajectory_buffer":
                sample["end_of_trajectory"] = done
            store.insert(sample)
    logger.close()
    assert len(list(tmp_path.glob("*.tfrecord*"))) == 2
    assert len(list(tmp_path.glob("*.json"))) == 2

    found = make_datastore(str(tmp_path), capacity=200, type=type)
    assert isinstance(found, ReplayBufferDataStore if type == "replay_buffer" else TrajectoryBufferDataStore)
    assert len(found) == EPISODES * STEPS
    items = found.get_latest_data(-1)
    for item in items:
        number = int(item["rewards"])
        np.testing.assert_equal(item["observations"], observation(space, number))
        np.testing.assert_equal(item["next_observations"], observation(space, number + 1))
        np.testing.assert_allclose(item["actions"], [number / 1000], rtol=1e-6)
        assert bool(item["masks"]) == (number % 100 != STEPS - 1)
    assert sorted(int(item["rewards"]) for item in items) == [100 * e + s for e in range(EPISODES) for s in range(STEPS)]
