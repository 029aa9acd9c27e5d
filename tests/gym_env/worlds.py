"""Environments that the tests serve and step, also in other processes."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from edgeml_ipc.gym_env import EnvServer, RemoteVectorEnv


class Walk(gymnasium.Env[Any, Any]):
    """A random walk: its observations have several kinds of arrays, and each step says how many were taken."""

    observation_space = spaces.Dict(
        {
            "place": spaces.Box(-1e6, 1e6, (3,), np.float64),
            "image": spaces.Box(0, 255, (24, 24, 3), np.uint8),
            "phase": spaces.Tuple([spaces.Discrete(1000), spaces.MultiBinary(4)]),
        }
    )
    action_space = spaces.Box(-1, 1, (3,), np.float32)

    def __init__(self, length: int = 5, render_mode: str | None = None, name: str = "walk") -> None:
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": 20, "home": object()}
        self.render_mode = render_mode
        self.length = length
        self.name = name
        self.pid = os.getpid()
        self.steps = self.all_steps = 0
        self.closed = False

    def observe(self) -> dict[str, Any]:
        bits = np.array([self.steps >> bit & 1 for bit in range(4)], np.int8)
        image = np.full((24, 24, 3), self.steps, np.uint8)
        return {"place": self.place.copy(), "image": image, "phase": (np.int64(self.steps), bits)}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        self.place = self.np_random.normal(size=3) + (options or {}).get("offset", 0.0)
        return self.observe(), {"began": True}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        self.all_steps += 1
        self.place += action + self.np_random.normal(size=3)
        terminated = bool(self.place[0] > 3)
        truncated = self.steps == self.length
        info = {"steps": self.steps, "distance": np.float32(abs(self.place[0]))} if self.steps % 2 else {}
        return self.observe(), float(self.place[0]), terminated, truncated, info

    def render(self) -> Any:
        return np.full((8, 9, 3), self.steps, np.uint8)

    def add(self, left: int, right: int) -> int:
        """Add, to be called from afar."""
        return left + right

    def close(self) -> None:
        self.closed = True


class Trap(gymnasium.Env[Any, Any]):
    """An environment whose action says what goes wrong."""

    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Discrete(10)
    WELL, KILLED, RAISES, HANGS, WRONG_SHAPE, UNSENDABLE, EXITS = range(7)

    def __init__(self) -> None:
        self.pid = os.getpid()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if action == self.KILLED:
            os.kill(os.getpid(), signal.SIGKILL)
        if action == self.RAISES:
            raise ValueError("it was a trap")
        if action == self.HANGS:
            threading.Event().wait()
        if action == self.EXITS:
            os._exit(3)
        observation = np.zeros(1 if action == self.WRONG_SHAPE else 2, np.float32)
        return observation, 1.0, False, False, {"odd": object()} if action == self.UNSENDABLE else {}


def make_walk() -> Walk:
    return Walk(length=7, render_mode="rgb_array")


def make_nothing() -> Any:
    raise OSError("there is no robot")


def serve_walks(tell: Any, address: str) -> None:
    """Serve an environment for each client until killed; tell the address."""
    with EnvServer(make_walk, 0, host=address) as server:
        tell.send(server.address)
        server.start()


def serve_traps(tell: Any, address: str) -> None:
    """Serve `Trap`s until killed; tell the address."""
    with EnvServer(Trap, 0, host=address) as server:
        tell.send(server.address)
        server.start()


def step_for_ever() -> None:
    """Step a vector of environments until killed; print the pids of its processes."""
    envs = RemoteVectorEnv([make_walk, make_walk])
    envs.reset()
    print(*envs.call("pid"), flush=True)
    while True:
        envs.step(envs.action_space.sample())


if __name__ == "__main__":
    step_for_ever()
