"""The launcher: starts learner and actors as processes, kills an actor in mid-run, and takes down what each acknowledged.

Each actor writes what was acknowledged into a pipe of its own after each upload. The kernel keeps what was written, so that it
is known of a killed actor too.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing.connection import wait
from typing import Any

import numpy as np

from edgeml_ipc.demo.accounting import Acknowledged, Audit, Source
from edgeml_ipc.demo.dashboard import Dashboard
from edgeml_ipc.demo.settings import Settings
from edgeml_ipc.errors import EdgeMLError, PeerDied, TimeoutError
from edgeml_ipc.launch import pipe, spawn

HOST = "127.0.0.1"
_TICK_SECONDS = 0.25
# One thread per process: there are more processes than cores as it is.
_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
}


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    mean_return: float
    audit: Audit
    transport: str


@dataclass
class _Actor:
    source: Source
    process: Any
    acknowledgements: Any
    last: Acknowledged | None = None
    killed: bool = False


def set_environment() -> None:
    """Keep the numeric libraries of this process and of its children to one thread each, where nothing else is set."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)


class Launcher:
    """One run of the whole demo.

    Use as a context manager: on leaving, no process is left.
    """

    def __init__(self, settings: Settings, dashboard: Dashboard) -> None:
        """Prepare a run whose progress and events `dashboard` shows."""
        self._settings = settings
        self._dashboard = dashboard
        self._rng = np.random.default_rng(settings.seed)
        # In steps, so that the seed fixes it: somewhere in the middle of the run.
        self._kill_at = int(settings.steps * self._rng.uniform(0.3, 0.6))
        self._killed = False
        self._actors: list[_Actor] = []
        self._learner: Any = None

    def __enter__(self) -> Launcher:
        return self

    def __exit__(self, *exc: object) -> None:
        for process in [*(actor.process for actor in self._actors), self._learner]:
            if process is not None and process.is_alive():
                process.kill()
                process.join()

    def run(self) -> Outcome:
        """Run to the end.

        Raises:
            PeerDied: a process ended that nobody had killed. TimeoutError: the run stalled.
        """
        set_environment()
        results, learner_results = pipe()
        learner_commands, commands = pipe()
        self._learner = spawn(_learner_main, self._settings, learner_results, learner_commands, name="learner")
        learner_results.close()
        learner_commands.close()
        address = self._receive(results)["address"]
        for actor in range(self._settings.actors):
            self._start_actor(Source(actor, 0), address)
        self._dashboard.event(f"the learner listens at {address} and compiles its update; the actors start")
        self._follow(results, address)
        acknowledged = self._part_with_actors()
        commands.send_bytes(json.dumps([[source, asdict(known)] for source, known in acknowledged.items()]).encode())
        outcome = self._receive(results)
        self._learner.join(self._settings.silence_seconds)
        transports = sorted({known.transport for known in acknowledged.values()})
        return Outcome(outcome["return"], Audit(**outcome["audit"]), "+".join(transports))

    def _start_actor(self, source: Source, address: str) -> None:
        reader, writer = pipe()
        name = f"actor-{source.actor}.{source.incarnation}"
        process = spawn(_actor_main, self._settings, source, address, writer, name=name)
        writer.close()
        self._actors.append(_Actor(source, process, reader))

    def _follow(self, results: Any, address: str) -> None:
        """Show progress, kill an actor and replace it, until the learner has all its steps."""
        last_news = time.monotonic()
        while True:
            wait([results, *(a.acknowledgements for a in self._actors if not a.acknowledgements.closed)], _TICK_SECONDS)
            for actor in self._actors:
                self._note_acknowledgements(actor)
                self._raise_if_failed(actor)
            if not self._killed and sum(actor.last.sent for actor in self._actors if actor.last) >= self._kill_at:
                self._kill_and_replace(int(self._rng.integers(self._settings.actors)), address)
            if results.poll():
                last_news = time.monotonic()
                message = self._receive(results)
                if message.get("trained"):
                    return
                self._dashboard.show(message["progress"], self._transport())
            elif time.monotonic() - last_news > self._settings.silence_seconds:
                raise TimeoutError(f"the learner reported nothing for {self._settings.silence_seconds:.0f} s")

    def _kill_and_replace(self, index: int, address: str) -> None:
        victim = self._actors[index]
        victim.killed = self._killed = True
        victim.process.kill()
        self._dashboard.event(f"killed {victim.process.name} by SIGKILL near step {self._kill_at:,}, and replaced it")
        self._start_actor(victim.source._replace(incarnation=victim.source.incarnation + 1), address)

    def _part_with_actors(self) -> dict[Source, Acknowledged]:
        """Wait for the actors to end, and return what each had acknowledged last."""
        for actor in self._actors:
            actor.process.join(self._settings.silence_seconds)
            if actor.process.is_alive():
                raise TimeoutError(f"{actor.process.name} did not end in {self._settings.silence_seconds:.0f} s")
            self._raise_if_failed(actor)
            self._note_acknowledgements(actor)
        return {actor.source: actor.last for actor in self._actors if actor.last is not None}

    def _raise_if_failed(self, actor: _Actor) -> None:
        expected = -signal.SIGKILL if actor.killed else 0
        if actor.process.exitcode not in (None, expected):
            raise PeerDied(f"{actor.process.name} ended with exit code {actor.process.exitcode}, not {expected}")

    def _note_acknowledgements(self, actor: _Actor) -> None:
        while not actor.acknowledgements.closed and actor.acknowledgements.poll():
            try:
                actor.last = Acknowledged(**json.loads(actor.acknowledgements.recv_bytes()))
            except EOFError:
                actor.acknowledgements.close()

    def _receive(self, results: Any) -> Any:
        """Wait for the learner's next message."""
        if not results.poll(self._settings.silence_seconds):
            raise TimeoutError(f"the learner reported nothing for {self._settings.silence_seconds:.0f} s")
        try:
            return json.loads(results.recv_bytes())
        except EOFError as error:
            self._learner.join(self._settings.silence_seconds)
            raise PeerDied(f"the learner ended early with exit code {self._learner.exitcode}") from error

    def _transport(self) -> str:
        return "+".join(sorted({actor.last.transport for actor in self._actors if actor.last is not None}))


