"""Processes that write and read one replay buffer under fire, each row with a checksum over all that it says.

Run as a program with the descriptors of a socket and of a shared page. For each line `role name place` that it reads it forks
a child, which attaches to the buffer `name` and notes its progress at `place` of the page; the answer is the child's pid.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import socket
import sys
from typing import Any

import numpy as np
from gymnasium import spaces

from edgeml_ipc.data import DataShape, ReplayBuffer
from edgeml_ipc.data.writer import Writer

PR_SET_PDEATHSIG = 1
PAGE_BYTES = mmap.PAGESIZE
STOP, PLACE_NUMBERS = 0, 8  # the page: one number that stops all, then eight for each place
ROWS, TORN, WRONG, WRITER = range(4)  # at a place: rows committed or checked, torn, otherwise wrong; the writer's number
EPISODE_ROWS = 7
OBSERVATIONS = spaces.Dict({"image": spaces.Box(0, 255, (12, 12), np.uint8), "state": spaces.Box(-1, 1, (16,), np.float32)})
ACTIONS = spaces.Box(-1, 1, (4,), np.float32)
EXTRA = [DataShape("token", (3,), "int64"), DataShape("check", (), "uint64")]  # writer, its row's number, position
LEAVES = [
    ("observations", "image"),
    ("observations", "state"),
    ("next_observations", "image"),
    ("next_observations", "state"),
    ("actions",),
    ("rewards",),
    ("masks",),
    ("dones",),
    ("token",),
]


def make(name: str | None, capacity: int, chunk_rows: int) -> ReplayBuffer:
    """Make a buffer for rows of this kind."""
    return ReplayBuffer(OBSERVATIONS, ACTIONS, capacity, name=name, seed=0, extra_columns=EXTRA, chunk_rows=chunk_rows)


def leaf(tree: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def checksums(batch: dict[str, Any]) -> Any:
    """Return a checksum for each row, over the bytes of all its columns but `check`."""
    total = np.zeros(len(batch["rewards"]), np.uint64)
    for salt, path in enumerate(LEAVES):
        column = np.ascontiguousarray(leaf(batch, path))
        data = column.reshape(len(column), -1).view(np.uint8)
        weights = np.arange(1, data.shape[1] + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(salt << 7)
        total += (data * weights).sum(axis=1, dtype=np.uint64) * np.uint64(2 * salt + 1)
    return total


def rows_of(writer: int, first: int, count: int) -> dict[str, Any]:
    """Return the rows that `writer` inserts as its `first`-th and the following."""
    numbers = np.arange(first, first + count)
    positions = numbers % EPISODE_ROWS
    salt = (numbers * 31 + writer * 7)[:, None]
    images = (salt + np.arange(144)).astype(np.uint8).reshape(count, 12, 12)
    states = (salt % 1009 + np.arange(16)).astype(np.float32)
    batch = {
        "observations": {"image": images, "state": states},
        "next_observations": {"image": images + np.uint8(1), "state": states + np.float32(1)},
        "actions": states[:, :4] * np.float32(2),
        "rewards": states[:, 0],
        "masks": np.where(numbers % (2 * EPISODE_ROWS) == EPISODE_ROWS - 1, 0, 1).astype(np.float32),
        "dones": positions == EPISODE_ROWS - 1,
        "token": np.stack([np.full(count, writer), numbers, positions], axis=1),
    }
    batch["check"] = checksums(batch)
    return batch


def verify(batch: dict[str, Any]) -> tuple[int, int]:
    """Return how many rows of a batch are torn, and how many are whole and yet say something wrong of themselves."""
    torn = checksums(batch) != batch["check"]
    about, (writer, number, position) = batch["about"], batch["token"].T
    flags, ended = about["flags"], position == EPISODE_ROWS - 1
    wrong = (about["writer"] != writer) | (about["position"] != position) | ((flags & 1 != 0) != (position == 0))
    wrong |= ended & (flags & 2 == 0)
    order = np.lexsort((number, writer))  # a writer's later rows have the higher sequence numbers
    later, same = np.diff(number[order]) > 0, np.diff(writer[order]) == 0
    disorder = same & (later != (np.diff(about["sequence"][order]) > 0))
    return int(torn.sum()), int((wrong & ~torn).sum()) + int(disorder.sum()) * (not torn.any())


def numbers_at(page: mmap.mmap, place: int) -> Any:
    """Return the numbers of a place, as a writable view."""
    return np.frombuffer(page, np.int64, PLACE_NUMBERS, PLACE_NUMBERS * 8 * (place + 1))


def write(buffer: ReplayBuffer, page: mmap.mmap, place: int) -> None:
    """Insert one by one and in batches, in two streams that take turns, until killed or stopped."""
    stop, notes = np.frombuffer(page, np.int64, 1), numbers_at(page, place)
    streams = [buffer.writer(), buffer.writer()]
    numbers = [0, 0]
    notes[WRITER] = streams[0].number
    sizes = [1, 5, 1, 1, 37, 2]
    turn = 0
    while not stop[0]:
        size, which = sizes[turn % len(sizes)], turn % 2 if turn % 5 else 0
        insert(streams[which], rows_of(streams[which].number, numbers[which], size), size)
        numbers[which] += size
        turn += 1
        notes[ROWS] = numbers[0]
    buffer.close()


def insert(stream: Writer, rows: dict[str, Any], count: int) -> None:
    if count > 1:
        stream.batch_insert(rows)
    else:
        stream.insert({key: {k: v[0] for k, v in x.items()} if isinstance(x, dict) else x[0] for key, x in rows.items()})


def read(buffer: ReplayBuffer, page: mmap.mmap, place: int) -> None:
    """Sample and verify until stopped."""
    stop, notes = np.frombuffer(page, np.int64, 1), numbers_at(page, place)
    while not stop[0]:
        if buffer.stats()["inserted"]:
            torn, wrong = verify(buffer.sample(64, about=True))
            notes[TORN] += torn
            notes[WRONG] += wrong
            notes[ROWS] += 64
    buffer.close()


def main() -> None:
    control, page_fd = (int(argument) for argument in sys.argv[1:])
    page = mmap.mmap(page_fd, PAGE_BYTES)
    with socket.socket(fileno=control) as orders:
        while order := orders.recv(1000).decode():
            role, name, place = order.split()
            if role == "reap":
                orders.send(str(os.waitstatus_to_exitcode(os.waitpid(int(name), 0)[1])).encode())
                continue
            pid = os.fork()
            if pid == 0:
                ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
                orders.close()
                {"write": write, "read": read}[role](ReplayBuffer.attach(name, seed=int(place)), page, int(place))
                os._exit(0)
            orders.send(str(pid).encode())


if __name__ == "__main__":
    main()
