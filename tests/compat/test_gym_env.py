"""agentlace's environment server and client, between processes."""

from __future__ import annotations

from typing import Any

import gymnasium
import multiprocess
import numpy as np
import pytest

from edgeml_ipc.compat.action_env import ActionClientEnv, ActionServerEnvWrapper
from edgeml_ipc.compat.gym_env import GymEnvClient, GymEnvServerWrapper
from edgeml_ipc.errors import AuthenticationError, ConnectionRefused

pytestmark = pytest.mark.usefixtures("no_threads_left")


def serve(pipe: Any) -> None:
    env = GymEnvServerWrapper(gymnasium.make("CartPole-v1"), port=0)
    env.start(threaded=True)
    pipe.send(env.port)
    pipe.recv()
    env.stop()


def test_an_episode_is_as_it_would_be_here() -> None:
    processes = multiprocess.get_context("spawn")
    ours, theirs = processes.Pipe()
    process = processes.Process(target=serve, args=(theirs,))
    process.start()
    assert ours.poll(60)
    here = gymnasium.make("CartPole-v1")
    there = GymEnvClient("localhost", ours.recv())
    assert (there.observation_space, there.action_space) == (here.observation_space, here.action_space)
    np.testing.assert_array_equal(there.reset(seed=3)[0], here.reset(seed=3)[0])
    ended = False
    while not ended:
        observation, reward, ended, truncated, info = there.step(1)
        expected = here.step(1)
        np.testing.assert_array_equal(observation, expected[0])
        assert (reward, ended, truncated, info) == expected[1:]
    there.close()
    ours.send("done")
    process.join(20)
    assert process.exitcode == 0


def test_the_wrapper_is_the_environment_too() -> None:
    env = GymEnvServerWrapper(gymnasium.make("CartPole-v1"), port=0)
    env.reset(seed=0)
    assert len(env.step(0)) == 5
    env.stop()
    with pytest.raises(ConnectionRefused, match="nothing listens"):
        GymEnvClient(port=env.port)
    with pytest.raises(AuthenticationError, match="insecure=True"):
        GymEnvServerWrapper(env, port=0, host="0.0.0.0")


def test_its_early_names() -> None:
    assert ActionServerEnvWrapper is GymEnvServerWrapper
    assert ActionClientEnv is GymEnvClient
