"""The actor: it collects transitions in a queue of its own, and uploads them at the end of each episode."""

from point_env import PointEnv, say

from edgeml_ipc import EdgeMLError, QueuedDataStore, TrainerClient, TrainerConfig


def collect(args, stopped):
    """Act for `args.steps` steps; upload after each episode."""
    env, queue = PointEnv(args.seed), QueuedDataStore(capacity=2000)
    config = TrainerConfig(port_number=args.port)
    with TrainerClient("actor", args.ip, config, queue, wait_for_server=True, timeout_ms=5000) as client:
        say(f"actor: connected over {client.transport}")
        try:
            sent, episodes = act(env, queue, client, args.steps, stopped)
        except EdgeMLError as error:
            say(f"actor: the learner does not answer any more: {error}")
        else:
            say(f"actor: sent {sent} transitions of {episodes} whole episodes")


def act(env, queue, client, steps, stopped):
    observation, _ = env.reset()
    sent, episodes = 0, 0
    for _ in range(steps):
        action = env.rng.uniform(-1, 1, 2) - 0.1 * observation[:2]  # a policy would be asked here
        then, reward, terminated, truncated, _ = env.step(action)
        done = terminated or truncated
        queue.insert({
            "observations": observation, "actions": action, "rewards": reward,
            "masks": 0.0 if terminated else 1.0, "dones": done, "next_observations": then,
        })  # fmt: skip
        if done:
            sent += client.update().sent  # each transition reaches the learner once, also across timeouts and reconnects
            episodes += 1
            then, _ = env.reset()
        observation = then
        if stopped.is_set():
            break
    return sent + client.update().sent, episodes
