"""Two actors write into one replay buffer while a learner samples it: python examples/shared_replay.py"""

import os

import multiprocess
import numpy as np
from gymnasium.spaces import Box

from edgeml_ipc import BufferEmpty, ReplayBuffer, SequenceSampler


def act(number, buffer_name, episodes):
    rng = np.random.default_rng(number)
    with ReplayBuffer.attach(buffer_name) as buffer:  # the learner's own memory: nobody is sent anything
        for _ in range(episodes):
            state = rng.normal(size=4).astype(np.float32)
            for step in range(50):
                action = rng.uniform(-1, 1, 2).astype(np.float32)
                then = 0.95 * state + 0.05 * np.tile(action, 2)
                transition = {"observations": state, "actions": action, "rewards": -float(np.abs(state).sum()), "masks": 1.0}
                buffer.insert({**transition, "next_observations": then}, end_of_trajectory=step == 49)
                state = then


def learn(buffer, actors):
    window = SequenceSampler(begin=0, end=8)  # eight steps of one episode
    buffer.register_sample_config("windows", {"observations": window, "rewards": window}, sample_range=(0, 8))
    batches = 0
    while any(actor.is_alive() for actor in actors):
        try:
            data, mask = buffer.sample("windows", 256)
        except BufferEmpty:  # no actor has come as far yet
            actors[0].join(0.01)
            continue
        assert data["observations"].shape == (256, 8, 4)
        assert mask["observations"].all()
        batches += 1
    print(f"{batches} batches from {buffer.stats()['inserted']} transitions of {len(actors)} actors")


if __name__ == "__main__":
    name = f"example-{os.getpid()}"
    processes = multiprocess.get_context("spawn")
    with ReplayBuffer(Box(-np.inf, np.inf, (4,)), Box(-1, 1, (2,)), capacity=20_000, name=name, seed=0) as buffer:
        try:
            actors = [processes.Process(target=act, args=(number, name, 100)) for number in range(2)]
            for actor in actors:
                actor.start()
            learn(buffer, actors)
        finally:
            buffer.unlink()  # else it stays, for the next learner to attach to
