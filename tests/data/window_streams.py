"""Streams of rows that say of themselves where they belong, and a process that writes one until it is told to stop."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces

from edgeml_ipc.data import DataShape, LatestSampler, PrioritySampler, ReplayBuffer, SequenceSampler

BOX = spaces.Box(-1, 1, (3,), np.float32)
ACTIONS = spaces.Box(-1, 1, (2,), np.float32)
TOKEN = DataShape("token", (4,), "int64")  # stream, episode, position, length of the episode; all from 1
LENGTHS = [1, 7, 3, 12, 2, 5]


class Stream:
    """Inserts episodes whose rows say which they are."""

    def __init__(self, buffer: ReplayBuffer, number: int) -> None:
        self.writer, self.number = buffer.writer(), number
        self.episode, self.position = 1, 1

    def insert(self, count: int, *, batched: bool, **more: Any) -> None:
        rows = [{**self._next(), **more} for _ in range(count)]
        if batched:
            self.writer.batch_insert(rows)
        else:
            for row in rows:
                self.writer.insert(row)

    def _next(self) -> dict[str, Any]:
        length = LENGTHS[(self.episode + self.number) % len(LENGTHS)]
        token = np.array([self.number, self.episode, self.position, length])
        ended = self.position == length
        value = np.float32(token[1] % 1000 * 100 + token[2])
        row = {
            "observations": np.full(3, value),
            "actions": np.full(2, value),
            "rewards": value,
            "masks": 1.0 - float(ended),
            "dones": ended,
            "next_observations": np.full(3, value),
            "token": token,
        }
        self.episode, self.position = (self.episode + 1, 1) if ended else (self.episode, self.position + 1)
        return row


def fill(buffer: ReplayBuffer, rounds: int, seed: int = 0, streams: int = 2) -> list[Stream]:
    """Let some streams take turns at random."""
    rng = np.random.default_rng(seed)
    all_streams = [Stream(buffer, number) for number in range(1, streams + 1)]
    for _ in range(rounds):
        all_streams[rng.integers(streams)].insert(int(rng.integers(1, 9)), batched=bool(rng.integers(2)))
    return all_streams


def keys_of(token: Any) -> np.ndarray:
    """Return a number of its own for each step that any stream writes."""
    return np.asarray(token) @ np.array([10**7, 100, 1, 0])


def write_until(name: str, number: int, ready: Any, stop: Any) -> None:
    """Insert into the buffer `name` as stream `number`, from when all are ready until `stop` is set."""
    with ReplayBuffer.attach(name) as buffer:
        stream, rng = Stream(buffer, number), np.random.default_rng(number)
        stream.insert(60, batched=True)
        ready.wait(60)
        while not stop.is_set():
            stream.insert(int(rng.integers(1, 12)), batched=bool(rng.integers(2)))


def register_prioritized(buffer: ReplayBuffer) -> None:
    """Register the config "prioritized", by which `learn` samples."""
    samplers = {"token": LatestSampler(), "window": SequenceSampler(begin=0, end=3, source="token"), "p": PrioritySampler()}
    buffer.register_sample_config("prioritized", samplers, sample_range=(0, 2))


def learn(buffer: ReplayBuffer, batches: int, seed: int) -> int:
    """Sample by priority and update, and return how many elements of the batches were wrong."""
    rng, wrong = np.random.default_rng(seed), 0
    for _ in range(batches):
        data, mask = buffer.sample("prioritized", 32)
        wanted = data["token"][:, None, :] + np.arange(3)[None, :, None] * np.array([0, 0, 1, 0])
        wanted = np.where(mask["window"][:, :, None], wanted, 0)
        wrong += int((data["window"] != wanted).any(axis=(1, 2)).sum()) + int((~mask["window"][:, :2]).sum())
        importance = data["p"]["importance"]
        wrong += int(((importance <= 0) | (importance > 1)).sum())
        buffer.update_priorities("prioritized", data["p"]["indices"], rng.random(32))
    return wrong


def learn_by_name(name: str, seed: int, ready: Any, batches: int) -> None:
    """Do it in a process of its own; it fails if anything was wrong."""
    with ReplayBuffer.attach(name, seed=seed) as buffer:
        register_prioritized(buffer)
        ready.wait(60)
        assert learn(buffer, batches, seed) == 0
