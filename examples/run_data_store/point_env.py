"""An environment without dependencies: push a point to the origin before it drifts away."""

import collections

import numpy as np

Space = collections.namedtuple("Space", "shape dtype")  # a gymnasium space has these, too


class PointEnv:
    """As gymnasium's environments, without gymnasium."""

    observation_space = Space((4,), np.float32)  # position and velocity in the plane
    action_space = Space((2,), np.float32)

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)

    def reset(self):
        self.state, self.steps = self.rng.uniform(-1, 1, 4).astype(np.float32), 0
        return self.state.copy(), {}

    def step(self, action):
        self.state[2:] += 0.1 * np.clip(action, -1, 1)
        self.state[:2] += 0.1 * self.state[2:]
        self.steps += 1
        distance = float(np.linalg.norm(self.state[:2]))
        terminated, truncated = distance > 3, self.steps == 200
        return self.state.copy(), -distance, terminated, truncated, {}


def say(line):
    """Print a line in one piece, since two threads do."""
    print(f"{line}\n", end="", flush=True)
