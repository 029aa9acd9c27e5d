"""An actor: steps its environment with the newest policy, queues transitions, uploads them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from threading import Condition
from typing import Any

import numpy as np

from edgeml_ipc.data import QueuedDataStore
from edgeml_ipc.demo.accounting import Acknowledged, Source
from edgeml_ipc.demo.environment import make_env
from edgeml_ipc.demo.policy import Policy
from edgeml_ipc.demo.settings import FINISHED, STORE, Settings
from edgeml_ipc.errors import TimeoutError
from edgeml_ipc.trainer import TrainerClient


class Orders:
    """What the learner published last: a policy, and how many steps to take before the next orders (or that the run is over).

    Threads and processes: `receive` runs on the client's thread, `take` on the actor's.
    """

    def __init__(self) -> None:
        """Start without orders."""
        self._changed = Condition()
        self._newest: Mapping[str, Any] | None = None
        self._room = 0

    def receive(self, published: Mapping[str, Any]) -> None:
        """Replace the orders, and what is left of their steps, by what was published."""
        with self._changed:
            self._newest = published
            self._room = published["room"]
            self._changed.notify()

    def take(self, max_steps: int, timeout: float) -> tuple[Mapping[str, Any], int]:
        """Wait until there is something to do, and take on some of it.

        Returns:
            The newest orders, and a number of steps up to `max_steps`; 0 steps when the run is over.
        Raises:
            TimeoutError: nothing to do came within `timeout` seconds.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._newest and (self._newest["done"] or self._room > 0), timeout):
                raise TimeoutError(f"the learner gave nothing to do for {timeout:.0f} s")
            assert self._newest is not None
            steps = 0 if self._newest["done"] else min(max_steps, self._room)
            self._room -= steps
            return self._newest, steps


def run_actor(settings: Settings, source: Source, address: str, report: Callable[[Acknowledged], None]) -> Acknowledged:
    """Act until the learner says that the run is over.

    Args:
        source: who this is; every transition carries it.
        address: of the learner.
        report: called after each upload with all that was acknowledged so far.
    Returns:
        The last report.
    """
    orders = Orders()
    queue = QueuedDataStore(settings.capacity)
    with TrainerClient(
        f"actor-{source.actor}",
        address,
        settings.trainer_config(),
        data_stores={STORE: queue},
        wait_for_server=True,
        timeout_ms=int(settings.silence_seconds * 1000),
    ) as client:
        client.recv_network_callback(orders.receive)
        rollout = Rollout(settings, source)
        acknowledged = Acknowledged(sent=0, evicted=0, transport=client.transport)
        while True:
            order, steps = orders.take(settings.upload_steps, settings.silence_seconds)
            if steps == 0:
                break
            queue.batch_insert(rollout.step(order, steps))
            evicted = acknowledged.evicted + client.update().evicted
            acknowledged = Acknowledged(queue.latest_data_id() + 1, evicted, client.transport)
            report(acknowledged)
        client.request(FINISHED, {"source": list(source), "acknowledged": asdict(acknowledged)})
    return acknowledged


class Rollout:
    """The environment and where it stands."""

    def __init__(self, settings: Settings, source: Source) -> None:
        """Reset the environment, seeded by run and source."""
        self._source = source
        self._sequence = 0
        self._rng = np.random.default_rng([settings.seed, *source])
        self._env = make_env()
        self._observation, _ = self._env.reset(seed=int(self._rng.integers(2**31)))

    def step(self, order: Mapping[str, Any], steps: int) -> list[dict[str, Any]]:
        """Take `steps` steps as ordered and return the transitions."""
        policy = None if order["actor"] is None else Policy(order["actor"])
        return [self._transition(policy, order["version"]) for _ in range(steps)]

    def _transition(self, policy: Policy | None, version: int) -> dict[str, Any]:
        observation = self._observation
        if policy is None:
            action = self._rng.uniform(-1, 1, self._env.action_space.shape).astype(np.float32)
        else:
            action = policy.sample(observation, self._rng)
        following, reward, terminated, truncated, _ = self._env.step(action)
        transition = {
            "observations": observation,
            "actions": action,
            "rewards": np.float32(reward),
            "masks": np.float32(not terminated),
            "dones": terminated or truncated,
            "next_observations": following,
            "origin": np.array([*self._source, self._sequence, version], np.int64),
        }
        self._sequence += 1
        self._observation = self._env.reset()[0] if transition["dones"] else following
        return transition
