"""A process that writes into a buffer of the tests; it imports nothing heavy."""

from __future__ import annotations

import os
import signal
from typing import Any

import numpy as np

from edgeml_ipc import ReplayBuffer
from tests.datasets.worlds import PLAIN_OBSERVATIONS, transitions


def episodes_of(rng: np.random.Generator, count: int, steps: int = 15) -> list[list[dict[str, Any]]]:
    return [transitions(rng, steps, PLAIN_OBSERVATIONS, terminated=True) for _ in range(count)]


def write(name: str, seed: int, episodes: int, dies: bool) -> None:
    """Insert episodes from another process, one more that is left open, and perhaps be killed."""
    rng = np.random.default_rng(seed)
    with ReplayBuffer.attach(name) as buffer:
        for items in episodes_of(rng, episodes, 5):
            for item in items:
                buffer.insert(item)
        for item in transitions(rng, 3, PLAIN_OBSERVATIONS):
            buffer.insert(item)
        if dies:
            os.kill(os.getpid(), signal.SIGKILL)
