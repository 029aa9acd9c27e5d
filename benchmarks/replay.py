"""Sampling: batches gathered from large columns, and draws by priority; numpy's `take` and two peers beside ours."""

from __future__ import annotations

import importlib
import mmap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np

from benchmarks.harness import Case, Placement, Round, Sample, repeat
from edgeml_ipc.data.gather import COMPILED, Gather
from edgeml_ipc.data.priority import Priorities
from edgeml_ipc.errors import TransportUnavailable

STATE_ROWS, IMAGE_ROWS, BATCH = 1_000_000, 50_000, 256
BATCHES_AHEAD = 512  # different ones, so that rows are read from memory and not from a cache
STATE = {"obs": ((64,), "f4"), "act": ((8,), "f4"), "reward": ((), "f4"), "done": ((), "?"), "next_obs": ((64,), "f4")}
IMAGE = {"image": ((84, 84, 4), "u1")}

Columns = dict[str, np.ndarray]
Operation = Callable[[np.ndarray], object]


def column(rows: int, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Return an array on shared memory, as a store's columns are, with every page written."""
    memory = mmap.mmap(-1, rows * int(np.prod(shape)) * np.dtype(dtype).itemsize)
    array = np.frombuffer(memory, dtype).reshape(rows, *shape)
    array[:] = 1
    return array


@cache
def state_columns() -> Columns:
    """Return 1 M transitions, made once for all cases."""
    return {name: column(STATE_ROWS, *spec) for name, spec in STATE.items()}


@cache
def image_columns() -> Columns:
    """Return 50 k stacks of frames, made once for all cases."""
    return {name: column(IMAGE_ROWS, *spec) for name, spec in IMAGE.items()}


def row_sets(rows: int, window: int) -> list[np.ndarray]:
    """Draw batches of rows, `(256,)`, or windows of consecutive ones, `(256, window)`."""
    rng = np.random.default_rng(0)
    last = [rng.integers(window - 1, rows, BATCH) for _ in range(BATCHES_AHEAD // window + 1)]
    return last if window == 1 else [rows[:, None] + np.arange(1 - window, 1)[None, :] for rows in last]


def numpy_take(columns: Columns, shape: tuple[int, ...]) -> Operation:
    """`take` into arrays that stay the same."""
    outs = [np.zeros((*shape, *c.shape[1:]), c.dtype) for c in columns.values()]

    def operation(rows: np.ndarray) -> None:
        for source, out in zip(columns.values(), outs, strict=True):
            source.take(rows, axis=0, mode="clip", out=out)

    return operation


def our_gather(columns: Columns, _shape: tuple[int, ...]) -> Operation:
    """The compiled pass into a pooled block."""
    if not COMPILED:
        raise TransportUnavailable("edgeml_ipc.data._kernels was not built (no C compiler?)")
    return Gather(list(columns.values()))


def our_gather_of_shared_observations(columns: Columns, shape: tuple[int, ...]) -> Operation:
    """The same batch where each observation is stored once: the next one is the next row of the same column."""
    kept = [columns[name] for name in ("obs", "act", "reward", "done", "obs")]
    gather = Gather(kept, [0, 0, 0, 0, 1])
    return lambda rows: gather([np.maximum(rows - 1, 0), rows])


@contextmanager
def gathered(
    _placement: Placement,
    columns_of: Callable[[], Columns],
    window: int,
    make: Callable[[Columns, tuple[int, ...]], Operation],
) -> Iterator[Round]:
    """Gather one batch after another."""
    columns = columns_of()
    sets = row_sets(len(next(iter(columns.values()))), window)
    operation = make(columns, sets[0].shape)
    number = 0

    def one() -> None:
        nonlocal number
        number += 1
        operation(sets[number % len(sets)])

    yield lambda seconds: Sample(repeat(one, seconds))


@contextmanager
def uniform(_placement: Placement) -> Iterator[Round]:
    """Draw rows, gather them: what a learner's call does, without the store around it."""
    operation = our_gather(state_columns(), (BATCH,))
    rng = np.random.default_rng(0)
    yield lambda seconds: Sample(repeat(lambda: operation(rng.integers(0, STATE_ROWS, BATCH)), seconds))


@contextmanager
def prioritized(_placement: Placement) -> Iterator[Round]:
    """Draw by priority, gather, and set the priorities of what was drawn."""
    operation = our_gather(state_columns(), (BATCH,))
    priorities = Priorities(STATE_ROWS)
    priorities.added(0, STATE_ROWS)
    rng = np.random.default_rng(0)
    priorities.update(np.arange(STATE_ROWS), rng.random(STATE_ROWS))
    errors = rng.random((64, BATCH))
    number = 0

    def one() -> None:
        nonlocal number
        number += 1
        drawn = priorities.sample(rng, BATCH)
        operation(drawn.rows)
        priorities.update(drawn.rows, errors[number % len(errors)])

    yield lambda seconds: Sample(repeat(one, seconds))


def imported(name: str) -> Any:
    """Import a peer, or report it as unavailable."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise TransportUnavailable(f"{name.split('.')[0]} is not installed ({error})") from error


@contextmanager
def cpprb(_placement: Placement, by_priority: bool) -> Iterator[Round]:
    """cpprb's buffers, filled in large pieces."""
    library = imported("cpprb")
    spec = {name: {"shape": shape or 1, "dtype": np.dtype(dtype)} for name, (shape, dtype) in STATE.items()}
    buffer = (library.PrioritizedReplayBuffer if by_priority else library.ReplayBuffer)(STATE_ROWS, spec)
    piece = {name: np.ones((10_000, *(shape or (1,))), dtype) for name, (shape, dtype) in STATE.items()}
    for _ in range(STATE_ROWS // 10_000):
        buffer.add(**piece)
    errors = np.random.default_rng(0).random(BATCH)

    def one() -> None:
        batch = buffer.sample(BATCH, 0.4) if by_priority else buffer.sample(BATCH)
        if by_priority:
            buffer.update_priorities(batch["indexes"], errors)

    yield lambda seconds: Sample(repeat(one, seconds))


@contextmanager
def stable_baselines3(_placement: Placement) -> Iterator[Round]:
    """stable-baselines3's buffer; its arrays are filled in place. Batches are torch tensors."""
    buffers, spaces = imported("stable_baselines3.common.buffers"), imported("gymnasium").spaces
    observations, actions = spaces.Box(-1, 1, STATE["obs"][0]), spaces.Box(-1, 1, STATE["act"][0])
    buffer = buffers.ReplayBuffer(STATE_ROWS, observations, actions, device="cpu")
    for array in (buffer.observations, buffer.next_observations, buffer.actions, buffer.rewards):
        array[:] = 1
    buffer.full = True
    yield lambda seconds: Sample(repeat(lambda: buffer.sample(BATCH), seconds))


def cases() -> list[Case]:
    """List them: for each kind of batch numpy's `take`, which is not a bound but the plain way, and ours."""
    found = []
    kinds = [
        ("state", state_columns, 1),
        ("state", state_columns, 10),
        ("state", state_columns, 50),
        ("image", image_columns, 1),
    ]
    for kind, columns_of, window in kinds:
        size = f"{kind}.{BATCH}" if window == 1 else f"{kind}.{BATCH}x{window}"
        what = (
            f"{BATCH} {'rows' if window == 1 else f'windows of {window}'} of {'transitions' if kind == 'state' else 'images'}"
        )
        take = f"replay.take.{size}"
        found += [
            Case(take, "peer", f"{what}, numpy take(out=)", lambda p, c=columns_of, w=window: gathered(p, c, w, numpy_take)),
            Case(
                f"replay.gather.{size}",
                "ours",
                f"{what}, compiled, pooled",
                lambda p, c=columns_of, w=window: gathered(p, c, w, our_gather),
                take,
            ),
        ]
    take = f"replay.take.state.{BATCH}"
    return [
        *found,
        Case(
            f"replay.gather.once.{BATCH}",
            "ours",
            f"{BATCH} rows of transitions, observations stored once",
            lambda p: gathered(p, state_columns, 1, our_gather_of_shared_observations),
            take,
        ),
        Case("replay.uniform", "ours", f"draw and gather {BATCH} of 1 M transitions", uniform, take),
        Case("replay.uniform.cpprb", "peer", f"sample {BATCH} of 1 M", lambda p: cpprb(p, by_priority=False), take),
        Case("replay.uniform.sb3", "peer", f"sample {BATCH} of 1 M, as torch tensors", stable_baselines3, take),
        Case("replay.priority", "ours", f"draw by priority, gather and update {BATCH} of 1 M", prioritized, take),
        Case("replay.priority.cpprb", "peer", f"sample and update {BATCH} of 1 M", lambda p: cpprb(p, by_priority=True), take),
    ]


CASES = cases()
