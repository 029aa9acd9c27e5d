"""Soft actor-critic in JAX: the networks, and many gradient steps per call.

Source: Haarnoja et al., "Soft Actor-Critic Algorithms and Applications", arXiv:1812.05905 (two critics, learned temperature).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

Params: TypeAlias = Any  # a nested dict of arrays
Batch: TypeAlias = Mapping[str, jax.Array]

BATCH_FIELDS = ("observations", "actions", "rewards", "masks", "next_observations")
CRITICS = 2
LOG_STD_MIN, LOG_STD_MAX = -10.0, 2.0


class Recipe(NamedTuple):
    """What is chosen for a kind of environment.

    Attributes:
        hidden: widths of the hidden layers of actor and critics.
        learning_rate: of actor, critics and temperature.
        target_rate: the share of the critics that goes into the target critics at each gradient step.
        reward_scale: what rewards are multiplied by. discount: of the values one step later.
    """

    hidden: tuple[int, ...] = (64, 64)
    learning_rate: float = 1e-3
    target_rate: float = 0.01
    reward_scale: float = 0.1
    discount: float = 0.99


PENDULUM = Recipe()
LOCOMOTION = Recipe(hidden=(256, 256), target_rate=0.005, reward_scale=1.0)


def recipe_for(env_name: str) -> Recipe:
    """Return what is known to work for an environment; for one that is not known, what works for MuJoCo's."""
    return PENDULUM if env_name.startswith("Pendulum") else LOCOMOTION


