"""Streams of rows that say of themselves where they belong, and a process that writes one until it is told to stop."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgeml_ipc.data import ReplayBuffer

LENGTHS = [1, 7, 3, 12, 2, 5]


class Stream:
    """Inserts episodes whose rows say which they are."""

    def __init__(self, buffer: ReplayBuffer, number: int) -> None:
        self.writer, self.number = buffer.writer(), number
        self.episode, self.position = 1, 1

    def insert(self, count: int, *, batched: bool) -> None:
        rows = [self._next() for _ in range(count)]
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


def write_until(name: str, number: int, ready: Any, stop: Any) -> None:
    """Insert into the buffer `name` as stream `number`, from when all are ready until `stop` is set."""
    with ReplayBuffer.attach(name) as buffer:
        stream, rng = Stream(buffer, number), np.random.default_rng(number)
        stream.insert(60, batched=True)
        ready.wait(60)
        while not stop.is_set():
            stream.insert(int(rng.integers(1, 12)), batched=bool(rng.integers(2)))
