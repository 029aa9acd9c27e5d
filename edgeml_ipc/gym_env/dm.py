"""Between gymnasium and dm_env, both ways: `DmEnvAdapter` and `DmEnvFront`.

server = EnvServer(lambda: DmEnvAdapter(suite.load("cartpole", "swingup")))  # dm_control's, served to everybody
environment = DmEnvFront(RemoteEnv("10.0.0.5"))  # a served environment, for a program that speaks dm_env
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.error import ResetNeeded

try:
    import dm_env
    from dm_env import specs
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("edgeml_ipc.gym_env.dm needs dm_env: pip install 'edgeml_ipc[gym,dm-env]'") from error


class DmEnvAdapter(gymnasium.Env[Any, Any]):
    """A dm_env environment as a gymnasium environment.

    The last step of an episode is terminated if its discount is 0, else truncated; `info["discount"]` has it. dm_env has no
    seeds: without `seed_with` a seed given to `reset` reaches nothing but `np_random`.

    Args:
        environment: whose `close` is called by this one's.
        seed_with: called as `seed_with(environment, seed)` before a reset with a seed, such as
            `lambda environment, seed: environment.task.random.seed(seed)` for dm_control.
        render_with: called as `render_with(environment)`, for a frame `(height, width, 3)` uint8; None: it has no frames.
    Raises:
        TypeError: a spec that is none of dm_env's arrays, or of strings.
    """

    def __init__(
        self,
        environment: dm_env.Environment,
        seed_with: Callable[[dm_env.Environment, int], object] | None = None,
        render_with: Callable[[dm_env.Environment], np.ndarray[Any, Any]] | None = None,
    ) -> None:
        self._environment = environment
        self._seed_with = seed_with
        self._render_with = render_with
        self._in_episode = False
        self.observation_space = space_of(environment.observation_spec())
        self.action_space = space_of(environment.action_spec())
        self.render_mode = None if render_with is None else "rgb_array"
        self.metadata = {"render_modes": [] if render_with is None else ["rgb_array"]}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode; `options` are not used. See `gymnasium.Env.reset`."""
        super().reset(seed=seed)
        if seed is not None and self._seed_with is not None:
            self._seed_with(self._environment, seed)
        time_step = self._environment.reset()
        self._in_episode = True
        return _value(self.observation_space, time_step.observation), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Take one step. See `gymnasium.Env.step`. Raises ResetNeeded: the episode is over."""
        if not self._in_episode:
            raise ResetNeeded("the episode is over, or none has begun: call reset()")
        time_step = self._environment.step(action)
        last = bool(time_step.last())
        self._in_episode = not last
        discount = 1.0 if time_step.discount is None else float(time_step.discount)
        terminated = last and discount == 0.0
        observation = _value(self.observation_space, time_step.observation)
        return observation, float(time_step.reward), terminated, last and not terminated, {"discount": discount}

    def render(self) -> Any:
        """Return a frame, or None without `render_with`."""
        return None if self._render_with is None else self._render_with(self._environment)

    def close(self) -> None:
        """Close the environment."""
        self._environment.close()


def space_of(spec: Any) -> spaces.Space[Any]:
    """Return the space of a spec, or of a dict, list or tuple of specs. Raises TypeError: a spec of strings."""
    if isinstance(spec, Mapping):
        return spaces.Dict([(key, space_of(inner)) for key, inner in spec.items()])
    if isinstance(spec, list | tuple):
        return spaces.Tuple([space_of(inner) for inner in spec])
    if isinstance(spec, specs.DiscreteArray):
        return spaces.Discrete(spec.num_values)
    if not isinstance(spec, specs.Array) or isinstance(spec, specs.StringArray) or spec.dtype.kind not in "fiub":
        raise TypeError(f"there is no space for the spec {spec!r}")
    if isinstance(spec, specs.BoundedArray):
        low, high = (np.array(np.broadcast_to(bound, spec.shape), spec.dtype) for bound in (spec.minimum, spec.maximum))
    elif spec.dtype.kind == "f":
        low, high = (np.full(spec.shape, bound, spec.dtype) for bound in (-np.inf, np.inf))
    else:
        ends = (False, True) if spec.dtype.kind == "b" else (np.iinfo(spec.dtype).min, np.iinfo(spec.dtype).max)
        low, high = (np.full(spec.shape, bound, spec.dtype) for bound in ends)
    return spaces.Box(low, high, spec.shape, spec.dtype.type)


def _value(space: spaces.Space[Any], value: Any) -> Any:
    """Return an observation of dm_env's as one of the space: what is a plain number there is an array here."""
    if isinstance(space, spaces.Dict):
        return {key: _value(inner, value[key]) for key, inner in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(_value(inner, value[i]) for i, inner in enumerate(space.spaces))
    copy = np.array(value, space.dtype)  # dm_env lets an environment use its arrays again
    return copy[()] if isinstance(space, spaces.Discrete) else copy


class DmEnvFront(dm_env.Environment):  # type: ignore[misc]  # dm_env ships no types
    """A gymnasium environment, such as a `RemoteEnv`, as a dm_env environment.

    A terminated episode ends with discount 0, a truncated one with 1; a step after the end of an episode begins the next one.

    Args:
        env: whose `close` is called by this one's.
    Raises:
        TypeError: a space whose values are no arrays of a fixed shape.
    """

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        self._env = env
        self._in_episode = False
        self._observation_spec = spec_of(env.observation_space, "observation")
        self._action_spec = spec_of(env.action_space, "action")

    def reset(self) -> dm_env.TimeStep:
        """Begin an episode; return its first step."""
        observation, _ = self._env.reset()
        self._in_episode = True
        return dm_env.restart(observation)

    def step(self, action: Any) -> dm_env.TimeStep:
        """Take one step, or begin an episode if none is under way; the action is then ignored."""
        if not self._in_episode:
            return self.reset()
        observation, reward, terminated, truncated, _ = self._env.step(action)
        self._in_episode = not (terminated or truncated)
        if terminated:
            return dm_env.termination(float(reward), observation)
        if truncated:
            return dm_env.truncation(float(reward), observation)
        return dm_env.transition(float(reward), observation)

    def observation_spec(self) -> Any:
        """Return the spec of the observation space."""
        return self._observation_spec

    def action_spec(self) -> Any:
        """Return the spec of the action space."""
        return self._action_spec

    def close(self) -> None:
        """Close the environment."""
        self._env.close()


def spec_of(space: spaces.Space[Any], name: str) -> Any:
    """Return the spec of a space; of a Dict a dict of them, of a Tuple a tuple. Raises TypeError: no fixed shape."""
    if isinstance(space, spaces.Dict):
        return {key: spec_of(inner, str(key)) for key, inner in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(spec_of(inner, f"{name}_{i}") for i, inner in enumerate(space.spaces))
    if isinstance(space, spaces.Discrete):
        if space.start == 0:
            return specs.DiscreteArray(int(space.n), space.dtype, name)
        return specs.BoundedArray((), space.dtype, space.start, space.start + space.n - 1, name)
    if isinstance(space, spaces.MultiDiscrete):
        return specs.BoundedArray(space.shape, space.dtype, space.start, space.start + space.nvec - 1, name)
    if isinstance(space, spaces.MultiBinary):
        return specs.BoundedArray(space.shape, space.dtype, 0, 1, name)
    if not isinstance(space, spaces.Box):
        raise TypeError(f"there is no spec for the space {space}")
    if not space.bounded_below.any() and not space.bounded_above.any():
        return specs.Array(space.shape, space.dtype, name)
    return specs.BoundedArray(space.shape, space.dtype, space.low, space.high, name)
