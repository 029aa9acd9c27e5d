"""The actor: it steps its environment with the newest policy, and uploads its transitions, each exactly once."""

import os
import threading
import time
from functools import partial

import numpy as np
from common import EPISODE, STORE, say, trainer_config

from edgeml_ipc import ConnectionRefused, PeerDied, QueuedDataStore, TimeoutError, TrainerClient
from edgeml_ipc.demo.environment import make_env
from edgeml_ipc.demo.policy import Policy

UPLOAD_STEPS = 50
UPDATE_SECONDS = 10.0  # for one attempt to upload
PATIENCE_SECONDS = 120.0  # while the learner is away, compiles, or is behind


class Orders:
    """What the learner published last: a policy, or that the run is over."""

    def __init__(self):
        self.policy, self.done = None, threading.Event()

    def receive(self, published):  # on the client's thread
        self.policy = Policy(published["actor"])
        if published["done"]:
            self.done.set()


def act(args, stopped):
    """Act until the learner says that the run is over, or `stopped` is set."""
    queue, orders = QueuedDataStore(2000), Orders()
    name, config = f"actor-{os.getpid()}", trainer_config(args)
    options = {"data_stores": {STORE: queue}, "wait_for_server": True, "wait_timeout": PATIENCE_SECONDS, "timeout_ms": 5000}
    with TrainerClient(name, args.ip, config, **options) as client:
        client.recv_network_callback(orders.receive)
        say(f"actor: connected over {client.transport}")
        sent = episodes = 0
        for step, (transition, returned) in enumerate(walk(args, orders), 1):
            queue.insert(transition)
            if returned is None and step % UPLOAD_STEPS:
                continue
            sent += persist(lambda: client.update(UPDATE_SECONDS).sent, stopped)
            if returned is not None:
                episodes += 1
                persist(partial(client.request, EPISODE, {"return": returned}), stopped)
                say(f"actor: episode {episodes} returned {returned:.1f}; policy {client.policy_version}, {sent} steps sent")
            if orders.done.is_set() or stopped.is_set():
                break
        say(f"actor: sent {sent} transitions of {episodes} whole episodes")


def walk(args, orders):
    """Step the environment for ever; yield each transition and, where an episode ended, what it returned, else None."""
    env, rng = make_env(args.env, "human" if args.render else None), np.random.default_rng(args.seed)
    returned, (observation, _) = 0.0, env.reset(seed=args.seed)
    while True:
        policy = orders.policy
        if policy is None:
            action = rng.uniform(-1, 1, env.action_space.shape).astype(np.float32)
        else:
            action = policy.sample(observation, rng)
        then, reward, terminated, truncated, _ = env.step(action)
        returned, done = returned + float(reward), terminated or truncated
        transition = {
            "observations": observation, "actions": action, "rewards": reward, "masks": float(not terminated),
            "end_of_trajectory": done, "next_observations": then,
        }  # fmt: skip
        yield transition, returned if done else None
        if done:
            returned, (then, _) = 0.0, env.reset()
        observation = then


def persist(call, stopped):
    """Return what `call` does, which asks the learner; while the learner is away, try again."""
    patience_ends, waits = time.monotonic() + PATIENCE_SECONDS, False
    while True:
        try:
            return call()
        except (ConnectionRefused, PeerDied, TimeoutError) as error:
            if not waits:
                waits = True
                say(f"actor: waiting for the learner: {error}")
            if stopped.wait(1.0) or time.monotonic() > patience_ends:
                raise
