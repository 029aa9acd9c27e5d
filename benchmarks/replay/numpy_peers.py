"""Buffers of others that hold numpy arrays: cpprb, stable-baselines3, tianshou; each full before it is measured."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

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
    piece,
    pieces,
    sliced,
    turns,
)
from benchmarks.replay.plain import COPY_1, COPY_MANY, PRIORITY_GROUP, TAKE_FOR_PRIORITY, size_of, take_of
from edgeml_ipc.errors import TransportUnavailable

Operation = Callable[[], object]
ERRORS = np.random.default_rng(0).random(BATCH).astype("f4")


def imported(name: str) -> Any:
    """Import a peer, or report it as unavailable."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise TransportUnavailable(f"{name.split('.')[0]} is not installed ({error})") from error


@contextmanager
def opened(_placement: Placement, make: Callable[[], Operation], things: int) -> Iterator[Round]:
    """Measure the operation that `make` returns."""
    operation = make()
    yield lambda seconds: timed(operation, seconds, things=things)


# ---- cpprb: next observations are stored as given, which is its faster way


def cpprb_spec(kind: Kind) -> dict[str, Any]:
    """Return the `env_dict` of a kind."""
    return {name: {"shape": shape or 1, "dtype": np.dtype(dtype)} for name, (shape, dtype) in kind.spec.items()}


def for_cpprb(arrays: Columns) -> Columns:
    """Return stacked arrays as `add` takes them."""
    return {name: array for name, array in arrays.items() if name != "mask"}


def cpprb_full(kind: Kind, by_priority: bool = False) -> Any:
    """Return a buffer that is full."""
    library = imported("cpprb")
    buffer = (library.PrioritizedReplayBuffer if by_priority else library.ReplayBuffer)(kind.rows, cpprb_spec(kind))
    for stacked in pieces(kind):
        buffer.add(**for_cpprb(stacked))
    return buffer


def cpprb_add(at_once: int) -> Operation:
    """`add`."""
    buffer, following = cpprb_full(STATE), turns([for_cpprb(arrays) for arrays in sliced(piece(STATE), at_once)])
    return lambda: buffer.add(**following())


def cpprb_sample(kind: Kind) -> Operation:
    """`sample`."""
    buffer = cpprb_full(kind)
    return lambda: buffer.sample(BATCH)


def cpprb_priority() -> Operation:
    """`sample`, `update_priorities`."""
    buffer = cpprb_full(STATE, by_priority=True)
    return lambda: buffer.update_priorities(buffer.sample(BATCH, 0.4)["indexes"], ERRORS)


# ---- stable-baselines3: batches are torch tensors; time limits are not looked for, which is its faster way


def sb3_full(kind: Kind, envs: int = 1) -> Any:
    """Return a buffer whose arrays were filled in place."""
    buffers, spaces = imported("stable_baselines3.common.buffers"), imported("gymnasium").spaces

    def box(shape: tuple[int, ...], dtype: str) -> Any:
        return spaces.Box(0, 255, shape, np.uint8) if dtype == "u1" else spaces.Box(-1, 1, shape, np.float32)

    parts = {part.lstrip("_"): box(*spec) for part, spec in kind.observation.items()}
    make = buffers.ReplayBuffer if "" in parts else buffers.DictReplayBuffer
    observations = parts[""] if "" in parts else spaces.Dict(parts)
    actions = box(*kind.spec["act"])
    buffer = make(kind.rows, observations, actions, device="cpu", n_envs=envs, handle_timeout_termination=False)
    for arrays in (buffer.observations, buffer.next_observations, buffer.actions, buffer.rewards, buffer.dones):
        for array in arrays.values() if isinstance(arrays, dict) else (arrays,):
            array[:] = 1
    buffer.full = True
    return buffer


def sb3_add(envs: int) -> Operation:
    """`add`, of one step of so many environments."""
    buffer, infos = sb3_full(STATE, envs), [{} for _ in range(envs)]
    following = turns([(a["obs"], a["next_obs"], a["act"], a["reward"], a["done"]) for a in sliced(piece(STATE), envs)])
    return lambda: buffer.add(*following(), infos)


def sb3_sample(kind: Kind) -> Operation:
    """`sample`."""
    buffer = sb3_full(kind)
    return lambda: buffer.sample(BATCH)


# ---- tianshou


def tianshou_arrays(arrays: Columns) -> dict[str, Any]:
    """Return stacked arrays under tianshou's names."""
    terminated = arrays["mask"] == 0
    names = {"obs": "obs", "act": "act", "rew": "reward", "obs_next": "next_obs"}
    named = {theirs: arrays[name] for theirs, name in names.items()}
    return {**named, "terminated": terminated, "truncated": arrays["done"] & ~terminated}


