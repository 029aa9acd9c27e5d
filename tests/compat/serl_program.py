"""An actor and a learner as users of SERL write them. Of this library there are the import lines alone.

The stores are the user's own, except with `--durable`: then the learner's lie in memory that outlives it. What the tests need
beside: each transition has a token (life of the actor, number), the actor says what was acknowledged, and when the learner's
standard input ends it says which tokens its stores hold.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
from threading import Lock
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from gymnasium.spaces import Box

from edgeml_ipc.compat.data.data_store import DataStoreBase, QueuedDataStore
from edgeml_ipc.compat.data.jaxrl_data_store import ReplayBufferDataStore as DurableDataStore
from edgeml_ipc.compat.data.trajectory_buffer import DataShape
from edgeml_ipc.compat.trainer import TrainerClient, TrainerConfig, TrainerServer

EPISODE_STEPS = 10
STEP_SECONDS = 0.02  # 2000 steps, which the actor's queue holds, are 40 seconds
CAPACITY = 10_000
BATCH_SIZE = 16
OBSERVATIONS, ACTIONS = Box(-np.inf, np.inf, (3,)), Box(-1, 1, (2,))
policy = nn.Dense(2)


class ReplayBuffer:
    """A ring in numpy, as jaxrl's."""

    def __init__(self, observation_space: Any, action_space: Any, capacity: int) -> None:
        shapes = {"observations": observation_space.shape, "next_observations": observation_space.shape}
        shapes |= {"actions": action_space.shape, "rewards": (), "masks": (), "dones": (), "token": (2,)}
        self.dataset_dict = {name: np.empty((capacity, *shape)) for name, shape in shapes.items()}
        self._size = self._insert_index = 0
        self._capacity = capacity

    def __len__(self) -> int:
        return self._size

    def insert(self, data_dict: dict[str, Any]) -> None:
        assert self.dataset_dict.keys() == data_dict.keys()
        for name, value in data_dict.items():
            self.dataset_dict[name][self._insert_index] = value
        self._insert_index = (self._insert_index + 1) % self._capacity
        self._size = min(self._size + 1, self._capacity)

    def sample(self, batch_size: int) -> dict[str, Any]:
        rows = np.random.randint(self._size, size=batch_size)
        return {name: field[rows] for name, field in self.dataset_dict.items()}


