"""Tests of edgeml_ipc.demo.agent: what is saved goes on as it would have."""

from pathlib import Path

import jax
import numpy as np
import pytest
from gymnasium.spaces import Box

from edgeml_ipc.demo.agent import Agent
from edgeml_ipc.demo.sac import LOCOMOTION, PENDULUM, recipe_for

OBSERVATIONS, ACTIONS = Box(-1, 1, (3,)), Box(-1, 1, (2,))


def make_agent(seed: int, hidden: tuple[int, ...] = (8,)) -> Agent:
    recipe = PENDULUM._replace(hidden=hidden)
    return Agent(OBSERVATIONS, ACTIONS, seed=seed, recipe=recipe, batch_rows=4, updates_per_call=3)


def rows(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = {"observations": (12, 3), "actions": (12, 2), "rewards": (12,), "masks": (12,), "next_observations": (12, 3)}
    return {name: rng.uniform(-1, 1, shape) for name, shape in shapes.items()}  # float64, as a buffer of trajectories has


def equal(one: Agent, other: Agent) -> bool:
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, one.actor, other.actor)))


def test_a_saved_agent_goes_on_as_it_would_have(tmp_path: Path) -> None:
    agent, other = make_agent(seed=0), make_agent(seed=1)
    agent.learn(rows(0))
    agent.save(tmp_path / "agent")
    other.load(tmp_path / "agent")
    assert other.updates == agent.updates == 3
    assert equal(agent, other)
    losses = agent.learn(rows(1)), other.learn(rows(1))
    assert losses[0] == losses[1]
    assert equal(agent, other)  # so optimizers and random key are those that were saved
    other.learn(rows(2))
    assert not equal(agent, other)
    assert [path.name for path in tmp_path.iterdir()] == ["agent"]  # nothing is left aside


def test_a_file_of_other_networks_is_refused(tmp_path: Path) -> None:
    make_agent(seed=0, hidden=(9,)).save(tmp_path / "agent")
    agent = make_agent(seed=0)
    before = agent.actor
    with pytest.raises(ValueError, match=r"agent is of an agent with other networks"):
        agent.load(tmp_path / "agent")
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, before, agent.actor)))


def test_what_the_actor_was_given_stays_as_it_is() -> None:
    agent = make_agent(seed=0)
    given = agent.actor
    copy = jax.tree.map(np.copy, given)
    agent.learn(rows(0))
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, given, copy)))
    assert not all(jax.tree.leaves(jax.tree.map(np.array_equal, given, agent.actor)))


def test_recipes() -> None:
    assert recipe_for("Pendulum-v1") == PENDULUM
    assert recipe_for("HalfCheetah-v5") == LOCOMOTION
