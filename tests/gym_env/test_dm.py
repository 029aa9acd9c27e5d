"""dm_env's environments for gymnasium's users, and the other way round."""

from __future__ import annotations

import subprocess
import sys
import warnings
from typing import Any

import dm_env
import numpy as np
import pytest
from dm_env import specs
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env

from edgeml_ipc.gym_env import EnvServer, RemoteEnv
from edgeml_ipc.gym_env.dm import DmEnvAdapter, DmEnvFront, space_of, spec_of
from edgeml_ipc.testing._workers import Child
from tests.gym_env.worlds import serve_walks
from tests.meta.source import ROOT


class Cart(dm_env.Environment):  # type: ignore[misc]  # dm_env ships no types
    """Ends after four steps, or at once when pushed hard. Uses one array for all its observations."""

    def __init__(self) -> None:
        self.random = np.random.default_rng(0)
        self.place = np.zeros(2)
        self.steps = 0
        self.closed = False

    def reset(self) -> Any:
        self.place[:] = self.random.normal(size=2)
        self.steps = 0
        return dm_env.restart(self.observe())

    def step(self, action: Any) -> Any:
        self.steps += 1
        self.place += action
        if abs(action).max() > 0.9:
            return dm_env.termination(-1.0, self.observe())
        if self.steps == 4:
            return dm_env.truncation(1.0, self.observe(), 0.5)
        return dm_env.transition(1.0, self.observe(), 0.9)

    def observe(self) -> dict[str, Any]:
        return {"place": self.place, "steps": self.steps, "touch": [np.float32(0.5), np.array([True, False])]}

    def observation_spec(self) -> Any:
        return {
            "place": specs.Array((2,), float),
            "steps": specs.BoundedArray((), np.int32, 0, 4),
            "touch": [specs.Array((), np.float32), specs.Array((2,), bool)],
        }

    def action_spec(self) -> Any:
        return specs.BoundedArray((2,), np.float32, -1.0, [1.0, 2.0])

    def close(self) -> None:
        self.closed = True


def adapted() -> DmEnvAdapter:
    def seed(cart: Any, seed: int) -> None:
        cart.random = np.random.default_rng(seed)

    return DmEnvAdapter(Cart(), seed_with=seed, render_with=lambda cart: np.full((4, 5, 3), cart.steps, np.uint8))


def test_gymnasiums_checker_passes_near_and_far() -> None:
    with EnvServer(adapted, 0, host="inproc://cart") as server:
        server.start(threaded=True)
        with RemoteEnv(server.address) as remote, warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.filterwarnings(
                "ignore", message=".*(infinity|symmetric and normalized|without a spec|not having a spec|render fps).*"
            )
            check_env(adapted())
            check_env(remote)


def test_steps_and_ends_of_episodes() -> None:
    env = adapted()
    first, info = env.reset(seed=3)
    assert info == {}
    assert first in env.observation_space
    for _ in range(3):
        observation, reward, terminated, truncated, info = env.step(np.zeros(2, np.float32))
        assert (reward, terminated, truncated, info) == (1.0, False, False, {"discount": 0.9})
        assert observation in env.observation_space
    assert env.step(np.zeros(2, np.float32))[2:] == (False, True, {"discount": 0.5})
    with pytest.raises(ResetNeeded):
        env.step(np.zeros(2, np.float32))
    again, _ = env.reset(seed=3)
    assert np.array_equal(again["place"], first["place"])
    last, reward, *ends = env.step(np.ones(2, np.float32))
    assert (reward, ends) == (-1.0, [True, False, {"discount": 0.0}])
    np.testing.assert_allclose(last["place"], first["place"] + 1)  # `first` is a copy
    assert env.render().max() == 1
    env.close()
    assert env._environment.closed


