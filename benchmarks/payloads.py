"""What is sent, the same for floors, peers and ours."""

from __future__ import annotations

from typing import Any

import numpy as np

PAGE_BYTES = 4096
SMALL_BYTES = 64
ACTION_BYTES = 48
OBSERVATION_SHAPE = (480, 640, 3)
OBSERVATION_BYTES = 480 * 640 * 3
NETWORK_ARRAYS = 10
NETWORK_BYTES = 50_000_000
TRANSITIONS_PER_UPDATE = 256


def touch(array: np.ndarray) -> int:
    """Read one byte of every 4 KiB page of an array, so that it has really arrived."""
    return int(array.reshape(-1).view(np.uint8)[::PAGE_BYTES].sum())


def small() -> dict[str, np.ndarray]:
    """Return a dict with 64 bytes of numbers."""
    return {"x": np.arange(SMALL_BYTES // 8, dtype=np.float64)}


def observation() -> np.ndarray:
    """Return a 640x480 RGB camera image."""
    return np.random.default_rng(0).integers(0, 255, OBSERVATION_SHAPE, np.uint8)


def network() -> dict[str, np.ndarray]:
    """Return parameters of 50 MB in ten float32 arrays."""
    rng = np.random.default_rng(0)
    each = NETWORK_BYTES // NETWORK_ARRAYS // 4
    return {f"layer_{i}": rng.standard_normal(each, np.float32) for i in range(NETWORK_ARRAYS)}


def transition() -> dict[str, Any]:
    """Return one transition of a small continuous-control task, 17 observations and 6 actions."""
    return {
        "observations": np.ones(17, np.float32),
        "next_observations": np.ones(17, np.float32),
        "actions": np.ones(6, np.float32),
        "rewards": np.float32(1.0),
        "masks": np.float32(1.0),
        "dones": False,
    }


TRANSITION_BYTES = 17 * 4 * 2 + 6 * 4 + 4 + 4 + 1
