"""Processes that write and read one replay buffer under fire, each row with a checksum over all that it says.

Some observations that follow are the next row's, and stored once; others are not. Readers draw rows, windows that are masked
where an episode has no step, whole windows, and windows by priority.

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

import ml_dtypes
import numpy as np
from gymnasium import spaces

from edgeml_ipc.data import BufferEmpty, DataShape, LatestSampler, PrioritySampler, ReplayBuffer, Sampler, SequenceSampler
from edgeml_ipc.data.batches import UniformRows
from edgeml_ipc.data.windows import Windows
from edgeml_ipc.data.writer import Writer

PR_SET_PDEATHSIG = 1
PAGE_BYTES = mmap.PAGESIZE
STOP, PLACE_NUMBERS = 0, 8  # the page: one number that stops all, then eight for each place
# At a place: rows committed or checked, of these the torn; rows or windows that are otherwise wrong; the writer's number;
# windows checked, of these the torn; cells that were masked.
ROWS, TORN, WRONG, WRITER, WINDOWS, TORN_WINDOWS, MASKED = range(7)
EPISODE_ROWS = 7
JUMPS = 13  # of so many rows one is followed by another observation than the next row's
IMAGE = (12, 12)
STATE = spaces.Box(-1, 1, (16,), np.float32)
ACTIONS = spaces.Box(-1, 1, (4,), np.float32)
EXTRA = [
    DataShape("token", (3,), "int64"),  # writer, its row's number, position
    DataShape("half", (2,), "float16"),
    DataShape("brain", (3,), "bfloat16"),
    DataShape("odd", (5,), "bool"),
    DataShape("check", (), "uint64"),
]
BEGIN, END = -2, 4  # of the windows, around the anchor
RANGES = {"around": (0, 1), "whole": (-1, 3), "by priority": (0, 2)}  # what must be there
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
    ("half",),
    ("brain",),
    ("odd",),
]
FIELDS = [*dict.fromkeys(path[0] for path in LEAVES), "check"]


def make(name: str | None, capacity: int, chunk_rows: int, stack: int = 1, **options: Any) -> ReplayBuffer:
    """Make a buffer for rows of this kind, whose images are stacks of so many frames."""
    image = spaces.Box(0, 255, IMAGE if stack == 1 else (*IMAGE, stack), np.uint8)
    observations = spaces.Dict({"image": image, "state": STATE})
    options = {"seed": 0, "extra_columns": EXTRA, "chunk_rows": chunk_rows, "n_stack": stack, **options}
    return ReplayBuffer(observations, ACTIONS, capacity, name=name, **options)


def register(buffer: ReplayBuffer) -> None:
    """Register the configs of `RANGES`."""
    for name, sample_range in RANGES.items():
        samplers: dict[str, Sampler] = {field: SequenceSampler(begin=BEGIN, end=END) for field in FIELDS}
        samplers["anchor"] = LatestSampler("token")
        if name == "by priority":
            samplers["priority"] = PrioritySampler()
        buffer.register_sample_config(name, samplers, sample_range)


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


def observations_of(writer: int, numbers: Any, stack: int) -> dict[str, Any]:
    """Return the observations of a writer's steps: each has one frame more than the one before, and lacks the oldest."""
    salt = ((numbers[:, None] - np.arange(stack)[::-1]) * 31 + writer * 7)[:, None]
    frames = (salt + np.arange(144)[:, None]).astype(np.uint8)
    images = frames.reshape(-1, *IMAGE) if stack == 1 else frames.reshape(-1, *IMAGE, stack)
    return {"image": images, "state": (salt[:, :, -1] % 1009 + np.arange(16)).astype(np.float32)}


