"""Learners and actors that are about to be killed, each a program of its own.

A learner makes or finds the buffer `name` and serves it; what its callback sees goes to a file, a line `who number` for each
row. An actor queues numbered steps and uploads them; after each update it says how many have been acknowledged. It goes on
through the deaths of learners until its standard input ends, ends its episode, and says the total.
"""

from __future__ import annotations

import sys
import threading
from typing import Any

import gymnasium
import numpy as np

from edgeml_ipc.data import DataShape, QueuedDataStore, ReplayBuffer
from edgeml_ipc.errors import EdgeMLError
from edgeml_ipc.trainer import TrainerClient, TrainerConfig, TrainerServer

BOX = gymnasium.spaces.Box(-1e9, 1e9, (2,), np.float32)
CONFIG = TrainerConfig(port_number=0)
CAPACITY = 120_000
MOST_STEPS = 20_000  # of one actor
EPISODE_STEPS = 11
STORE = "steps"


def make(name: str) -> ReplayBuffer:
    """Make the buffer, or find it."""
    token = DataShape("token", (2,), "int64")
    return ReplayBuffer(BOX, BOX, CAPACITY, extra_columns=[token], name=name, chunk_rows=64, seed=0, reattach=True)


def step(who: int, number: int, last: bool, always_next: bool) -> dict[str, Any]:
    """Return a step; the observation that follows comes with the next step, if it is not the last of its episode."""
    ended = last or number % EPISODE_STEPS == EPISODE_STEPS - 1
    item = {"observations": np.full(2, number, np.float32), "actions": np.zeros(2, np.float32), "rewards": 1.0, "masks": 1.0}
    following = {"next_observations": np.full(2, number + 1, np.float32)} if ended or always_next else {}
    return {**item, **following, "dones": ended, "token": np.array([who, number])}


def learner(address: str, name: str, log_path: str) -> None:
    """Serve until killed."""
    with open(log_path, "ab", buffering=0) as log:

        def note(_: str, payload: dict[str, Any]) -> None:
            lines = "".join(f"{item['token'][0]} {item['token'][1]}\n" for item in payload["data"])
            log.write(lines.encode())  # in one piece

        server = TrainerServer(CONFIG, note, host=address)
        server.register_data_store(STORE, make(name))
        print(server.address, flush=True)
        server.start()


def actor(address: str, who: int, always_next: bool) -> None:
    """Upload until killed, or until standard input ends."""
    stop, pause = threading.Event(), threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), stop.set()), daemon=True).start()
    queue = QueuedDataStore(MOST_STEPS + 1)
    rng = np.random.default_rng(who)
    inserted = 0
    with TrainerClient(f"actor{who}", address, CONFIG, data_stores={STORE: queue}, wait_for_server=True) as client:
        while True:
            last = stop.is_set()
            for _ in range(0 if inserted >= MOST_STEPS else int(rng.integers(1, 60))):
                queue.insert(step(who, inserted, False, always_next))
                inserted += 1
            if last:
                queue.insert(step(who, inserted, True, always_next))
                inserted += 1
            while True:
                try:
                    client.update(20)
                    break
                except EdgeMLError:  # the learner is dead, or was replaced
                    pause.wait(0.02)
            direct = client.stats()["stores"][STORE]["direct"]
            print(inserted, direct, flush=True)
            if last:
                print("end", flush=True)
                return
            pause.wait(0.001)
