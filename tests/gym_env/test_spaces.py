"""Spaces become schemas and spaces again; schemas from strangers are checked."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium import Space, spaces
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from edgeml_ipc import codec
from edgeml_ipc.errors import CodecError
from edgeml_ipc.gym_env.spaces import MAX_SPACES, build, describe

SPACES: list[Space[Any]] = [
    spaces.Box(-1, 1, (3,), np.float32),
    spaces.Box(0, 255, (4, 5, 3), np.uint8),
    spaces.Box(-np.inf, np.inf, (2,), np.float64),
    spaces.Box(np.array([-np.inf, 0.0]), np.array([1.0, np.inf]), dtype=np.float64),
    spaces.Box(-np.inf, np.inf, (2,), np.int64),
    spaces.Box(np.array([-np.inf, 0.0]), np.array([5.0, np.inf]), dtype=np.int32),
    spaces.Box(0, 1, (), np.float16),
    spaces.Box(0, 1, (0, 3), np.float32),
    spaces.Discrete(5),
    spaces.Discrete(5, start=-2),
    spaces.Discrete(5, dtype=np.uint8),
    spaces.MultiBinary(7),
    spaces.MultiBinary([2, 3]),
    spaces.MultiDiscrete([3, 4]),
    spaces.MultiDiscrete(np.array([[3, 4], [5, 6]]), start=np.array([[1, 2], [3, -4]]), dtype=np.int32),
    spaces.Text(12, min_length=3, charset="xyzab"),
    spaces.Dict(b=spaces.Discrete(2), a=spaces.Box(0, 1, (2,))),
    spaces.Dict([("z", spaces.Discrete(2)), ("a", spaces.Dict(deep=spaces.Tuple([spaces.Discrete(3)])))]),
    spaces.Tuple([spaces.Discrete(2), spaces.Text(4)]),
    spaces.Sequence(spaces.Box(0, 1, (2,))),
    spaces.Sequence(spaces.Box(0, 1, (2,)), stack=True),
    spaces.Graph(spaces.Box(0, 1, (2,)), spaces.Discrete(3)),
    spaces.Graph(spaces.Box(0, 1, (2,)), None),
    spaces.OneOf([spaces.Discrete(3), spaces.Box(0, 1, (2,))]),
]


def there_and_back(space: Space[Any]) -> Space[Any]:
    return build(codec.decode([bytes(part) for part in codec.encode(describe(space))]))


def equal(left: Any, right: Any) -> bool:
    """Compare samples, of which some hold arrays."""
    if isinstance(left, dict):
        return list(left) == list(right) and all(equal(left[key], right[key]) for key in left)
    if isinstance(left, tuple):
        return type(left) is type(right) and len(left) == len(right) and all(map(equal, left, right))
    return (
        type(left) is type(right)
        and bool(np.array_equal(left, right))
        and getattr(left, "dtype", 0) == getattr(right, "dtype", 0)
    )


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_a_space_arrives_as_it_was(space: Space[Any]) -> None:
    arrived = there_and_back(space)
    assert arrived == space
    assert repr(arrived) == repr(space)
    space.seed(3)
    arrived.seed(3)
    for _ in range(5):
        assert equal(arrived.sample(), space.sample())


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_its_values_travel(space: Space[Any]) -> None:
    space.seed(1)
    for _ in range(5):
        value = space.sample()
        arrived = codec.decode([bytes(part) for part in codec.encode(value)])
        assert equal(arrived, value)
        assert arrived in space


@given(
    npst.arrays(
        st.sampled_from([np.float32, np.int16, np.uint8, np.int64]),
        npst.array_shapes(max_side=3),
        elements={"min_value": 0, "max_value": 100},
    )
)
def test_bounds_arrive_exactly(low: np.ndarray[Any, Any]) -> None:
    space = spaces.Box(low, low + 1, dtype=low.dtype.type)
    arrived = there_and_back(space)
    assert isinstance(arrived, spaces.Box)
    assert arrived.dtype == space.dtype
    np.testing.assert_array_equal(arrived.low, space.low)
    np.testing.assert_array_equal(arrived.high, space.high)


def test_equal_bounds_are_sent_once() -> None:
    parts = codec.encode(describe(spaces.Box(0, 255, (480, 640, 3), np.uint8)))
    assert sum(memoryview(part).nbytes for part in parts) < 300


class Odd(Space[Any]):
    pass


class MyDiscrete(spaces.Discrete):  # type: ignore[type-arg]
    pass


@pytest.mark.parametrize(
    ("space", "where"),
    [
        (Odd(), "the space is"),
        (spaces.Dict(a=spaces.Tuple([Odd()])), r"the space\['a'\]\[0\] is"),
        (MyDiscrete(3), "MyDiscrete"),
    ],
)
def test_other_spaces_are_refused_by_name_and_place(space: Space[Any], where: str) -> None:
    with pytest.raises(CodecError, match=where):
        describe(space)


BOX = describe(spaces.Box(0, 1, (2,), np.float32))


@pytest.mark.parametrize(
    "schema",
    [
        None,
        [],
        {},
        {"kind": ["Box"]},
        {"kind": "Space"},
        {"kind": "Box"},
        {**BOX, "shape": (-1,)},
        {**BOX, "shape": (1 << 40, 1 << 40)},
        {**BOX, "shape": (1 << 28,), "dtype": "float64"},
        {**BOX, "shape": (True,)},
        {**BOX, "shape": (1,) * 40},
        {**BOX, "dtype": "object"},
        {**BOX, "low": "x"},
        {**BOX, "low": 2.0},
        {**BOX, "low": np.float32("nan")},
        {**BOX, "low": np.zeros(3)},
        {"kind": "Discrete", "n": 0, "start": 0, "dtype": "int64"},
        {"kind": "Discrete", "n": "many", "start": 0, "dtype": "int64"},
        {"kind": "MultiDiscrete", "nvec": np.array([0]), "start": np.array([0]), "dtype": "int64"},
        {"kind": "Text", "min_length": 5, "max_length": 2, "charset": "ab"},
        {"kind": "Dict", "spaces": [["a"]]},
        {"kind": "Dict", "spaces": [[[], BOX]]},
        {"kind": "Tuple", "spaces": 3},
        {"kind": "OneOf", "spaces": []},
        {"kind": "Graph", "node": BOX},
        {"kind": "Tuple", "spaces": [BOX] * (MAX_SPACES + 1)},
    ],
    ids=lambda schema: str(schema)[:40],
)
def test_what_describes_no_space_is_refused(schema: Any) -> None:
    with pytest.raises(CodecError):
        build(schema)
