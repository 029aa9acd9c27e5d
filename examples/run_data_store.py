"""An actor collects transitions, a learner samples them from a replay buffer.

python examples/run_data_store.py             both in this process
python examples/run_data_store.py --server    the learner; on another terminal or machine:
python examples/run_data_store.py --client    the actor, --ip says where the learner is
"""

import argparse
import collections
import sys
import threading
import time

import numpy as np

from edgeml_ipc import EdgeMLError, QueuedDataStore, ReplayBuffer, TrainerClient, TrainerConfig, TrainerServer

Space = collections.namedtuple("Space", "shape dtype")  # a gymnasium space has these, too


class PointEnv:
    """Push a point to the origin before it drifts away. As gymnasium's environments, without gymnasium."""

    observation_space = Space((4,), np.float32)  # position and velocity in the plane
    action_space = Space((2,), np.float32)

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)

    def reset(self):
        self.state, self.steps = self.rng.uniform(-1, 1, 4).astype(np.float32), 0
        return self.state.copy(), {}

    def step(self, action):
        self.state[2:] += 0.1 * np.clip(action, -1, 1)
        self.state[:2] += 0.1 * self.state[2:]
        self.steps += 1
        distance = float(np.linalg.norm(self.state[:2]))
        terminated, truncated = distance > 3, self.steps == 200
        return self.state.copy(), -distance, terminated, truncated, {}


def say(line):
    """Print a line in one piece, since two threads do."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


# ---- the actor


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


# ---- the learner


def learn(args, address_known=lambda address: None):
    """Serve a replay buffer, and sample batches from it until `args.steps` transitions have come."""
    arrived = threading.Event()
    buffer = ReplayBuffer(PointEnv.observation_space, PointEnv.action_space, args.capacity, seed=args.seed)
    config = TrainerConfig(port_number=args.port)
    with TrainerServer(config, lambda *_: arrived.set(), host=args.ip, insecure=args.insecure) as server:
        server.register_data_store("actor", buffer)
        server.start(threaded=True)
        say(f"learner: waiting for actors at {server.address}")
        address_known(server.address)
        arrived.wait()
        batches, started = 0, time.perf_counter()
        reported = started
        while True:
            batch = buffer.sample(args.batch_size)
            batches += 1
            inserted, now = buffer.stats()["inserted"], time.perf_counter()
            if now - reported > 1 or inserted >= args.steps:
                reported, seconds = now, now - started
                say(
                    f"learner: {inserted} transitions, {len(buffer)} held; {batches} batches of {args.batch_size}, "
                    f"{batches * args.batch_size / seconds:,.0f} rows/s; mean reward {batch['rewards'].mean():.2f}"
                )
            if inserted >= args.steps:
                return


def both(args):
    """Learn here, act in a thread."""
    stopped = threading.Event()
    actors = []

    def begin_to_act(address):
        here = argparse.Namespace(**{**vars(args), "ip": address})
        actors.append(threading.Thread(target=collect, args=(here, stopped)))
        actors[0].start()

    args.ip = "inproc://learner"
    try:
        learn(args, begin_to_act)
    finally:
        stopped.set()
        for actor in actors:
            actor.join()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    side = parser.add_mutually_exclusive_group()
    side.add_argument("--server", action="store_true", help="be the learner")
    side.add_argument("--client", action="store_true", help="be the actor")
    parser.add_argument("--ip", default="127.0.0.1", help="where the learner is; for the learner: where it listens")
    parser.add_argument("--port", type=int, default=5588, help="of the learner; 0: any that is free")
    parser.add_argument("--steps", type=int, default=20_000, help="transitions after which it ends (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--capacity", type=int, default=10_000, help="of the replay buffer (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--insecure", action="store_true", help="listen beyond this machine without encryption")
    args = parser.parse_args()
    try:
        if args.server:
            learn(args)
        elif args.client:
            collect(args, threading.Event())
        else:
            both(args)
    except KeyboardInterrupt:
        say("interrupted")


if __name__ == "__main__":
    main()