class ReplayBufferDataStore(ReplayBuffer, DataStoreBase):
    """The ring as a data store, as in SERL's launcher."""

    def __init__(self, observation_space: Any, action_space: Any, capacity: int) -> None:
        ReplayBuffer.__init__(self, observation_space, action_space, capacity)
        DataStoreBase.__init__(self, capacity)
        self._lock = Lock()

    def insert(self, *args: Any, **kwargs: Any) -> None:
        with self._lock:
            super().insert(*args, **kwargs)

    def sample(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        with self._lock:
            return super().sample(*args, **kwargs)

    def latest_data_id(self) -> int:
        return self._insert_index

    def get_latest_data(self, from_id: int) -> list[Any]:
        raise NotImplementedError

    def tokens(self) -> list[list[int]]:
        with self._lock:
            return self.dataset_dict["token"][: self._size].astype(int).tolist()


def make_trainer_config(port: int) -> TrainerConfig:
    return TrainerConfig(port_number=port, broadcast_port=port + 1, request_types=["send-stats"])


def actor(ip: str, port: int, life: int, stop: threading.Event) -> None:
    data_store, intvn_data_store = QueuedDataStore(2000), QueuedDataStore(2000)
    datastore_dict = {"actor_env": data_store, "actor_env_intvn": intvn_data_store}
    client = TrainerClient(
        "actor_env", ip, make_trainer_config(port), data_stores=datastore_dict, wait_for_server=True, timeout_ms=3000
    )
    params = None

    def update_params(new_params: Any) -> None:
        nonlocal params
        params = new_params

    client.recv_network_callback(update_params)
    rng = np.random.default_rng(life)
    obs, step, networks = rng.normal(size=3), 0, 0
    while not stop.is_set():
        if params is None:
            actions = rng.uniform(-1, 1, 2)
        else:
            actions = np.asarray(policy.apply({"params": params}, obs))
            networks += 1
        stop.wait(STEP_SECONDS)  # the robot moves
        next_obs, reward = 0.9 * obs + 0.1 * actions.sum(), -float(np.abs(obs).sum())
        done = (step + 1) % EPISODE_STEPS == 0
        transition = {
            "observations": obs,
            "actions": actions,
            "next_observations": next_obs,
            "rewards": reward,
            "masks": 1.0 - done,
            "dones": done,
            "token": np.array([life, step]),
        }
        data_store.insert(transition)
        if step % 3 == 0:  # somebody intervened
            intvn_data_store.insert(transition)
        obs = next_obs
        step += 1
        if done:
            stats = {"environment": {"episode": {"r": reward, "l": EPISODE_STEPS}}}
            client.request("send-stats", stats)  # send stats to the learner to log
            if client.update():
                print("acknowledged", step, networks, flush=True)
            obs = rng.normal(size=3)
    while not client.update():  # the learner may be on its way up
        threading.Event().wait(0.1)
    print("acknowledged", step, networks, flush=True)
    client.stop()


def learner(port: int, durable: str | None, stop: threading.Event) -> None:
    if durable is None:
        replay_buffer = ReplayBufferDataStore(OBSERVATIONS, ACTIONS, CAPACITY)
        demo_buffer = ReplayBufferDataStore(OBSERVATIONS, ACTIONS, CAPACITY)
    else:
        token: dict[str, Any] = {"extra_columns": [DataShape("token", (2,), "int64")], "reattach": True}
        replay_buffer = DurableDataStore(OBSERVATIONS, ACTIONS, CAPACITY, name=f"{durable}-env", **token)
        demo_buffer = DurableDataStore(OBSERVATIONS, ACTIONS, CAPACITY, name=f"{durable}-intvn", **token)
    stats_received = 0

    def stats_callback(type: str, payload: dict[str, Any]) -> dict[str, Any]:
        nonlocal stats_received
        assert type == "send-stats"
        assert payload["environment"]["episode"]["l"] == EPISODE_STEPS
        stats_received += 1
        return {}  # not expecting a response

    server = TrainerServer(make_trainer_config(port), request_callback=stats_callback)
    server.register_data_store("actor_env", replay_buffer)
    server.register_data_store("actor_env_intvn", demo_buffer)
    server.start(threaded=True)
    print(server.port, flush=True)
    params = policy.init(jax.random.PRNGKey(0), np.zeros(3))["params"]
    while len(replay_buffer) < BATCH_SIZE and not stop.is_set():
        stop.wait(0.02)
    server.publish_network(params)
    while not stop.is_set():
        batch, demo_batch = replay_buffer.sample(BATCH_SIZE), demo_buffer.sample(BATCH_SIZE)
        step = 1e-3 * (batch["rewards"].mean() + demo_batch["rewards"].mean())
        params = jax.tree.map(lambda leaf, step=step: leaf + step, params)
        server.publish_network(params)
        stop.wait(0.05)
    server.stop()
    if durable is None:
        print(json.dumps([replay_buffer.tokens(), demo_buffer.tokens(), stats_received]), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--learner", action="store_true")
    parser.add_argument("--actor", type=int, help="life of the actor")
    parser.add_argument("--ip", default="localhost")
    parser.add_argument("--port", type=int, default=5588)
    parser.add_argument("--durable", help="name of the learner's buffers")
    arguments = parser.parse_args()
    stop = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), stop.set()), daemon=True).start()
    if arguments.learner:
        learner(arguments.port, arguments.durable, stop)
    else:
        actor(arguments.ip, arguments.port, arguments.actor, stop)


if __name__ == "__main__":
    main()
