"""Actor processes that insert while a learner samples: ours through one named buffer, cpprb's shared one beside it."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import count
from typing import Any

from benchmarks.harness import Case, Mark, Placement, Round, Sample, timed
from benchmarks.processes import receive, spawned
from benchmarks.replay.data import BATCH, INSERTED_AT_ONCE, STATE, our_stacked, our_transitions, piece, pieces, sliced, turns
from benchmarks.replay.numpy_peers import cpprb_spec, for_cpprb, imported
from benchmarks.replay.ours import full
from edgeml_ipc.data import ReplayBuffer

ANSWER_SECONDS = 60.0
INSERTS_BETWEEN_LOOKS = 20  # at the pipe, for the word that ends the round
GROUP = "replay.actors"
IDLE = "replay.actors.idle"
ROWS_PER_SECOND = "rows/s inserted"
_number = count()


def insert_until_stopped(pipe: Any, insert: Callable[[Any], object], batches: list[Any], rows_each: int) -> None:
    """Insert from each "go" to the next "rest", then say how many rows, and how long that took; return at "stop"."""
    following = turns(batches)
    while pipe.recv() == "go":
        inserts, began = 0, time.perf_counter()
        pipe.send("going")
        while not pipe.poll():
            for _ in range(INSERTS_BETWEEN_LOOKS):
                insert(following())
            inserts += INSERTS_BETWEEN_LOOKS
        pipe.recv()
        pipe.send((inserts * rows_each, time.perf_counter() - began))


def our_actor(pipe: Any, name: str, at_once: int) -> None:
    """Attach to the buffer and insert: one by one, or stacked."""
    whole = piece(STATE)
    batches: list[Any] = our_transitions(whole) if at_once == 1 else [our_stacked(arrays) for arrays in sliced(whole, at_once)]
    with ReplayBuffer.attach(name) as buffer:
        pipe.send("ready")
        insert_until_stopped(pipe, buffer.insert if at_once == 1 else buffer.batch_insert, batches, at_once)


def cpprb_actor(pipe: Any, buffer: Any, at_once: int) -> None:
    """Insert into cpprb's shared buffer, which came with the process."""
    batches = [for_cpprb(arrays) for arrays in sliced(piece(STATE), at_once)]
    pipe.send("ready")
    insert_until_stopped(pipe, lambda batch: buffer.add(**batch), batches, at_once)


@contextmanager
def learning(
    placement: Placement, actors: int, sample: Callable[[], object], target: Callable[..., None], *args: Any
) -> Iterator[Round]:
    """Sample in this process while the actors insert; the repetition is the learner's, the actors' rows are a figure."""
    with ExitStack() as stack:
        others = [stack.enter_context(spawned(placement, index, target, *args)) for index in range(actors)]
        pipes = [actor.pipe for actor in others]

        def run(seconds: float) -> Sample:
            for pipe in pipes:
                pipe.send("go")
            for pipe in pipes:
                receive(pipe, ANSWER_SECONDS, "an actor to begin")
            try:
                learned = timed(sample, seconds, others=[actor.pid for actor in others])
            finally:
                for pipe in pipes:
                    pipe.send("rest")
            done = [receive(pipe, ANSWER_SECONDS, "an actor to rest") for pipe in pipes]
            rate = sum(rows / taken for rows, taken in done)
            return replace(learned, figures={ROWS_PER_SECOND: rate} if actors else {})

        yield run


@contextmanager
def ours(placement: Placement, actors: int, at_once: int) -> Iterator[Round]:
    """A named buffer of 1 M transitions, full."""
    name = f"edgeml-bench-{os.getpid()}-{next(_number)}"
    with (
        full(STATE, name) as buffer,
        learning(placement, actors, lambda: buffer.sample(BATCH), our_actor, name, at_once) as run,
    ):
        yield run


@contextmanager
def cpprb(placement: Placement, actors: int, at_once: int) -> Iterator[Round]:
    """`MPReplayBuffer` of 1 M transitions, full."""
    library = imported("cpprb")
    buffer = library.MPReplayBuffer(STATE.rows, cpprb_spec(STATE), ctx=multiprocessing.get_context("spawn"))
    for stacked in pieces(STATE):
        buffer.add(**for_cpprb(stacked))
    with learning(placement, actors, lambda: buffer.sample(BATCH), cpprb_actor, buffer, at_once) as run:
        yield run


def _case(actors: int, at_once: int, marks: tuple[Mark, ...]) -> Case:
    how = "single" if at_once == 1 else str(at_once)
    each = "one by one" if at_once == 1 else f"{at_once} stacked at a time"
    who = f"{actors} actor{'s' if actors > 1 else ''}"
    what = f"learner's sample({BATCH}) while {who} insert {each}"
    return Case(f"replay.actors.{actors}.{how}", "ours", what, lambda p: ours(p, actors, at_once), IDLE, GROUP, marks)


_KEEPS_UP = Mark("per_second", at_least=0.7, of_floor=True)
CASES = [
    Case(IDLE, "ours", f"learner's sample({BATCH}) of 1 M, nobody inserts", lambda p: ours(p, 0, 1), group=GROUP),
    _case(1, 1, (_KEEPS_UP,)),
    _case(1, INSERTED_AT_ONCE, (_KEEPS_UP,)),
    _case(4, 1, (Mark(ROWS_PER_SECOND, at_least=500_000),)),
    _case(4, INSERTED_AT_ONCE, (Mark(ROWS_PER_SECOND, at_least=2_000_000),)),
    *(
        Case(
            f"replay.actors.{actors}.{how}.cpprb",
            "peer",
            f"MPReplayBuffer: learner's sample({BATCH}) while {actors} insert {'one by one' if at_once == 1 else at_once}",
            lambda p, a=actors, n=at_once: cpprb(p, a, n),
            IDLE,
            GROUP,
        )
        for actors in (1, 4)
        for at_once, how in ((1, "single"), (INSERTED_AT_ONCE, str(INSERTED_AT_ONCE)))
    ),
]