def tianshou_full(make: Callable[[Any], Any]) -> Any:
    """Return the buffer that `make` returns, full, as its `from_data` fills one."""
    library = imported("tianshou.data")
    whole = tianshou_arrays({name: np.concatenate([p[name] for p in pieces(STATE)]) for name in piece(STATE)})
    buffer = make(library)
    buffer.set_batch(library.Batch(**whole, done=whole["terminated"] | whole["truncated"]))
    buffer._size = STATE.rows
    return buffer


def tianshou_uniform() -> Any:
    """Return a plain buffer, full."""
    return tianshou_full(lambda library: library.ReplayBuffer(STATE.rows))


def tianshou_add() -> Operation:
    """`add` of a Batch that was made before."""
    buffer, batch = tianshou_uniform(), imported("tianshou.data").Batch
    whole = tianshou_arrays(piece(STATE))
    steps = [batch(**{name: array[step] for name, array in whole.items()}) for step in range(len(whole["rew"]))]
    following = turns(steps)
    return lambda: buffer.add(following())


def tianshou_add_many() -> Operation:
    """`add` of one step of 50 environments to a VectorReplayBuffer, which begins empty."""
    library = imported("tianshou.data")
    buffer = library.VectorReplayBuffer(STATE.rows, INSERTED_AT_ONCE)
    following = turns([library.Batch(**tianshou_arrays(arrays)) for arrays in sliced(piece(STATE), INSERTED_AT_ONCE)])
    return lambda: buffer.add(following())


def tianshou_sample() -> Operation:
    """`sample`."""
    buffer = tianshou_uniform()
    return lambda: buffer.sample(BATCH)


def tianshou_priority() -> Operation:
    """`sample`, `update_weight`."""
    buffer = tianshou_full(lambda library: library.PrioritizedReplayBuffer(STATE.rows, alpha=0.6, beta=0.4))
    buffer.init_weight(np.arange(STATE.rows))
    return lambda: buffer.update_weight(buffer.sample(BATCH)[1], ERRORS)


def insert_case(peer: str, how: str, make: Callable[[], Operation], at_once: int = 1) -> Case:
    """Return the case of a peer's insert."""
    name = f"replay.insert.{'single' if at_once == 1 else at_once}.{peer}"
    floor = COPY_1 if at_once == 1 else COPY_MANY
    return Case(name, "peer", how, lambda p: opened(p, make, at_once), floor, "replay.insert")


def sample_case(peer: str, how: str, make: Callable[[], Operation], kind: Kind = STATE, window: int = 1) -> Case:
    """Return the case of a peer's batch."""
    take = take_of(kind, window)
    name = f"replay.sample.{size_of(kind, window)}.{peer}"
    return Case(name, "peer", how, lambda p: opened(p, make, 1), take.name, take.group)


def priority_case(peer: str, how: str, make: Callable[[], Operation]) -> Case:
    """Return the case of a peer's draw by priority."""
    name = f"replay.sample.priority.{BATCH}.{peer}"
    return Case(name, "peer", how, lambda p: opened(p, make, 1), TAKE_FOR_PRIORITY.name, PRIORITY_GROUP)


CASES = [
    insert_case("cpprb", "add of one transition", lambda: cpprb_add(1)),
    insert_case("sb3", "add of one transition", lambda: sb3_add(1)),
    insert_case("tianshou", "add of one Batch", tianshou_add),
    insert_case("cpprb", "add of 50, stacked", lambda: cpprb_add(INSERTED_AT_ONCE), INSERTED_AT_ONCE),
    insert_case("sb3", "add of one step of 50 environments", lambda: sb3_add(INSERTED_AT_ONCE), INSERTED_AT_ONCE),
    insert_case("tianshou", "add of one step of 50 environments", tianshou_add_many, INSERTED_AT_ONCE),
    sample_case("cpprb", f"sample({BATCH})", lambda: cpprb_sample(STATE)),
    sample_case("sb3", f"sample({BATCH}), torch tensors", lambda: sb3_sample(STATE)),
    sample_case("tianshou", f"sample({BATCH})", tianshou_sample),
    sample_case("cpprb", f"sample({BATCH})", lambda: cpprb_sample(IMAGE), IMAGE),
    sample_case("sb3", f"sample({BATCH}), torch tensors", lambda: sb3_sample(IMAGE), IMAGE),
    sample_case("cpprb", f"sample({BATCH})", lambda: cpprb_sample(CAMERAS), CAMERAS),
    sample_case("sb3", f"DictReplayBuffer.sample({BATCH}), torch tensors", lambda: sb3_sample(CAMERAS), CAMERAS),
    priority_case("cpprb", "sample, update_priorities", cpprb_priority),
    priority_case("tianshou", "sample, update_weight", tianshou_priority),
]
