"""What is sent, the same for floors, peers and ours."""

from __future__ import annotations

from typing import Any

import numpy as np

PAGE_BYTES = 4096
SMALL_BYTES = 64
ACTION_BYTES = 48
OBSERVATION_SHAPE = (480, 640, 3)
OBSERVATION_BYTES = 480 * 640 * 3
FRAME_SHAPE = (1080, 1920, 3)
FRAME_BYTES = 1080 * 1920 * 3
NETWORK_ARRAYS = 10
NETWORK_BYTES = 50_000_000
TRANSITIONS_PER_UPDATE = 256
STACKED = 50  # transitions of one batch

Transition = dict[str, Any]
_ACTION = np.zeros(ACTION_BYTES // 8)


def touch(array: np.ndarray) -> int:
    """Read one byte of every 4 KiB page of an array, so that it has really arrived."""
    return int(array.reshape(-1).view(np.uint8)[::PAGE_BYTES].sum())


def act(array: np.ndarray) -> np.ndarray:
    """Read every page of what was received, and return the 48 bytes of an action, the first 8 of which tell what they hold.

    What is smaller than a page is not looked at: that would take longer than the message.
    """
    if array.nbytes < PAGE_BYTES:
        return _ACTION
    action = np.zeros(ACTION_BYTES // 8)
    action[0] = touch(array)
    return action


def echo(array: np.ndarray) -> np.ndarray:
    """Return what was received."""
    return array


def block(nbytes: int) -> np.ndarray:
    """Return so many random bytes; those of a camera image or a video frame in the image's shape."""
    data = np.random.default_rng(0).integers(0, 255, nbytes, np.uint8)
    shapes = {OBSERVATION_BYTES: OBSERVATION_SHAPE, FRAME_BYTES: FRAME_SHAPE}
    return data.reshape(shapes.get(nbytes, (nbytes,)))


def network() -> dict[str, np.ndarray]:
    """Return parameters of 50 MB in ten float32 arrays."""
    rng = np.random.default_rng(0)
    each = NETWORK_BYTES // NETWORK_ARRAYS // 4
    return {f"layer_{i}": rng.standard_normal(each, np.float32) for i in range(NETWORK_ARRAYS)}


def transition() -> Transition:
    """Return one transition of a small continuous-control task, 17 observations and 6 actions; no part is shared."""
    return {
        "observations": np.ones(17, np.float32),
        "next_observations": np.ones(17, np.float32),
        "actions": np.ones(6, np.float32),
        "rewards": np.float32(1.0),
        "masks": np.float32(1.0),
        "dones": False,
    }


def stacked() -> Transition:
    """Return 50 transitions as one dict of stacked arrays."""
    rows = [transition() for _ in range(STACKED)]
    return {key: np.stack([np.asarray(row[key]) for row in rows]) for key in rows[0]}


TRANSITION_BYTES = 17 * 4 * 2 + 6 * 4 + 4 + 4 + 1


def size_name(nbytes: int) -> str:
    """Name a size: in powers of 1024 where it is a whole number of them, else of 1000."""
    for unit, size in (("MiB", 1 << 20), ("KiB", 1 << 10)):
        if nbytes >= size and nbytes % size == 0:
            return f"{nbytes // size}{unit}"
    if nbytes < 1000:
        return f"{nbytes}B"
    return f"{nbytes / 1e6:.0f}MB" if nbytes >= 1_000_000 else f"{nbytes / 1e3:.0f}kB"