class Actor(nn.Module):
    """Map observations `(..., observation)` to mean and log standard deviation `(..., action)` before the tanh."""

    action_size: int
    hidden: tuple[int, ...]

    @nn.compact
    def __call__(self, observations: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = observations
        for width in self.hidden:
            x = nn.relu(nn.Dense(width)(x))
        mean, log_std = jnp.split(nn.Dense(2 * self.action_size)(x), 2, axis=-1)
        return mean, jnp.clip(log_std, LOG_STD_MIN, LOG_STD_MAX)


class Critic(nn.Module):
    """Map observations and actions to values `(...)`."""

    hidden: tuple[int, ...]

    @nn.compact
    def __call__(self, observations: jax.Array, actions: jax.Array) -> jax.Array:
        x = jnp.concatenate([observations, actions], axis=-1)
        for width in self.hidden:
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(1)(x)[..., 0]


Critics = nn.vmap(Critic, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=None, axis_size=CRITICS)


class State(NamedTuple):
    """All that a gradient step changes."""

    actor: Params
    critics: Params
    target_critics: Params
    log_temperature: jax.Array
    optimizer: tuple[optax.OptState, optax.OptState, optax.OptState]
    key: jax.Array


@partial(jax.jit, static_argnums=(1, 2, 3))  # one compilation instead of one per operation
def initial_state(seed: int, observation_size: int, action_size: int, recipe: Recipe = PENDULUM) -> State:
    """Draw the first parameters from `seed`."""
    key, actor_key, critic_key = jax.random.split(jax.random.key(seed), 3)
    observation, action = jnp.zeros((1, observation_size)), jnp.zeros((1, action_size))
    actor = Actor(action_size, recipe.hidden).init(actor_key, observation)["params"]
    critics = Critics(recipe.hidden).init(critic_key, observation, action)["params"]
    log_temperature = jnp.zeros(())
    adam = optax.adam(recipe.learning_rate)
    optimizer = (adam.init(actor), adam.init(critics), adam.init(log_temperature))
    return State(actor, critics, jax.tree.map(jnp.copy, critics), log_temperature, optimizer, key)


@partial(jax.jit, donate_argnums=0, static_argnums=2)
def update_many(state: State, batches: Batch, recipe: Recipe = PENDULUM) -> tuple[State, dict[str, jax.Array]]:
    """Take one gradient step per batch.

    Args:
        state: consumed; use the one that is returned.
        batches: the `BATCH_FIELDS`, each `(steps, batch, *shape)`; actions are in -1..1.
        recipe: with which the state was drawn.
    Returns:
        The new state, and metrics averaged over the steps.
    """
    state, metrics = jax.lax.scan(partial(_update, recipe), state, dict(batches))
    return state, jax.tree.map(jnp.mean, metrics)


def _update(recipe: Recipe, state: State, batch: dict[str, jax.Array]) -> tuple[State, dict[str, jax.Array]]:
    key, next_key, actor_key = jax.random.split(state.key, 3)
    actor_optimizer, critic_optimizer, temperature_optimizer = state.optimizer
    temperature = jnp.exp(state.log_temperature)
    action_size = batch["actions"].shape[-1]
    network, critic_network = Actor(action_size, recipe.hidden), Critics(recipe.hidden)

    next_actions, next_log_probs = _act(network, state.actor, batch["next_observations"], next_key)
    next_values = _values(critic_network, state.target_critics, batch["next_observations"], next_actions).min(axis=0)
    soft_values = next_values - temperature * next_log_probs
    targets = recipe.reward_scale * batch["rewards"] + recipe.discount * batch["masks"] * soft_values

    def critic_loss(critics: Params) -> jax.Array:
        values = _values(critic_network, critics, batch["observations"], batch["actions"])
        return jnp.square(values - targets).mean()

    def actor_loss(actor: Params) -> tuple[jax.Array, jax.Array]:
        actions, log_probs = _act(network, actor, batch["observations"], actor_key)
        values = _values(critic_network, critics, batch["observations"], actions).min(axis=0)
        return (temperature * log_probs - values).mean(), -log_probs.mean()

    apply = partial(_apply, optax.adam(recipe.learning_rate))
    critic_loss_value, gradient = jax.value_and_grad(critic_loss)(state.critics)
    critics, critic_optimizer = apply(gradient, critic_optimizer, state.critics)
    (actor_loss_value, entropy), gradient = jax.value_and_grad(actor_loss, has_aux=True)(state.actor)
    actor, actor_optimizer = apply(gradient, actor_optimizer, state.actor)
    # The temperature rises while the entropy is below its target of -1 per action dimension.
    temperature_gradient = temperature * (entropy + action_size)
    log_temperature, temperature_optimizer = apply(temperature_gradient, temperature_optimizer, state.log_temperature)

    target_critics = optax.incremental_update(critics, state.target_critics, recipe.target_rate)
    optimizer = (actor_optimizer, critic_optimizer, temperature_optimizer)
    metrics = {"critic_loss": critic_loss_value, "actor_loss": actor_loss_value, "entropy": entropy, "temperature": temperature}
    return State(actor, critics, target_critics, log_temperature, optimizer, key), metrics


def _values(network: Critic, critics: Params, observations: jax.Array, actions: jax.Array) -> jax.Array:
    """Return what each critic thinks, `(critics, batch)`."""
    values: jax.Array = network.apply({"params": critics}, observations, actions)  # type: ignore[assignment]
    return values


def _act(network: Actor, actor: Params, observations: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Draw actions in -1..1 and give their log probabilities, that of the tanh included."""
    output: tuple[jax.Array, jax.Array] = network.apply({"params": actor}, observations)  # type: ignore[assignment]
    mean, log_std = output
    noise = jax.random.normal(key, mean.shape)
    raw = mean + jnp.exp(log_std) * noise
    log_prob = -0.5 * jnp.square(noise) - log_std - 0.5 * jnp.log(2 * jnp.pi)
    # log(1 - tanh(raw)^2), without the loss of digits near +-1
    log_prob -= 2 * (jnp.log(2.0) - raw - jax.nn.softplus(-2 * raw))
    return jnp.tanh(raw), log_prob.sum(axis=-1)


def _apply(
    adam: optax.GradientTransformation, gradient: Params, optimizer: optax.OptState, params: Params
) -> tuple[Any, optax.OptState]:
    updates, optimizer = adam.update(gradient, optimizer, params)
    return optax.apply_updates(params, updates), optimizer
