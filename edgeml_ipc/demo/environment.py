"""The environments of the demo and of the examples that learn: actions in -1..1, observations in float32."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import gymnasium


def make_env(name: str = "Pendulum-v1", render_mode: str | None = None) -> gymnasium.Env[Any, Any]:
    """Make an environment of gymnasium's with continuous actions.

    Raises:
        ImportError: it needs a package that is not installed; the message names the extra. ValueError: its actions or
            observations are no vectors of bounded, respectively real, numbers.
    """
    import gymnasium

    is_mujoco = ".mujoco." in str(gymnasium.spec(name).entry_point)
    if is_mujoco:
        _quieten_mujoco(name)
    env = gymnasium.make(name, render_mode=render_mode)
    observations, actions = env.observation_space, env.action_space
    for what, space in (("observations", observations), ("actions", actions)):
        if not isinstance(space, gymnasium.spaces.Box) or len(space.shape) != 1:
            raise ValueError(f"the {what} of {name} must be a Box of shape (n,), got {space}")
    if observations.dtype != np.float32:
        space = gymnasium.spaces.Box(-np.inf, np.inf, observations.shape, np.float32)
        env = gymnasium.wrappers.TransformObservation(env, lambda observation: observation.astype(np.float32), space)
    return gymnasium.wrappers.RescaleAction(env, np.float32(-1), np.float32(1))


def _quieten_mujoco(name: str) -> None:
    """Hand mujoco's warnings to Python, but for those on the models that gymnasium ships, which a user cannot change.

    By itself mujoco writes them to stderr, and into a file of the working directory.
    """
    try:
        import mujoco
    except ImportError as error:
        raise ImportError(f"{name} needs mujoco ({error}): pip install 'edgeml_ipc[mujoco]'") from error

    def warn(text: str) -> None:
        if "deprecated" not in text:
            warnings.warn(f"mujoco: {text}", RuntimeWarning, stacklevel=2)

    mujoco.set_mju_user_warning(warn)