def _learner_main(settings: Settings, results: Any, commands: Any) -> None:
    """Run the learner's process; it reports to the launcher as JSON."""
    from edgeml_ipc.demo.learner import Learner

    def send(**message: Any) -> None:
        results.send_bytes(json.dumps(message).encode())

    port = os.getpid() if settings.transport == "shm" else 0
    with _errors_in_one_line("learner"), Learner(settings, settings.address(HOST, port)) as learner:
        send(address=learner.server.address)
        learner.train(lambda progress: send(progress=asdict(progress)))
        send(trained=True)
        acknowledged = {Source(*source): Acknowledged(**known) for source, known in json.loads(commands.recv_bytes())}
        mean_return = learner.evaluate()
        learner.stop()
        send(**{"return": mean_return, "audit": asdict(learner.audit(acknowledged))})


def _actor_main(settings: Settings, source: Source, address: str, acknowledgements: Any) -> None:
    """Run an actor's process."""
    from edgeml_ipc.demo.actor import run_actor

    with _errors_in_one_line(f"actor-{source.actor}.{source.incarnation}"):
        run_actor(settings, source, address, lambda known: acknowledgements.send_bytes(json.dumps(asdict(known)).encode()))


@contextmanager
def _errors_in_one_line(name: str) -> Iterator[None]:
    """End the process with exit code 1 and a line instead of a traceback, where this library says what is wrong."""
    try:
        yield
    except EdgeMLError as error:
        sys.exit(f"{name}: {type(error).__name__}: {error}")
