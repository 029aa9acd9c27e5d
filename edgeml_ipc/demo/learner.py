"""The learner: takes in transitions, takes gradient steps, publishes the policy, and keeps the books."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from threading import Condition
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeml_ipc.data import ReplayBuffer
from edgeml_ipc.demo.accounting import Acknowledged, Audit, Ledger, Source, audit_store, episode_returns
from edgeml_ipc.demo.agent import Agent
from edgeml_ipc.demo.environment import make_env
from edgeml_ipc.demo.policy import Policy
from edgeml_ipc.demo.settings import EVALUATION_EPISODES, EVALUATION_SEED, ORIGIN, STORE, Settings
from edgeml_ipc.errors import TimeoutError
from edgeml_ipc.trainer import TrainerServer

_REPORT_EVERY_SECONDS = 0.2


@dataclass
class Progress:
    """How far the run is; what the dashboard shows.

    Attributes:
        inserted: transitions received. updates: gradient steps taken.
        version: number of the newest policy. lag: by how many versions the newest transitions were behind it.
        returns: of the episodes that ended since the last report.
        server: the server's counters.
    """

    inserted: int = 0
    updates: int = 0
    version: int = 0
    lag: float = 0.0
    returns: list[float] = field(default_factory=list)
    server: dict[str, Any] = field(default_factory=dict)


class Intake:
    """What arrived: fed by the server's thread, read by the learner's.

    Threads and processes: any thread may call any method.
    """

    def __init__(self) -> None:
        """Start with nothing."""
        self._changed = Condition()
        self.ledger = Ledger()
        self.finished: dict[Source, Acknowledged] = {}
        self.version = 0  # of the newest policy; set by the learner
        self._lag = 0.0
        self._running: dict[Source, float] = {}
        self._returns: list[float] = []

    def on_data(self, store_name: str, payload: Mapping[str, Any]) -> None:
        """Note what was stored (the server's data callback)."""
        transitions = payload["data"]
        origins = np.stack([transition["origin"] for transition in transitions])
        with self._changed:
            self.ledger.add(origins)
            self._lag = float(self.version - origins[:, 3].mean())
            self._returns += episode_returns(self._running, transitions)
            self._changed.notify()

    def on_request(self, request_type: str, payload: Mapping[str, Any]) -> dict[str, Any]:
        """Note that an actor has finished (the server's request callback; there is no other request)."""
        with self._changed:
            self.finished[Source(*payload["source"])] = Acknowledged(**payload["acknowledged"])
            self._changed.notify()
        return {}

    @property
    def rows(self) -> int:
        """Transitions that arrived."""
        with self._changed:
            return self.ledger.rows

    def wait_for_rows(self, rows: int, timeout: float) -> int:
        """Wait until `rows` transitions have arrived, or `timeout` seconds; return how many arrived."""
        with self._changed:
            self._changed.wait_for(lambda: self.ledger.rows >= rows, timeout)
            return self.ledger.rows

    def wait_for_farewells(self, timeout: float) -> dict[Source, Acknowledged]:
        """Wait until each source that sent anything has said goodbye, or `timeout` seconds; return the goodbyes."""
        with self._changed:
            self._changed.wait_for(lambda: self.ledger.sources <= set(self.finished), timeout)
            return dict(self.finished)

    def progress(self) -> Progress:
        """Return what is known of the data; the returns are given once."""
        with self._changed:
            returns, self._returns = self._returns, []
            return Progress(inserted=self.ledger.rows, version=self.version, lag=self._lag, returns=returns)


class Learner:
    """Server, replay buffer and agent of one run.

    A context manager: within, it serves.
    """

    def __init__(self, settings: Settings, address: str, *, insecure: bool = False) -> None:
        """Listen; `with` starts serving.

        Args:
            address: where to listen; with port 0 the system chooses, and `server.address` tells.
            insecure: allow a host beyond loopback (see `TrainerServer`).
        """
        self._settings = settings
        env = make_env()
        self._spaces = (env.observation_space, env.action_space)
        self._buffer = ReplayBuffer(*self._spaces, settings.capacity, seed=settings.seed, extra_columns=[ORIGIN])
        self._intake = Intake()
        self._updates = 0
        self._params: Any = None  # of the newest policy, as numpy arrays
        self.server = TrainerServer(
            settings.trainer_config(),
            data_callback=self._intake.on_data,
            request_callback=self._intake.on_request,
            host=address,
            insecure=insecure,
        )
        self.server.register_data_store(STORE, self._buffer)

    def __enter__(self) -> Learner:
        self.server.start(threaded=True)
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def train(self, report: Callable[[Progress], None]) -> None:
        """Learn until all steps are taken; then tell the actors to end.

        Args:
            report: called a few times per second.
        Raises:
            TimeoutError: no transition came for `settings.silence_seconds`.
        """
        settings, intake = self._settings, self._intake
        self._publish(done=False)  # the actors begin with random actions while the update is compiled
        rows, updates = settings.batch_rows, settings.updates_per_call
        agent = Agent(*self._spaces, seed=settings.seed, batch_rows=rows, updates_per_call=updates)
        self._params = agent.actor
        last_report = last_arrival = time.monotonic()
        seen = 0
        while True:
            inserted = intake.rows
            now = time.monotonic()
            if inserted > seen:
                seen, last_arrival = inserted, now
            elif now - last_arrival > settings.silence_seconds:
                raise TimeoutError(f"no transition arrived for {settings.silence_seconds:.0f} s; {inserted} did before")
            if now - last_report > _REPORT_EVERY_SECONDS:
                report(self._progress())
                last_report = now
            due = min(inserted, settings.steps) - settings.warmup_steps - self._updates
            if due >= settings.updates_per_call:
                agent.learn(self._buffer.sample(agent.rows_per_call))
                self._params, self._updates = agent.actor, agent.updates
                intake.version += 1
            elif inserted >= settings.steps:
                break
            else:
                intake.wait_for_rows(inserted + 1, timeout=_REPORT_EVERY_SECONDS)
            self._publish(done=intake.rows >= settings.steps)
        self._publish(done=True)
        report(self._progress())

    def evaluate(self) -> float:
        """Return the mean return of the policy's most likely actions, over episodes that are the same in each run."""
        policy, env = Policy(self._params), make_env()
        total = 0.0
        for episode in range(EVALUATION_EPISODES):
            observation, _ = env.reset(seed=EVALUATION_SEED + episode)
            ended = False
            while not ended:
                observation, reward, terminated, truncated, _ = env.step(policy.mode(observation))
                total += float(reward)
                ended = terminated or truncated
        return total / EVALUATION_EPISODES

    def farewells(self) -> dict[Source, Acknowledged]:
        """Wait for the actors to say goodbye, and return what each knows of its uploads."""
        return self._intake.wait_for_farewells(timeout=5.0)

    def audit(self, acknowledged: Mapping[Source, Acknowledged]) -> Audit:
        """Compare the rows of the replay buffer with what the actors saw acknowledged. Stop the server first."""
        rows: npt.NDArray[np.int64] = self._buffer.columns[ORIGIN.name][self._buffer.rows()]
        return audit_store(rows, self._intake.ledger, acknowledged)

    def stop(self) -> None:
        """Stop serving. Idempotent."""
        self.server.stop()

    def _publish(self, *, done: bool) -> None:
        settings, inserted = self._settings, self._intake.rows
        room = min(settings.warmup_steps + self._updates + settings.ahead_steps, settings.steps) - inserted
        order = {
            "actor": self._params if self._updates else None,  # None: act at random
            "version": self._intake.version,
            "room": max(0, -(-room // settings.actors)),
            "done": done,
        }
        self.server.publish_network(order)

    def _progress(self) -> Progress:
        progress = self._intake.progress()
        progress.updates = self._updates
        progress.server = self.server.stats()
        return progress
