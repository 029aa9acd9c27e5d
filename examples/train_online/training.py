"""One process: an environment, a replay buffer and SAC, one after the other. No services."""

import numpy as np

from edgeml_ipc import ReplayBuffer
from edgeml_ipc.demo.agent import Agent
from edgeml_ipc.demo.environment import make_env
from edgeml_ipc.demo.metrics import Metrics
from edgeml_ipc.demo.policy import Policy
from edgeml_ipc.demo.sac import recipe_for


def train(args):
    """Act and learn by turns for `args.steps` environment steps."""
    env = make_env(args.env, "human" if args.render else None)
    buffer = ReplayBuffer(env.observation_space, env.action_space, args.steps, seed=args.seed)
    agent = Agent(env.observation_space, env.action_space, seed=args.seed, recipe=recipe_for(args.env))
    rng, policy = np.random.default_rng(args.seed), None
    losses, episode_return = {}, 0.0
    observation, _ = env.reset(seed=args.seed)
    with Metrics(f"SAC on {args.env}, seed {args.seed}", args.plot, args.tensorboard) as metrics:
        for step in range(1, args.steps + 1):
            if policy is None:
                action = rng.uniform(-1, 1, env.action_space.shape).astype(np.float32)
            else:
                action = policy.sample(observation, rng)
            then, reward, terminated, truncated, _ = env.step(action)
            done = terminated or truncated
            buffer.insert({
                "observations": observation, "actions": action, "rewards": reward, "masks": float(not terminated),
                "dones": done, "next_observations": then,
            })  # fmt: skip
            observation, episode_return = then, episode_return + float(reward)
            if done:
                metrics.episode(step, episode_return)
                observation, episode_return = env.reset()[0], 0.0
            if step >= args.random_steps + agent.updates / args.updates_per_step:  # the gradient steps are behind
                losses = agent.learn(buffer.sample(agent.rows_per_call))
                policy = Policy(agent.actor)
            metrics.progress(step, {"updates": agent.updates, **losses}, now=step == args.steps)
    return agent
