"""Tests of edgeml_ipc.demo.sac and edgeml_ipc.demo.policy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edgeml_ipc.demo import sac
from edgeml_ipc.demo.policy import Policy

OBSERVATION, ACTION, STEPS, ROWS = 3, 2, 20, 64


def bandit_batches(seed: int, best: float) -> dict[str, np.ndarray]:
    """Make batches of one-step episodes whose reward is highest where each action equals `best`."""
    rng = np.random.default_rng(seed)
    observations = rng.normal(size=(STEPS, ROWS, OBSERVATION)).astype(np.float32)
    actions = rng.uniform(-1, 1, (STEPS, ROWS, ACTION)).astype(np.float32)
    rewards = -100 * np.square(actions - best).sum(axis=-1)
    masks = np.zeros((STEPS, ROWS), np.float32)
    batches = [observations, actions, rewards.astype(np.float32), masks, observations]
    return dict(zip(sac.BATCH_FIELDS, batches, strict=True))


def train(seed: int, calls: int, best: float = 0.5) -> tuple[sac.State, list[dict[str, float]]]:
    state, history = sac.initial_state(seed, OBSERVATION, ACTION), []
    for call in range(calls):
        state, metrics = sac.update_many(state, bandit_batches(call, best))
        history.append({name: float(value) for name, value in metrics.items()})
    return state, history


def test_updates_find_the_best_action() -> None:
    state, history = train(seed=0, calls=40)
    assert all(np.isfinite(list(metrics.values())).all() for metrics in history)
    assert history[-1]["critic_loss"] < 0.1 * history[0]["critic_loss"]
    observations = np.random.default_rng(0).normal(size=(50, OBSERVATION)).astype(np.float32)
    actions = Policy(jax.tree.map(np.asarray, state.actor)).mode(observations)
    assert np.abs(actions - 0.5).mean() < 0.1


def test_updates_depend_on_the_seed_only() -> None:
    (one, _), (again, _), (other, _) = train(1, 2), train(1, 2), train(2, 2)
    same = jax.tree.map(np.array_equal, one.actor, again.actor)
    assert all(jax.tree.leaves(same))
    assert not all(jax.tree.leaves(jax.tree.map(np.array_equal, one.actor, other.actor)))


def test_the_target_follows_the_critics_slowly() -> None:
    first = jax.tree.map(np.array, sac.initial_state(0, OBSERVATION, ACTION).critics)
    state, _ = train(seed=0, calls=1)

    def distance(one: sac.Params, other: sac.Params) -> float:
        return sum(float(np.abs(a - b).sum()) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))

    assert 0 < distance(state.target_critics, first) < 0.3 * distance(state.critics, first)


def test_the_critics_differ() -> None:
    kernel = sac.initial_state(0, OBSERVATION, ACTION).critics["Dense_0"]["kernel"]
    assert kernel.shape[0] == sac.CRITICS
    assert not np.array_equal(kernel[0], kernel[1])


def test_log_probability_is_that_of_the_squashed_normal() -> None:
    """The mean of 1/density over draws, those outside an interval taken as 0, is the interval's length."""
    actor = sac.initial_state(3, OBSERVATION, 1).actor
    observations = jnp.broadcast_to(jnp.array([0.3, -1.0, 0.5]), (200_000, OBSERVATION))
    actions, log_probs = sac._act(sac.Actor(1, sac.PENDULUM.hidden), actor, observations, jax.random.key(0))
    drawn, density = np.asarray(actions)[:, 0], np.exp(np.asarray(log_probs))
    edges = np.linspace(-0.9, 0.9, 10)
    for low, high in itertools.pairwise(edges):
        inside = (drawn > low) & (drawn < high)
        assert np.where(inside, 1 / density, 0.0).mean() == pytest.approx(high - low, rel=0.1)


def test_numpy_policy_is_the_jax_actor() -> None:
    params = sac.initial_state(5, OBSERVATION, ACTION).actor
    observations = np.random.default_rng(1).normal(size=(20, OBSERVATION)).astype(np.float32)
    mean, log_std = sac.Actor(ACTION, sac.PENDULUM.hidden).apply({"params": params}, observations)
    policy = Policy(jax.tree.map(np.asarray, params))
    np.testing.assert_allclose(policy.mode(observations), np.tanh(mean), rtol=1e-4, atol=1e-6)
    draws = np.stack([policy.sample(observations[0], np.random.default_rng(k)) for k in range(4000)])
    raw = np.arctanh(draws)
    np.testing.assert_allclose(raw.mean(axis=0), mean[0], atol=0.1)
    np.testing.assert_allclose(raw.std(axis=0), np.exp(log_std[0]), rtol=0.1)