def rows_of(writer: int, first: int, count: int, stack: int = 1) -> dict[str, Any]:
    """Return the rows that `writer` inserts as its `first`-th and the following."""
    numbers = np.arange(first, first + count)
    positions = numbers % EPISODE_ROWS
    own, following = observations_of(writer, numbers, stack), observations_of(writer, numbers + 1, stack)
    jumps = numbers % JUMPS == 0
    for values in following.values():
        values[jumps] += 1
    states = own["state"]
    batch = {
        "observations": own,
        "next_observations": following,
        "actions": states[:, :4] * np.float32(2),
        "rewards": states[:, 0],
        "masks": np.where(numbers % (2 * EPISODE_ROWS) == EPISODE_ROWS - 1, 0, 1).astype(np.float32),
        "dones": positions == EPISODE_ROWS - 1,
        "token": np.stack([np.full(count, writer), numbers, positions], axis=1),
        "half": states[:, 4:6].astype(np.float16),
        "brain": states[:, 6:9].astype(ml_dtypes.bfloat16),
        "odd": states[:, 9:14] % 2 == 1,
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


def verify_windows(data: dict[str, Any], mask: dict[str, Any], sample_range: tuple[int, int]) -> tuple[int, int, int]:
    """Return of a batch of windows how many are torn, how many are otherwise wrong, and how many cells are masked.

    Wrong is a window with rows of another writer or episode or out of order, with a hole, without a step that must be there, or
    with anything but zeros in a masked cell.
    """
    there, anchor = mask["token"], data["anchor"]
    flat = {
        field: {key: cells(part) for key, part in data[field].items()} if isinstance(data[field], dict) else cells(data[field])
        for field in FIELDS
    }
    torn = ((checksums(flat) != flat["check"]).reshape(there.shape) & there).any(axis=1)
    offsets = np.arange(BEGIN, END)
    steps = anchor[:, None] + offsets[:, None] * np.array([0, 1, 1])
    wrong = ((data["token"] != steps).any(axis=2) | (steps[..., 2] < 0) | (steps[..., 2] >= EPISODE_ROWS)) & there
    for path in [*LEAVES, ("check",)]:
        part = leaf(flat, path)
        filled = part.reshape(len(part), -1).view(np.uint8).any(axis=1)
        wrong |= filled.reshape(there.shape) & ~there
    for field in FIELDS:
        wrong |= mask[field] != there
    required = (offsets >= min(sample_range[0], 0)) & (offsets < max(sample_range[1], 1))
    wrong |= required & ~there
    edges = np.abs(np.diff(there.astype(np.int8), axis=1, prepend=0, append=0)).sum(axis=1)
    bad = (wrong.any(axis=1) | (edges != 2)) & ~torn
    for window in np.flatnonzero(bad):
        tokens = np.where(there[window][:, None], data["token"][window], -1)
        print(f"wrong: anchor {anchor[window]}, window {tokens.tolist()}, required {sample_range}", file=sys.stderr)
    return int(torn.sum()), int(bad.sum()), int((~there).sum())


def cells(array: Any) -> Any:
    """Return the steps of all windows in one row."""
    return np.ascontiguousarray(array).reshape(-1, *array.shape[2:])


def numbers_at(page: mmap.mmap, place: int) -> Any:
    """Return the numbers of a place, as a writable view."""
    return np.frombuffer(page, np.int64, PLACE_NUMBERS, PLACE_NUMBERS * 8 * (place + 1))


def write(buffer: ReplayBuffer, page: mmap.mmap, place: int) -> None:
    """Insert one by one and in batches, in two streams that take turns, until killed or stopped."""
    stop, notes = np.frombuffer(page, np.int64, 1), numbers_at(page, place)
    streams, stack = [buffer.writer(), buffer.writer()], stack_of(buffer)
    numbers = [0, 0]
    notes[WRITER] = streams[0].number
    sizes = [1, 5, 1, 1, 37, 2]
    turn = 0
    while not stop[0]:
        size, which = sizes[turn % len(sizes)], turn % 2 if turn % 5 else 0
        insert(streams[which], rows_of(streams[which].number, numbers[which], size, stack), size)
        numbers[which] += size
        turn += 1
        notes[ROWS] = numbers[0]
    buffer.close()


def insert(stream: Writer, rows: dict[str, Any], count: int) -> None:
    if count > 1:
        stream.batch_insert(rows)
    else:
        stream.insert({key: {k: v[0] for k, v in x.items()} if isinstance(x, dict) else x[0] for key, x in rows.items()})


def stack_of(buffer: ReplayBuffer) -> int:
    """Return how many frames an image has."""
    (image,) = (column for column in buffer._storage.schema.columns if column.field.name == "observations.image")
    return 1 if image.field.shape == IMAGE else image.field.shape[-1]


def read_rows(buffer: ReplayBuffer, page: mmap.mmap, place: int) -> None:
    """Sample rows and verify them until stopped."""
    stop, notes = np.frombuffer(page, np.int64, 1), numbers_at(page, place)
    while not stop[0]:
        if buffer.stats()["inserted"]:
            torn, wrong = verify(buffer.sample(64, about=True))
            notes[TORN] += torn
            notes[WRONG] += wrong
            notes[ROWS] += 64
    buffer.close()


def read_windows(buffer: ReplayBuffer, page: mmap.mmap, place: int) -> None:
    """Sample windows of each kind and verify them until stopped."""
    stop, notes = np.frombuffer(page, np.int64, 1), numbers_at(page, place)
    rng = np.random.default_rng(place)
    register(buffer)
    while not stop[0]:
        for name, sample_range in RANGES.items():
            try:
                data, mask = buffer.sample(name, 32)
            except BufferEmpty:  # just now no episode is held so far
                continue
            torn, wrong, masked = verify_windows(data, mask, sample_range)
            notes[TORN_WINDOWS] += torn
            notes[WRONG] += wrong
            notes[MASKED] += masked
            notes[WINDOWS] += 32
            if "priority" in data:
                buffer.update_priorities(name, data["priority"]["indices"], rng.random(32))
    buffer.close()


def trust() -> None:
    """From now on never ask whether something was overwritten while it was copied."""
    for part in (UniformRows, Windows):
        assert callable(part._redraw)
        part._redraw = lambda *_: 0  # type: ignore[method-assign, assignment]


def trust_rows(buffer: ReplayBuffer, page: mmap.mmap, place: int) -> None:
    trust()
    read_rows(buffer, page, place)


def trust_windows(buffer: ReplayBuffer, page: mmap.mmap, place: int) -> None:
    trust()
    read_windows(buffer, page, place)


ROLES = {part.__name__: part for part in (write, read_rows, read_windows, trust_rows, trust_windows)}


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
                ROLES[role](ReplayBuffer.attach(name, seed=int(place)), page, int(place))
                os._exit(0)
            orders.send(str(pid).encode())


if __name__ == "__main__":
    main()
