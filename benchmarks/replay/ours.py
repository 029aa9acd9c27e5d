"""Our replay buffer through its public calls: inserts, batches, windows, draws by priority, and what it weighs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from benchmarks.harness import Case, Mark, Placement, Round, Sample, timed
from benchmarks.replay.data import (
    BATCH,
    CAMERAS,
    IMAGE,
    INSERTED_AT_ONCE,
    SCALARS,
    STATE,
    Kind,
    Shared,
    our_stacked,
    our_transitions,
    piece,
    pieces,
    sliced,
    spaces,
    spec_bytes,
    turns,
)
from benchmarks.replay.plain import COPY_1, COPY_MANY, PRIORITY_GROUP, TAKE_FOR_PRIORITY, size_of, take_of
from edgeml_ipc.data import LatestSampler, PrioritySampler, ReplayBuffer, SequenceSampler

FRAME_BYTES = 84 * 84  # the last of the four that an observation has
MANY = 20_000  # rows of a batch that is not measured
FIELDS = ("observations", "actions", "rewards", "masks", "dones", "next_observations")


@contextmanager
def full(kind: Kind, name: str | None = None) -> Iterator[ReplayBuffer]:
    """Make a buffer of a kind that is full of whole episodes; those that follow overwrite them."""
    with ReplayBuffer(*spaces(kind), kind.rows, name=name, seed=0) as buffer:
        try:
            for stacked in pieces(kind):
                buffer.batch_insert(our_stacked(stacked))
            yield buffer
        finally:
            buffer.unlink()


SAMPLED = {kind.name: Shared(lambda kind=kind: full(kind)) for kind in (STATE, IMAGE, CAMERAS)}


@contextmanager
def inserted_one_by_one(_placement: Placement) -> Iterator[Round]:
    """`insert` of transitions that were made before."""
    with full(STATE) as buffer:
        following, insert = turns(our_transitions(piece(STATE))), buffer.insert
        yield lambda seconds: timed(lambda: insert(following()), seconds)


@contextmanager
def inserted_in_batches(_placement: Placement, as_list: bool) -> Iterator[Round]:
    """`batch_insert` of 50 transitions that were made before: stacked, or as a list of dicts."""
    stacked = sliced(piece(STATE), INSERTED_AT_ONCE)
    batches: list[Any] = [our_transitions(arrays) if as_list else our_stacked(arrays) for arrays in stacked]
    with full(STATE) as buffer:
        following, insert = turns(batches), buffer.batch_insert
        yield lambda seconds: timed(lambda: insert(following()), seconds, things=INSERTED_AT_ONCE)


@contextmanager
def sampled(_placement: Placement, kind: Kind) -> Iterator[Round]:
    """`sample(256)`."""
    with SAMPLED[kind.name].used() as buffer:
        yield lambda seconds: timed(lambda: buffer.sample(BATCH), seconds)


@contextmanager
def windows_sampled(_placement: Placement, window: int) -> Iterator[Round]:
    """`sample(name, 256)` where each field has all steps of a window, which lies in one episode."""
    with SAMPLED[STATE.name].used() as buffer:
        samplers = {field: SequenceSampler(begin=1 - window, end=1) for field in FIELDS}
        buffer.register_sample_config(f"windows of {window}", samplers, sample_range=(1 - window, 1))
        yield lambda seconds: timed(lambda: buffer.sample(f"windows of {window}", BATCH), seconds)


@contextmanager
def sampled_by_priority(_placement: Placement) -> Iterator[Round]:
    """`sample(name, 256)` by priority, and `update_priorities` of what was drawn; the priorities differ from the start."""
    with SAMPLED[STATE.name].used() as buffer:
        samplers = {**{field: LatestSampler() for field in FIELDS}, "priority": PrioritySampler()}
        buffer.register_sample_config("by priority", samplers)
        rng = np.random.default_rng(0)

        def learn(errors: np.ndarray) -> None:
            data, _ = buffer.sample("by priority", len(errors))
            buffer.update_priorities("by priority", data["priority"]["indices"], errors)

        for _ in range(2 * STATE.rows // MANY):
            learn(rng.random(MANY))
        following = turns(list(rng.random((64, BATCH))))
        yield lambda seconds: timed(lambda: learn(following()), seconds)


@contextmanager
def weighed(_placement: Placement, make: Callable[[], ReplayBuffer], own_bytes: dict[str, int]) -> Iterator[Round]:
    """Divide the bytes of the segment by what is named, in bytes per row."""
    with make() as buffer:
        held = os.fstat(buffer.fileno()).st_size / buffer.capacity
    figures = {f"× {name}": held / size for name, size in own_bytes.items()}
    yield lambda seconds: Sample(np.empty(0, np.int64), figures=figures)


def bytes_once(kind: Kind) -> int:
    """Return the bytes of a transition whose next observation is the observation of the step after it."""
    return spec_bytes(kind.observation) + spec_bytes(SCALARS)


def empty(kind: Kind) -> ReplayBuffer:
    """Make a buffer of a kind."""
    return ReplayBuffer(*spaces(kind), kind.rows)


def _sampling(kind: Kind, faster: float, aim: float | None = None) -> Case:
    take = take_of(kind)
    mark = Mark("p50_us", at_least=faster, of_floor=True, aim=aim)
    name, what = f"replay.sample.{size_of(kind, 1)}", f"sample({BATCH}) of {kind.rows:,} {kind.name}"
    return Case(name, "ours", what, lambda p: sampled(p, kind), take.name, take.group, (mark,))


def _windows(window: int) -> Case:
    take = take_of(STATE, window)
    mark = Mark("p50_us", at_least=1.0, of_floor=True)
    name, what = (
        f"replay.sample.{size_of(STATE, window)}",
        f"{BATCH} windows of {window} steps, each in one episode, all fields",
    )
    return Case(name, "ours", what, lambda p: windows_sampled(p, window), take.name, take.group, (mark,))


CASES = [
    Case(
        "replay.insert.single",
        "ours",
        "insert of one transition",
        inserted_one_by_one,
        COPY_1,
        "replay.insert",
        (Mark("per_second", at_least=500_000),),
    ),
    Case(
        f"replay.insert.{INSERTED_AT_ONCE}.stacked",
        "ours",
        f"batch_insert of {INSERTED_AT_ONCE}, stacked",
        lambda p: inserted_in_batches(p, as_list=False),
        COPY_MANY,
        "replay.insert",
        (Mark("per_second", at_least=5_000_000),),
    ),
    Case(
        f"replay.insert.{INSERTED_AT_ONCE}.list",
        "ours",
        f"batch_insert of {INSERTED_AT_ONCE} dicts",
        lambda p: inserted_in_batches(p, as_list=True),
        COPY_MANY,
        "replay.insert",
    ),
    _sampling(STATE, 1.0, aim=1.5),
    _windows(10),
    _windows(50),
    _sampling(IMAGE, 0.9),
    _sampling(CAMERAS, 0.9),
    Case(
        f"replay.sample.priority.{BATCH}",
        "ours",
        f"sample({BATCH}) by priority and update_priorities, of {STATE.rows:,} state, all fields",
        sampled_by_priority,
        TAKE_FOR_PRIORITY.name,
        PRIORITY_GROUP,
        (Mark("per_second", at_least=6_000, aim=10_000),),
    ),
    Case(
        "replay.memory.state",
        "ours",
        "bytes of the segment over those of its data",
        lambda p: weighed(
            p, lambda: empty(STATE), {"each observation once": bytes_once(STATE), "as given": spec_bytes(STATE.spec)}
        ),
        group="replay.memory",
        marks=(Mark("× each observation once", at_most=1.1),),
    ),
    Case(
        "replay.memory.image.stacked",
        "ours",
        "bytes of the segment over those of one frame per step, n_stack=4",
        lambda p: weighed(p, lambda: ReplayBuffer(*spaces(IMAGE), IMAGE.rows, n_stack=4), {"one frame": FRAME_BYTES}),
        group="replay.memory",
        marks=(Mark("× one frame", at_most=1.15),),
    ),
]
