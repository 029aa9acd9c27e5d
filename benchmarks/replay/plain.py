"""What numpy alone takes: copies of the bytes that an insert stores, and `take` of the rows that a batch has.

Beside them our compiled layers without the store around them, over the same columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from benchmarks.harness import Case, Placement, Round, timed
from benchmarks.replay.data import (
    BATCH,
    CAMERAS,
    IMAGE,
    INSERTED_AT_ONCE,
    STATE,
    Columns,
    Kind,
    Shared,
    column,
    columns,
    row_sets,
    spec_bytes,
    turns,
)
from edgeml_ipc.data.gather import COMPILED, Gather
from edgeml_ipc.data.priority import Priorities
from edgeml_ipc.errors import TransportUnavailable

Operation = Callable[[np.ndarray], object]
COLUMNS = {kind.name: Shared(lambda kind=kind: columns(kind)) for kind in (STATE, IMAGE, CAMERAS)}


@contextmanager
def copied(_placement: Placement, rows: int) -> Iterator[Round]:
    """Copy the bytes of `rows` transitions in one piece into a ring of 1 M, as many different ones as are inserted."""
    nbytes = spec_bytes(STATE.spec)
    ring = column(STATE.rows // rows, (rows * nbytes,), "u1")
    sources = np.ones((STATE.episodes * 200 // rows, rows * nbytes), np.uint8)
    number = 0

    def one() -> None:
        nonlocal number
        number += 1
        ring[number % len(ring)] = sources[number % len(sources)]

    yield lambda seconds: timed(one, seconds, things=rows)


def numpy_take(source: Columns, shape: tuple[int, ...]) -> Operation:
    """`take` into arrays that stay the same."""
    outs = [np.zeros((*shape, *c.shape[1:]), c.dtype) for c in source.values()]

    def operation(rows: np.ndarray) -> None:
        for column_, out in zip(source.values(), outs, strict=True):
            column_.take(rows, axis=0, mode="clip", out=out)

    return operation


def our_gather(source: Columns, _shape: tuple[int, ...]) -> Operation:
    """The compiled pass into a pooled block."""
    if not COMPILED:
        raise TransportUnavailable("edgeml_ipc.data._rows was not built (no C compiler?)")
    return Gather(list(source.values()))


def our_gather_of_shared_observations(source: Columns, _shape: tuple[int, ...]) -> Operation:
    """The same batch where each observation is stored once: the next one is the next row of the same column."""
    gather = Gather([source[name] for name in ("obs", "act", "reward", "done", "obs")], [0, 0, 0, 0, 1])
    return lambda rows: gather([np.maximum(rows - 1, 0), rows])


@contextmanager
def gathered(
    _placement: Placement, kind: Kind, window: int, make: Callable[[Columns, tuple[int, ...]], Operation]
) -> Iterator[Round]:
    """Gather one batch after another."""
    with COLUMNS[kind.name].used() as source:
        sets = row_sets(kind.rows, window)
        operation, following = make(source, sets[0].shape), turns(sets)
        yield lambda seconds: timed(lambda: operation(following()), seconds)


@contextmanager
def uniform(_placement: Placement) -> Iterator[Round]:
    """Draw rows, gather them: what a learner's call does, without the store around it."""
    with COLUMNS[STATE.name].used() as source:
        operation, rng = our_gather(source, (BATCH,)), np.random.default_rng(0)
        yield lambda seconds: timed(lambda: operation(rng.integers(0, STATE.rows, BATCH)), seconds)


@contextmanager
def prioritized(_placement: Placement) -> Iterator[Round]:
    """Draw by priority, gather, and set the priorities of what was drawn."""
    with COLUMNS[STATE.name].used() as source:
        operation, rng = our_gather(source, (BATCH,)), np.random.default_rng(0)
        priorities = Priorities(STATE.rows)
        priorities.added(0, STATE.rows)
        priorities.update(np.arange(STATE.rows), rng.random(STATE.rows))
        following = turns(list(rng.random((64, BATCH))))

        def one() -> None:
            drawn = priorities.sample(rng, BATCH)
            operation(drawn.rows)
            priorities.update(drawn.rows, following())

        yield lambda seconds: timed(one, seconds)


def size_of(kind: Kind, window: int) -> str:
    """Name a batch: of a kind, by its rows or windows."""
    return f"{kind.name}.{BATCH}" if window == 1 else f"{kind.name}.{BATCH}x{window}"


def take_of(kind: Kind, window: int = 1, group: str | None = None) -> Case:
    """Return the plain case of a batch; a group that is not its own has one of its own name."""
    own = f"replay.{size_of(kind, window)}"
    name = f"replay.take.{size_of(kind, window)}" + ("" if group is None else f".{group.removeprefix('replay.')}")
    what = f"{BATCH} {'rows' if window == 1 else f'windows of {window}'} of {kind.name}, numpy take(out=)"
    return Case(name, "plain", what, lambda p: gathered(p, kind, window, numpy_take), group=group or own)


def _layer(kind: Kind, window: int) -> Case:
    take = take_of(kind, window)
    what = "the same rows, compiled and pooled, without the store"
    name = f"replay.layer.gather.{size_of(kind, window)}"
    return Case(name, "ours", what, lambda p: gathered(p, kind, window, our_gather), take.name, take.group)


PRIORITY_GROUP = "replay.priority"
COPY_1, COPY_MANY = "replay.copy.1", f"replay.copy.{INSERTED_AT_ONCE}"
TAKE, TAKE_FOR_PRIORITY = take_of(STATE), take_of(STATE, group=PRIORITY_GROUP)
CASES = [
    Case(COPY_1, "floor", "copy the bytes of a transition into a ring", lambda p: copied(p, 1), group="replay.insert"),
    Case(
        COPY_MANY,
        "floor",
        f"copy the bytes of {INSERTED_AT_ONCE} transitions in one piece",
        lambda p: copied(p, INSERTED_AT_ONCE),
        group="replay.insert",
    ),
    *(take_of(kind, window) for kind, window in ((STATE, 1), (STATE, 10), (STATE, 50), (IMAGE, 1), (CAMERAS, 1))),
    TAKE_FOR_PRIORITY,
    *(_layer(kind, window) for kind, window in ((STATE, 1), (STATE, 10), (STATE, 50), (IMAGE, 1), (CAMERAS, 1))),
    Case(
        f"replay.layer.once.{BATCH}",
        "ours",
        "the same batch where observations are stored once, without the store",
        lambda p: gathered(p, STATE, 1, our_gather_of_shared_observations),
        TAKE.name,
        TAKE.group,
    ),
    Case(f"replay.layer.uniform.{BATCH}", "ours", "draw and gather, without the store", uniform, TAKE.name, TAKE.group),
    Case(
        f"replay.layer.priority.{BATCH}",
        "ours",
        "draw by priority, gather, update, without the store",
        prioritized,
        TAKE_FOR_PRIORITY.name,
        PRIORITY_GROUP,
    ),
]