def test_spaces_of_specs() -> None:
    assert space_of(specs.DiscreteArray(4)) == spaces.Discrete(4)
    assert space_of(specs.Array((2,), np.uint8)) == spaces.Box(0, 255, (2,), np.uint8)
    assert space_of((specs.Array((), np.float32),)) == spaces.Tuple([spaces.Box(-np.inf, np.inf, (), np.float32)])
    box = space_of(Cart().action_spec())
    assert box == spaces.Box(np.array([-1, -1], np.float32), np.array([1, 2], np.float32), dtype=np.float32)
    for none in (specs.StringArray(()), "spec"):
        with pytest.raises(TypeError, match="no space for the spec"):
            space_of(none)


def test_specs_of_spaces() -> None:
    assert spec_of(spaces.Discrete(4), "a") == specs.DiscreteArray(4, np.int64, "a")
    assert spec_of(spaces.Discrete(4, start=2), "a") == specs.BoundedArray((), np.int64, 2, 5, "a")
    assert spec_of(spaces.Box(-np.inf, np.inf, (2,)), "a") == specs.Array((2,), np.float32, "a")
    assert spec_of(spaces.Box(0, 1, (2,)), "a") == specs.BoundedArray((2,), np.float32, [0, 0], [1, 1], "a")
    assert spec_of(spaces.MultiBinary(3), "a") == specs.BoundedArray((3,), np.int8, 0, 1, "a")
    assert spec_of(spaces.MultiDiscrete([2, 3]), "a") == specs.BoundedArray((2,), np.int64, 0, [1, 2], "a")
    nested = spec_of(spaces.Dict(a=spaces.Tuple([spaces.Discrete(2)])), "x")
    assert nested == {"a": (specs.DiscreteArray(2, np.int64, "a_0"),)}
    with pytest.raises(TypeError, match="no spec for the space"):
        spec_of(spaces.Text(3), "a")


def conforms(spec: Any, value: Any) -> None:
    """Validate a value as dm_env does, leaf by leaf."""
    if isinstance(spec, dict):
        assert spec.keys() == value.keys()
        for key in spec:
            conforms(spec[key], value[key])
    elif isinstance(spec, tuple):
        assert len(spec) == len(value)
        for inner, part in zip(spec, value, strict=True):
            conforms(inner, part)
    else:
        spec.validate(value)


def test_a_remote_environment_for_a_user_of_dm_env(process_address: str) -> None:
    with Child(serve_walks, process_address) as server, DmEnvFront(RemoteEnv(server.hear())) as environment:
        action = environment.action_spec().generate_value()
        lasts = []
        for _ in range(30):
            time_step = environment.step(action)
            conforms(environment.observation_spec(), time_step.observation)
            if time_step.first():
                assert (time_step.reward, time_step.discount) == (None, None)
            else:
                environment.reward_spec().validate(time_step.reward)
                environment.discount_spec().validate(time_step.discount)
            if time_step.last():
                ended_by_itself = time_step.observation["place"][0] > 3
                assert time_step.discount == (0.0 if ended_by_itself else 1.0)
                lasts.append(time_step)
        assert lasts
        assert environment.reset().first()


def test_there_and_back_again() -> None:
    near, front = Cart(), DmEnvFront(DmEnvAdapter(Cart()))
    pushes = [0.0, 0.1, 0.95, 0.0, 0.2, 0.3, 0.4, 0.5, 0.0]  # the first, and each after an end, begins an episode
    first = True
    for push in pushes:
        action = np.full(2, push, np.float32)
        here = near.reset() if first else near.step(action)
        there = front.step(action)
        assert (there.step_type, there.reward) == (here.step_type, here.reward)
        assert np.array_equal(there.observation["place"], here.observation["place"])
        assert there.last() == here.last()
        first = here.last()


def test_without_dm_env_the_extra_is_named() -> None:
    code = "import sys; sys.modules['dm_env'] = None\nimport edgeml_ipc.gym_env\nimport edgeml_ipc.gym_env.dm"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "pip install 'edgeml_ipc[gym,dm-env]'" in done.stderr
