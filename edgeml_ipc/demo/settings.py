"""What the processes of the demo agree on."""

from __future__ import annotations

from dataclasses import dataclass

from edgeml_ipc.data import DataShape
from edgeml_ipc.trainer import TrainerConfig

STORE = "replay"
FINISHED = "finished"  # the request by which an actor says goodbye
ORIGIN = DataShape("origin", (4,), "int64")  # actor, incarnation, sequence, policy version
GOAL_RETURN = -300.0
EVALUATION_EPISODES = 10
EVALUATION_SEED = 1000


@dataclass(frozen=True)
class Settings:
    """One run.

    Attributes:
        steps: environment steps of all actors together, after which the run ends (and a few that are under way).
        seed: of the networks, the sampling, the environments, and the moment of the kill.
        transport: "auto", "shm" or "tcp".
        actors: how many act at the same time.
        batch_rows: transitions per gradient step; there is one gradient step per environment step.
        updates_per_call: gradient steps per call into JAX.
        warmup_steps: environment steps with random actions, before the first gradient step.
        ahead_steps: how far the actors together may run ahead of the gradient steps.
        upload_steps: environment steps between two uploads of an actor.
        silence_seconds: how long one side waits for the other before it gives up.
    """

    steps: int = 15_000
    seed: int = 0
    transport: str = "auto"
    actors: int = 2
    batch_rows: int = 128
    updates_per_call: int = 50
    warmup_steps: int = 1_000
    ahead_steps: int = 500
    upload_steps: int = 50
    silence_seconds: float = 60.0

    def __post_init__(self) -> None:
        """Raise `ValueError` for a run that cannot be."""
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")

    @property
    def capacity(self) -> int:
        """Rows of the replay buffer, and of each actor's queue: all of the run, so that nothing is evicted."""
        return self.steps + self.warmup_steps + 10 * self.ahead_steps

    def trainer_config(self) -> TrainerConfig:
        """Return the config that learner and actors compare; addresses are given beside it."""
        return TrainerConfig(request_types=[FINISHED])

    def address(self, host: str, port: int) -> str:
        """Return the learner's address; where the transport has no ports, `port` is part of a name."""
        return f"shm://edgeml-demo-{port}" if self.transport == "shm" else f"{self.transport}://{host}:{port}"
