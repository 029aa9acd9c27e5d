"""Buffers whose contents the tests know: several episodes, terminated, truncated, ended later, and still open."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces

from edgeml_ipc import DataShape, ReplayBuffer, TrajectoryBuffer
from edgeml_ipc.data.replay_buffer import SharedBuffer

OBSERVATIONS = spaces.Dict(
    {
        "image": spaces.Box(0, 255, (6, 5, 3), np.uint8),
        "grey": spaces.Box(0, 255, (6, 5, 1), np.uint8),
        "stack": spaces.Box(0, 255, (12, 10, 2), np.uint8),
        "few_bytes": spaces.Box(0, 255, (4,), np.uint8),
        "arm": spaces.Dict({"joints": spaces.Box(-9, 9, (3,), np.float32), "exact": spaces.Box(-9, 9, (2,), np.float64)}),
        "half": spaces.Box(-9, 9, (2,), np.float16),
        "mode": spaces.Discrete(5),
        "signed": spaces.Box(-100, 100, (2,), np.int8),
        "touch": spaces.MultiBinary(3),
    }
)
ACTIONS = spaces.Box(-1, 1, (2,), np.float32)
EXTRA = [DataShape("goal", (2,), "float64"), DataShape("yes", (), "bool"), DataShape("large", (), "uint64")]
PLAIN_OBSERVATIONS = spaces.Box(-9, 9, (3,), np.float32)


def sample(space: Any, rng: np.random.Generator) -> Any:
    """Draw from a space, every bit of it at random."""
    if isinstance(space, spaces.Dict):
        return {key: sample(child, rng) for key, child in space.items()}
    if isinstance(space, spaces.Discrete):
        return np.int64(rng.integers(space.n))
    if space.dtype.kind == "f":
        return rng.normal(size=space.shape).astype(space.dtype)
    low, high = (0, 2) if isinstance(space, spaces.MultiBinary) else (space.low.min(), int(space.high.max()) + 1)
    return rng.integers(low, high, space.shape, dtype=space.dtype)


def transitions(
    rng: np.random.Generator, steps: int, space: Any = OBSERVATIONS, *, terminated: bool = False, truncated: bool = False
) -> list[dict[str, Any]]:
    """Return the transitions of one episode."""
    seen, found = sample(space, rng), []
    for step in range(steps):
        then, last = sample(space, rng), step == steps - 1
        found.append(
            {
                "observations": seen,
                "next_observations": then,
                "actions": sample(ACTIONS, rng),
                "rewards": rng.normal(),
                "masks": 0.0 if terminated and last else 1.0,
                "dones": last and (terminated or truncated),
            }
        )
        seen = then
    return found


def with_extras(
    rng: np.random.Generator, items: list[dict[str, Any]], extra: Sequence[DataShape] = EXTRA
) -> list[dict[str, Any]]:
    """Add the fields of EXTRA that are wanted."""
    wanted = {shape.name for shape in extra}
    found = []
    for item in items:
        large = np.uint64(2**64 - 1 - int(rng.integers(9)))
        values = {"goal": rng.normal(size=2), "yes": bool(rng.integers(2)), "large": large}
        found.append({**item, **{name: value for name, value in values.items() if name in wanted}})
    return found


def replay_buffer(seed: int, extra: Sequence[DataShape] = EXTRA) -> ReplayBuffer:
    """Return a buffer with six episodes, of which the last is open."""
    buffer = ReplayBuffer(OBSERVATIONS, ACTIONS, 200, extra_columns=extra)
    fill(buffer, np.random.default_rng(seed), extra=extra)
    return buffer


def fill(buffer: SharedBuffer, rng: np.random.Generator, space: Any = OBSERVATIONS, *, extra: Sequence[DataShape] = ()) -> None:
    """Insert six episodes: terminated, truncated, ended afterwards, of one step, cut by other observations, and open."""
    kinds = [{"terminated": True}, {"truncated": True}, {}, {"terminated": True}, {"truncated": True}, {}]
    for number, (kind, steps) in enumerate(zip(kinds, [4, 7, 3, 1, 6, 5], strict=True)):
        items = transitions(rng, steps, space, **kind)
        for item in with_extras(rng, items, extra):
            buffer.insert(item)
        if number == 2:
            buffer.end_trajectory()


def rows_of(buffer: SharedBuffer) -> list[dict[str, Any]]:
    """Return copies of all rows that are held, oldest first."""
    return buffer.get_latest_data(-1)


def flags_of(buffer: SharedBuffer) -> list[int]:
    """Return first, last, terminal and truncated (1, 2, 4, 8) of each row, oldest first."""
    rows = buffer.rows()
    order = np.argsort(buffer.about["sequence"][rows])
    found: list[int] = (buffer.about["flags"][rows][order] & 15).tolist()
    return found


def assert_same(one: Any, other: Any) -> None:
    """Compare two trees of arrays and numbers, bit for bit."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for ours, theirs in zip(one, other, strict=True):
            assert_same(ours, theirs)
    else:
        ours, theirs = np.asarray(one), np.asarray(other)
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        assert ours.tobytes() == theirs.tobytes()


def trajectory_buffer(seed: int) -> TrajectoryBuffer:
    """Return the default kind of buffer of trajectories, filled as `replay_buffer`."""
    from edgeml_ipc import make_default_trajectory_buffer

    buffer = make_default_trajectory_buffer(OBSERVATIONS, ACTIONS, 200)
    fill(buffer, np.random.default_rng(seed))
    return buffer
