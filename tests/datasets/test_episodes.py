"""The walk over a buffer that exports share, while others write."""

from __future__ import annotations

import itertools
import os
import threading

import numpy as np

from edgeml_ipc import ReplayBuffer
from edgeml_ipc.datasets import episodes
from tests.datasets.worlds import ACTIONS, PLAIN_OBSERVATIONS

SEED = int.from_bytes(os.urandom(4))


def test_episodes_are_whole_while_writers_go_round() -> None:
    stopped = threading.Event()

    def write(buffer: ReplayBuffer, number: int) -> None:
        rng = np.random.default_rng([SEED, number])
        with buffer.writer() as writer:
            for episode in itertools.count():
                if stopped.is_set():
                    return
                steps = int(rng.integers(1, 60))
                tokens = np.array([[number, episode, step] for step in range(steps + 1)], np.float32)
                writer.batch_insert(
                    {
                        "observations": tokens[:-1],
                        "next_observations": tokens[1:],
                        "actions": tokens[:-1, :2],
                        "rewards": tokens[:-1, 2],
                        "masks": np.ones(steps),
                        "dones": np.arange(steps) == steps - 1,
                    }
                )

    with ReplayBuffer(PLAIN_OBSERVATIONS, ACTIONS, 3000, chunk_rows=50) as buffer:
        threads = [threading.Thread(target=write, args=(buffer, number)) for number in range(2)]
        for thread in threads:
            thread.start()
        seen = 0
        try:
            while len(buffer) < 2000:
                assert not stopped.wait(0.001)
            for _ in range(40):
                for episode in episodes(buffer):
                    number, first, step = episode.values["observations"][0].tolist()
                    wanted = [[number, first, step + at] for at in range(len(episode) + 1)]
                    assert episode.observations()["observations"].tolist() == wanted, f"seed {SEED}"
                    assert episode.values["rewards"].tolist() == [row[2] for row in wanted[:-1]], f"seed {SEED}"
                    assert not episode.terminated
                    seen += 1
        finally:
            stopped.set()
            for thread in threads:
                thread.join(30)
        assert seen > 100
