"""A learning agent: the state of SAC, many gradient steps at a time on sampled rows, and files of it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import numpy.typing as npt
from flax import serialization

from edgeml_ipc.demo import sac


class Agent:
    """SAC for one environment.

    Example:
        >>> from gymnasium.spaces import Box
        >>> box = Box(-1, 1, (2,))
        >>> agent = Agent(box, box, batch_rows=4, updates_per_call=2)
        >>> rows = {name: np.zeros((8, 2), np.float32) for name in ("observations", "actions", "next_observations")}
        >>> metrics = agent.learn({**rows, "rewards": np.zeros(8, np.float32), "masks": np.ones(8, np.float32)})
        >>> agent.updates, sorted(metrics)
        (2, ['actor_loss', 'critic_loss', 'entropy', 'temperature'])
    """

    def __init__(
        self,
        observation_space: Any,
        action_space: Any,
        *,
        seed: int = 0,
        recipe: sac.Recipe = sac.PENDULUM,
        batch_rows: int = 128,
        updates_per_call: int = 50,
    ) -> None:
        """Draw the first networks from `seed`, and compile the gradient steps.

        Args:
            observation_space, action_space: with a shape `(n,)`; actions are in -1..1.
            batch_rows: rows of one gradient step.
            updates_per_call: gradient steps of each `learn`.
        """
        self._sizes = (updates_per_call, batch_rows)
        self._state: sac.State = sac.initial_state(seed, observation_space.shape[0], action_space.shape[0], recipe)
        vectors = {"actions": action_space.shape, "observations": observation_space.shape}
        vectors["next_observations"] = observation_space.shape
        batches = {name: np.zeros((*self._sizes, *vectors.get(name, ())), np.float32) for name in sac.BATCH_FIELDS}
        self._update_many = sac.update_many.lower(self._state, batches, recipe).compile()
        self.updates = 0

    @property
    def rows_per_call(self) -> int:
        """How many rows `learn` takes."""
        return self._sizes[0] * self._sizes[1]

    @property
    def actor(self) -> Any:
        """The parameters of the policy, as numpy arrays: a copy."""
        return jax.tree.map(np.array, self._state.actor)  # the next update overwrites the state's own buffers

    def learn(self, rows: Mapping[str, npt.NDArray[Any]]) -> dict[str, float]:
        """Take `updates_per_call` gradient steps.

        Args:
            rows: the fields of a transition, each `(rows_per_call, *shape)`; others are left alone.
        Returns:
            Metrics averaged over the steps.
        """
        batches = {
            name: np.asarray(rows[name], np.float32).reshape(*self._sizes, *rows[name].shape[1:]) for name in sac.BATCH_FIELDS
        }
        self._state, metrics = self._update_many(self._state, batches)
        self.updates += self._sizes[0]
        return {name: float(value) for name, value in metrics.items()}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write networks, optimizers, random key and `updates` to a file, aside and then renamed."""
        content = {"state": self._state._replace(key=jax.random.key_data(self._state.key)), "updates": self.updates}
        aside = f"{os.fspath(path)}.{os.getpid()}"
        with open(aside, "wb") as file:
            file.write(serialization.to_bytes(content))
        os.replace(aside, path)

    def load(self, path: str | os.PathLike[str]) -> None:
        """Go on from what `save` wrote.

        Raises:
            ValueError: the file is of another recipe, or of another environment. OSError: it cannot be read.
        """
        now = {"state": self._state._replace(key=jax.random.key_data(self._state.key)), "updates": self.updates}
        with open(path, "rb") as file:
            content = serialization.from_bytes(now, file.read())
        if jax.tree.map(np.shape, content) != jax.tree.map(np.shape, now):
            raise ValueError(f"{os.fspath(path)} is of an agent with other networks than this one's")
        state = jax.tree.map(jax.numpy.asarray, content["state"])
        self._state = state._replace(key=jax.random.wrap_key_data(state.key))
        self.updates = int(content["updates"])
