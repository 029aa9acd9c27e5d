"""Vectors of environments: ours, and gymnasium's two, which step the same environments with the same actions.

CartPole costs some 10 µs a step, so that what is measured is the vector; `frames` adds an observation of 147 kB.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from benchmarks.harness import Case, Placement, Round, timed
from edgeml_ipc.errors import TransportUnavailable

NUM_ENVS = 4
FRAME = (224, 224, 3)
_ACTIONS = 64  # batches of actions, drawn before


def make_env(with_frames: bool) -> Any:
    """Make a CartPole, which observes a frame beside its state if asked for. In a process of its own, mostly."""
    import gymnasium

    class Frames(gymnasium.ObservationWrapper[Any, Any, Any]):
        """Adds a frame that changes with each step."""

        def __init__(self, env: Any) -> None:
            super().__init__(env)
            frame = gymnasium.spaces.Box(0, 255, FRAME, np.uint8)
            self.observation_space = gymnasium.spaces.Dict(frame=frame, state=env.observation_space)
            self.frame = np.zeros(FRAME, np.uint8)

        def observation(self, observation: Any) -> Any:
            self.frame[0] += 1
            return {"frame": self.frame, "state": observation}

    env = gymnasium.make("CartPole-v1")
    return Frames(env) if with_frames else env


def ours(factories: list[Callable[[], Any]], num_workers: int) -> Any:
    """Open a `RemoteVectorEnv`."""
    from edgeml_ipc.gym_env import RemoteVectorEnv

    return RemoteVectorEnv(factories, num_workers=num_workers)


def gymnasiums_async(factories: list[Callable[[], Any]]) -> Any:
    """Open gymnasium's vector of processes, with observations in shared memory."""
    from gymnasium.vector import AsyncVectorEnv

    return AsyncVectorEnv(factories, shared_memory=True, context="spawn")


def gymnasiums_sync(factories: list[Callable[[], Any]]) -> Any:
    """Open gymnasium's vector within this process."""
    from gymnasium.vector import SyncVectorEnv

    return SyncVectorEnv(factories)


@contextmanager
def steps(placement: Placement, open_vector: Callable[[list[Callable[[], Any]]], Any], with_frames: bool) -> Iterator[Round]:
    """`step` of all environments, one after the other."""
    here = os.sched_getaffinity(0)
    if placement.cpus is not None:  # the environments' processes inherit where this one runs now
        os.sched_setaffinity(0, placement.cpus[1:])
    try:
        envs = open_vector([partial(make_env, with_frames)] * NUM_ENVS)
    except ModuleNotFoundError as error:
        raise TransportUnavailable(f"{error}: pip install 'edgeml_ipc[gym]'") from error
    finally:
        os.sched_setaffinity(0, here)
    try:
        envs.reset(seed=0)
        envs.action_space.seed(0)
        actions = [envs.action_space.sample() for _ in range(_ACTIONS)]
        number = 0

        def step() -> None:
            nonlocal number
            number += 1
            envs.step(actions[number % _ACTIONS])

        yield lambda seconds: timed(step, seconds, things=NUM_ENVS)
    finally:
        envs.close()


def _cases(what: str, with_frames: bool) -> list[Case]:
    vectors = {
        "async": ("peer", gymnasiums_async, f"AsyncVectorEnv(shared_memory=True), {NUM_ENVS} processes"),
        "sync": ("peer", gymnasiums_sync, "SyncVectorEnv, no process but this one"),
        "ours": ("ours", partial(ours, num_workers=NUM_ENVS), f"RemoteVectorEnv, {NUM_ENVS} processes"),
        "ours.2-workers": ("ours", partial(ours, num_workers=2), "RemoteVectorEnv, 2 processes"),
    }
    return [
        Case(
            f"gym.{what}.{name}",
            layer,
            f"step of {NUM_ENVS} environments by {text}; per second: their steps",
            partial(steps, open_vector=vector, with_frames=with_frames),
            f"gym.{what}.async" if layer == "ours" else None,
            f"gym.{what}",
        )
        for name, (layer, vector, text) in vectors.items()
    ]


CASES = [*_cases("cartpole", with_frames=False), *_cases("frames", with_frames=True)]
