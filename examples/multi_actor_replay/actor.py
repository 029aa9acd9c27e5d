"""An actor: it writes its steps straight into the learner's memory; nobody is sent anything."""

import numpy as np

from edgeml_ipc import ReplayBuffer

EPISODE_STEPS = 50


def move(states, actions):
    """Return the states `(..., 4)` that follow."""
    return np.float32(0.95) * states + np.float32(0.05) * np.concatenate([actions, actions], axis=-1)


def act(number, buffer_name, rows):
    """Collect episodes until all actors together have inserted `rows` transitions."""
    rng = np.random.default_rng(number)
    with ReplayBuffer.attach(buffer_name) as buffer:  # each process that inserts is a writer; their episodes never mix
        while buffer.stats()["inserted"] < rows:
            state = rng.normal(size=4).astype(np.float32)
            for step in range(EPISODE_STEPS):
                action = rng.uniform(-1, 1, 2).astype(np.float32)
                then = move(state, action)
                transition = {"observations": state, "actions": action, "rewards": -float(np.abs(state).sum()), "masks": 1.0}
                buffer.insert({**transition, "next_observations": then}, end_of_trajectory=step == EPISODE_STEPS - 1)
                state = then
