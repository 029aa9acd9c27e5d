"""What is encoded comes back: the same types, values and dtypes, as read-only views or writable copies."""

from __future__ import annotations

import collections
import datetime
import decimal
import enum
import gc
import math
import subprocess
import sys
import threading
import uuid
import weakref
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import flax.core
import jax
import jax.numpy as jnp
import ml_dtypes
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgeml_ipc import codec
from edgeml_ipc.codec import wire
from edgeml_ipc.errors import CodecError

pytestmark = pytest.mark.usefixtures("codec_half")

NUMPY_DTYPES = [np.dtype(name) for name in wire.NUMPY_DTYPES]
ML_DTYPES = [np.dtype(getattr(ml_dtypes, name)) for name in wire.ML_DTYPES]
ALL_DTYPES = [*NUMPY_DTYPES, *ML_DTYPES]
LARGE = (64, 64)  # at least wire.OWN_PART_BYTES, whatever the dtype


class Point(NamedTuple):
    x: Any
    y: Any


class Renamed(NamedTuple):
    x: Any
    y: Any


@dataclass
class Transition:
    observation: Any
    reward: float
    info: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Unregistered:
    x: int


class Box:
    def __init__(self, content: Any) -> None:
        self.content = content


class Color(enum.IntEnum):
    RED = 1


class Word(str):
    __slots__ = ()


codec.register(Transition)
codec.register(Renamed, name="test-point")
codec.register(Box, to_tree=lambda box: box.content, from_tree=Box)


def received(tree: Any) -> list[Any]:
    """Encode, and copy the parts into bytes as a transport does."""
    return [bytes(memoryview(part)) for part in codec.encode(tree)]


def round_trip(tree: Any, *, copy: bool = False) -> Any:
    return codec.decode(received(tree), copy=copy)


def assert_same(actual: Any, expected: Any) -> None:
    """Compare types, structure and values bit for bit; NaN equals NaN, and 0.0 is not -0.0."""
    assert type(actual) is type(expected)
    if isinstance(expected, np.ndarray | np.generic):
        assert actual.dtype == expected.dtype
        assert actual.shape == expected.shape
        assert actual.tobytes() == expected.tobytes()
    elif isinstance(expected, dict):
        assert len(actual) == len(expected)
        for (actual_key, actual_value), (key, value) in zip(actual.items(), expected.items(), strict=True):
            assert_same(actual_key, key)
            assert_same(actual_value, value)
    elif isinstance(expected, list | tuple):
        assert len(actual) == len(expected)
        for actual_item, item in zip(actual, expected, strict=True):
            assert_same(actual_item, item)
    elif isinstance(expected, float):
        assert (math.isnan(actual) and math.isnan(expected)) or (actual, math.copysign(1, actual)) == (
            expected,
            math.copysign(1, expected),
        )
    elif isinstance(expected, Transition):
        assert_same(vars(actual), vars(expected))
    elif isinstance(expected, complex):
        assert_same(actual.real, expected.real)
        assert_same(actual.imag, expected.imag)
    else:
        assert actual == expected


PLAIN_TREES = [
    None,
    True,
    False,
    0,
    -1,
    (1 << 63) - 1,
    -(1 << 63),
    (1 << 64) - 1,
    1 << 64,
    -(1 << 63) - 1,
    [1, 1 << 64, "é"],
    {"a": 10**2000, "b": -(10**2000)},
    {1 << 70: 1, "x": [1 << 70]},
    0.0,
    -0.0,
    1.5,
    math.nan,
    math.inf,
    -math.inf,
    1 + 2j,
    complex(math.nan, -0.0),
    "",
    "text",
    "a\0b é 🤖",
    "\ud800",
    ["ok", "\udcff tail"],
    {"\ud800": 1, "b": "\ud800"},
    b"",
    b"bytes",
    b"x" * (wire.OWN_PART_BYTES - 1),
    b"x" * wire.OWN_PART_BYTES,
    [b"x" * 5000, np.arange(3), b"y" * 5000],
    {},
    [],
    (),
    set(),
    frozenset(),
    [[], {}, (), [[]]],
    (1, (2.0, ("three", [None]))),
    {1, "a", None, 2.5, (1, 2), frozenset({3})},
    frozenset({b"a", 1 << 100, "\ud800"}),
    {"a": 1, 2: 3, 2.5: 4, True + 2: 5, None: 6, b"k": 7, False: 8},
    {("params", "kernel"): 1, ("params", ("nested", 2)): np.arange(2)},
    {frozenset({1}): 1, 2j: 2},
    {np.int64(3): np.arange(4), "x": np.arange(5)},
    collections.OrderedDict([("b", 1), ("a", np.arange(3))]),
    collections.OrderedDict(),
    Renamed(1, np.arange(3)),
    Transition(np.arange(3, dtype=np.float32), 1.0, {"a": (1,)}),
    [Transition(None, 0.0)] * 3,
    {"nan": float("nan"), "list": [1.0] * 100},
    {f"key{i}": {f"inner{j}": j for j in range(20)} for i in range(20)},
]


@pytest.mark.parametrize("tree", PLAIN_TREES, ids=lambda tree: ascii(tree)[:40])
def test_trees_keep_their_types_and_values(tree: Any) -> None:
    assert_same(round_trip(tree), tree)


@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=lambda dtype: dtype.name)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (7,), (3, 0, 2), (2, 3, 4), (1,) * 32, LARGE, (4, *LARGE)], ids=str)
@pytest.mark.parametrize("copy", [False, True], ids=["view", "copy"])
def test_arrays_of_every_dtype_and_shape(dtype: np.dtype[Any], shape: tuple[int, ...], copy: bool) -> None:
    array = np.arange(math.prod(shape)).reshape(shape).astype(dtype)
    result = round_trip({"a": array, "b": [array]}, copy=copy)
    assert_same(result, {"a": array, "b": [array]})
    assert result["a"].flags.writeable is copy
    assert result["a"].flags.c_contiguous
    assert result["a"].flags.aligned


@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=lambda dtype: dtype.name)
def test_scalars_of_every_dtype(dtype: np.dtype[Any]) -> None:
    scalar = np.ones((), dtype)[()]
    assert isinstance(scalar, np.generic)
    assert_same(round_trip(scalar), scalar)
    assert_same(round_trip([scalar, np.arange(3), scalar]), [scalar, np.arange(3), scalar])


@pytest.mark.parametrize("size", [8, 64], ids=["small", "large"])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize(
    "layout",
    [np.asfortranarray, lambda a: a[::2], lambda a: a[:, ::-1], lambda a: a.T, lambda a: np.broadcast_to(a[0], a.shape)],
    ids=["fortran", "strided", "reversed", "transposed", "broadcast"],
)
def test_arrays_in_other_layouts_arrive_in_c_order(size: int, dtype: Any, layout: Any) -> None:
    array = layout(np.arange(size * size).reshape(size, size).astype(dtype))
    assert_same(round_trip(array), np.ascontiguousarray(array))


@pytest.mark.parametrize("shape", [(), (5,), LARGE], ids=str)
@pytest.mark.parametrize("dtype", [">f4", ">i8", ">c16", ">u2"])
def test_big_endian_arrays_arrive_native(shape: tuple[int, ...], dtype: str) -> None:
    array = np.full(shape, 3, dtype)
    result = round_trip(array)
    assert result.dtype == array.dtype.newbyteorder("=")
    np.testing.assert_array_equal(result, array)


def test_a_shape_seen_before_is_encoded_by_the_values_of_now() -> None:
    for value in range(3):
        tree = {"small": np.full(5, value), "large": np.full(LARGE, value), "scalar": np.float32(value)}
        assert_same(round_trip(tree), tree)


def test_memmap_arrives_as_an_array(tmp_path: Any) -> None:
    array = np.memmap(tmp_path / "array", np.float32, "w+", shape=LARGE)
    array[:] = 3
    assert_same(round_trip(array), np.full(LARGE, 3, np.float32))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.int32, jnp.bool_, jnp.bfloat16, jnp.float8_e4m3fn])
@pytest.mark.parametrize("shape", [(), (3,), LARGE], ids=str)
def test_jax_arrays_arrive_as_numpy(dtype: Any, shape: tuple[int, ...]) -> None:
    array = jnp.ones(shape, dtype)
    assert_same(round_trip({"a": array})["a"], np.asarray(array))


def test_jax_arrays_that_have_no_host_array_are_refused() -> None:
    with pytest.raises(CodecError, match="PRNG"):
        codec.encode({"key": jax.random.key(0)})
    deleted = jnp.ones(3)
    deleted.delete()
    with pytest.raises(CodecError, match="deleted"):
        codec.encode(deleted)
    with pytest.raises(CodecError, match="Tracer"):
        jax.jit(codec.encode)(jnp.ones(3))


@pytest.mark.parametrize(
    "tree",
    [{}, {"a": {"b": np.arange(3), "c": {"d": 1}}, "e": [1]}, {1: {"x": None}}],
    ids=["empty", "nested", "int key"],
)
def test_frozen_dict(tree: dict[Any, Any]) -> None:
    frozen = flax.core.freeze(tree)
    result = round_trip({"params": frozen})["params"]
    assert type(result) is flax.core.FrozenDict
    assert_same(result.unfreeze(), tree)


def test_frozen_dict_arrives_as_dict_where_flax_is_missing() -> None:
    parts = received(flax.core.freeze({"a": {"b": 1}}))
    code = f"import sys; sys.modules['flax'] = None\nfrom edgeml_ipc import codec\nprint(codec.decode({parts!r}))"
    assert run(code) == "{'a': {'b': 1}}"


def test_ml_dtypes_missing_is_said_clearly() -> None:
    parts = received(np.ones(3, ml_dtypes.bfloat16))
    code = f"""
import sys; sys.modules['ml_dtypes'] = None
from edgeml_ipc import codec, errors
try:
    codec.decode({parts!r})
except errors.CodecError as error:
    print(error)
"""
    assert "pip install -U ml_dtypes" in run(code)


def test_import_and_plain_use_load_neither_jax_nor_flax_nor_ml_dtypes() -> None:
    code = """
import sys, numpy as np
from edgeml_ipc import codec
codec.decode(codec.encode({"a": np.zeros(3), "b": np.zeros(5000), "c": (1, {2})}))
print([name for name in ("jax", "flax", "ml_dtypes") if name in sys.modules])
"""
    assert run(code) == "[]"


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout.strip()


# Ownership


def test_large_contiguous_arrays_and_bytes_are_not_copied_by_encode() -> None:
    trees = [np.zeros(LARGE), np.zeros(LARGE, ml_dtypes.bfloat16), np.zeros((1, *LARGE), np.uint8)]
    header, *parts = codec.encode(trees)
    assert type(header) is bytes
    assert len(header) < 200
    for part, array in zip(parts, trees, strict=True):
        assert np.shares_memory(np.asarray(part), array)
    blob = bytes(wire.OWN_PART_BYTES)
    assert codec.encode({"blob": blob})[1] is blob


def test_read_only_arrays_can_be_sent() -> None:
    for array in (np.zeros(LARGE), np.zeros(LARGE, ml_dtypes.bfloat16), np.zeros(3)):
        array.flags.writeable = False
        assert_same(round_trip(array), array)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, lambda part: np.frombuffer(bytearray(part), np.uint8)])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_decoded_arrays_are_read_only_views_on_their_part(kind: Any, dtype: Any) -> None:
    tree = [np.ones(LARGE, dtype), np.ones(4, dtype), np.ones((2, 2), dtype)]
    parts = [kind(part) for part in received(tree)]
    for array, part in zip(codec.decode(parts), [parts[1], parts[2], parts[2]], strict=True):
        assert np.shares_memory(array, np.frombuffer(part, np.uint8))
        assert not array.flags.writeable
        with pytest.raises(ValueError, match="WRITEABLE"):
            array.flags.writeable = True


def test_copies_are_writable_and_their_own() -> None:
    parts = [bytearray(part) for part in received([np.ones(LARGE), np.ones(4)])]
    for array, part in zip(codec.decode(parts, copy=True), parts[1:], strict=True):
        array[:] = 2
        assert not np.shares_memory(array, np.frombuffer(part, np.uint8))


def test_views_keep_their_part_alive() -> None:
    array = codec.decode([memoryview(part) for part in received(np.full(LARGE, 7))])
    assert (array == 7).all()


def test_encode_leaves_the_tree_as_it_was() -> None:
    tree = {"a": [np.arange(3), (1, 2)], "big": 1 << 80, "s": "\ud800"}
    before = {"a": [tree["a"][0], (1, 2)], "big": 1 << 80, "s": "\ud800"}  # type: ignore[index]
    codec.encode(tree)
    assert_same(tree, before)


def test_wire_form_is_the_one_that_is_documented() -> None:
    header, shared = codec.encode({"x": np.arange(4, dtype=np.float32)})
    assert header == bytes.fromhex("81 a1 78 c7 09 01 66 6c 6f 61 74 33 32 3a 34")
    assert shared == bytes.fromhex("00 00 00 00 00 00 80 3f 00 00 00 40 00 00 40 40")


def test_small_arrays_share_one_part() -> None:
    tree = [[np.zeros(17), np.float32(1)] for _ in range(20_000)]
    parts = received(tree)
    assert len(parts) == 2
    assert_same(codec.decode(parts)[-1], tree[-1])


def test_parts_are_flat_buffers_of_their_size() -> None:
    tree = [np.zeros(LARGE, np.float64), np.zeros(LARGE, ml_dtypes.bfloat16), np.asfortranarray(np.zeros(LARGE))]
    assert [memoryview(part).nbytes for part in codec.encode(tree)[1:]] == [array.nbytes for array in tree]
    assert all(memoryview(part).c_contiguous for part in codec.encode(tree))


def test_many_threads_at_once() -> None:
    failures: list[str] = []

    def work(seed: int) -> None:
        for i in range(200):
            tree = {"a": np.full(seed + 1, i), "b": (np.full(LARGE, seed), i), "c": np.float64(seed)}
            try:
                assert_same(round_trip(tree), tree)
            except (AssertionError, CodecError) as error:
                failures.append(repr(error))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


# Registered classes and namedtuples


def test_namedtuples_that_nobody_registered_keep_name_and_fields() -> None:
    result = round_trip([Point(1, np.arange(3)), Point(Point(1, 2), None)])
    assert type(result[0]).__name__ == "Point"
    assert result[0]._fields == ("x", "y")
    assert result[0].x == 1
    assert result[1].x == (1, 2)
    assert type(result[0]) is type(result[1]) is type(round_trip(Point(0, 0)))
    assert type(round_trip(collections.namedtuple("Empty", [])()))._fields == ()


def test_namedtuple_with_fields_that_cannot_be_rebuilt_must_be_registered() -> None:
    odd = collections.namedtuple("odd", ["a", "class"], rename=True)
    with pytest.raises(CodecError, match=r"codec\.register"):
        codec.encode(odd(1, 2))
    codec.register(odd, name=f"odd-{uuid.uuid4()}")
    assert_same(round_trip(odd(1, 2)), odd(1, 2))


def test_registering_later_takes_effect() -> None:
    late = collections.namedtuple("late", ["a"])
    assert type(round_trip(late(1))) is not late
    codec.register(late, name=f"late-{uuid.uuid4()}")
    assert type(round_trip(late(1))) is late


def test_registered_by_functions() -> None:
    result = round_trip([Box(np.arange(5)), Box(Box("inner"))])
    assert_same(result[0].content, np.arange(5))
    assert result[1].content.content == "inner"


def test_registering_twice_and_conflicts() -> None:
    codec.register(Transition)
    codec.register(Box, to_tree=lambda box: box.content, from_tree=Box)
    with pytest.raises(CodecError, match="registered as 'Transition' already"):
        codec.register(Transition, name="other")
    with pytest.raises(CodecError, match="belongs to"):
        codec.register(Unregistered, name="Transition")
    for built_in in (dict, int, np.ndarray, np.float32, str):
        with pytest.raises(CodecError, match="travels as it is"):
            codec.register(built_in)
    with pytest.raises(CodecError, match="neither a dataclass nor a namedtuple"):
        codec.register(Color)
    with pytest.raises(CodecError, match="both to_tree and from_tree"):
        codec.register(Color, to_tree=int)
    with pytest.raises(CodecError, match="characters"):
        codec.register(Unregistered, name="")


def test_dataclass_with_computed_fields_needs_functions() -> None:
    @dataclass
    class Computed:
        x: int
        twice: int = field(init=False, default=0)

    with pytest.raises(CodecError, match="twice"):
        codec.register(Computed)


# What is refused


class AStruct(msgspec.Struct):
    x: int


@pytest.mark.parametrize(
    ("node", "hint"),
    [
        (np.array([object()]), "Python objects"),
        (np.array([None, "a"], dtype=object), "nothing is unpickled"),
        (np.array(["a"]), "<U1"),
        (np.array([b"a"]), "S1"),
        (np.array(["2020"], "M8[s]"), "datetime64"),
        (np.zeros(2, [("a", "f4")]), "cannot travel"),
        (np.zeros(2, np.longdouble), "cannot travel"),
        (np.zeros(2, "V4"), "cannot travel"),
        (np.zeros(2, ml_dtypes.int4), "int4"),
        (np.datetime64("2020"), "datetime64"),
        (np.str_("a"), "cannot travel"),
        (np.ma.MaskedArray([1], [True]), r"np\.asarray"),
        (np.zeros(2).view(np.recarray), r"np\.asarray"),
        (bytearray(b"x"), "bytes"),
        (memoryview(b"x"), "bytes"),
        (datetime.datetime(2020, 1, 1), r"codec\.register"),
        (datetime.date(2020, 1, 1), r"codec\.register"),
        (datetime.timedelta(1), r"codec\.register"),
        (decimal.Decimal(1), r"codec\.register"),
        (uuid.UUID(int=1), r"codec\.register"),
        (AStruct(1), r"codec\.register"),
        (msgspec.msgpack.Ext(1, b"float32:"), r"codec\.register"),
        (msgspec.Raw(b"\xc0"), r"codec\.register"),
        (Color.RED, r"codec\.register\(Color"),
        (Word("a"), r"str\(x\)"),
        (collections.defaultdict(list), r"dict\(x\)"),
        (collections.Counter("a"), r"dict\(x\)"),
        (collections.deque([1]), r"codec\.register"),
        (Unregistered(1), r"codec\.register\(Unregistered\)"),
        (sys.version_info, r"tuple\(x\)"),
        (object(), "builtins.object"),
        (print, "builtin_function"),
        (range(3), "range"),
        (..., "ellipsis"),
        (1 << 10_000, "10001 bits"),
        (np.zeros((1,) * 33), "33 dimensions"),
    ],
    ids=lambda value: ascii(type(value).__name__),
)
def test_what_cannot_travel_is_refused_with_its_place_and_advice(node: Any, hint: str) -> None:
    for tree, place in ((node, "payload: "), ({"a": [1, {"b": (0, node)}]}, r"payload\['a'\]\[1\]\['b'\]\[1\]: ")):
        with pytest.raises(CodecError, match=f"(?s){place}.*{hint}"):
            codec.encode(tree)


@pytest.mark.parametrize("key", [Word("a"), Color.RED, datetime.date(2020, 1, 1), np.str_("a")], ids=repr)
def test_keys_that_cannot_travel_are_refused(key: Any) -> None:
    with pytest.raises(CodecError, match="cannot encode"):
        codec.encode({key: 1})


def nested(depth: int, wrap: Any) -> Any:
    tree = None
    for _ in range(depth):
        tree = wrap(tree)
    return tree


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tree: [tree],
        lambda tree: {"a": tree},
        lambda tree: (tree,),
        lambda tree: Point(tree, 1),
        lambda tree: frozenset([tree]),
        lambda tree: {(1,): tree},
        lambda tree: collections.OrderedDict(a=tree),
        lambda tree: {"a": tree, "x": ()} if tree is not None else {"a": None},
    ],
    ids=["list", "dict", "tuple", "namedtuple", "frozenset", "pairs", "ordered", "mixed"],
)
def test_depth_limit(wrap: Any) -> None:
    limit = wire.MAX_DEPTH - (wrap(1) == {(1,): 1})  # there the key is one level more
    round_trip(nested(limit, wrap))
    with pytest.raises(CodecError, match="deeper"):
        codec.encode(nested(limit + 1, wrap))


def test_cycles_are_refused() -> None:
    a_list: list[Any] = []
    a_list.append(a_list)
    a_dict: dict[str, Any] = {}
    a_dict["self"] = (a_dict,)
    for tree in (a_list, a_dict, [Box(a_list)]):
        with pytest.raises(CodecError, match="contains itself"):
            codec.encode(tree)


def test_too_many_parts() -> None:
    array = np.zeros(wire.OWN_PART_BYTES, np.uint8)
    codec.encode([array] * (wire.MAX_PARTS - 1))
    with pytest.raises(CodecError, match="16384"):
        codec.encode([array] * wire.MAX_PARTS)


# Random trees

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(1 << 200), 1 << 200),
    st.floats(),
    st.complex_numbers(),
    st.text(st.characters(), max_size=8),
    st.text(st.characters(categories=["Cs", "L"]), max_size=4),
    st.binary(max_size=16),
)
arrays = st.builds(
    lambda raw, dtype, shape: (
        np.resize(np.frombuffer(raw, np.uint8), math.prod(shape) * dtype.itemsize).view(dtype).reshape(shape)
    ),
    st.binary(min_size=1, max_size=32),
    st.sampled_from([dtype for dtype in ALL_DTYPES if dtype.name != "bool"]),
    st.one_of(hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=5), st.just(LARGE)),
)
keys = st.one_of(
    st.text(max_size=4), st.integers(), st.binary(max_size=4), st.none(), st.tuples(st.text(max_size=2), st.integers())
)
trees = st.recursive(
    st.one_of(scalars, arrays, arrays.filter(lambda a: a.size > 0).map(lambda a: a.reshape(-1)[0])),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(keys, inner, max_size=4),
        st.dictionaries(st.text(max_size=3), inner, max_size=4).map(collections.OrderedDict),
        st.builds(Renamed, inner, inner),
        st.builds(Transition, inner, st.floats(allow_nan=False)),
        st.sets(st.integers() | st.text(max_size=3), max_size=4),
    ),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(trees, st.booleans())
def test_random_trees(tree: Any, copy: bool) -> None:
    assert_same(round_trip(tree, copy=copy), tree)


@pytest.mark.parametrize("tree", [{"x": np.arange(4.0)}, [(np.zeros(2000), b"x" * 5000), {1, 2}]])
def test_parts_are_let_go_with_the_last_array(tree: Any) -> None:
    """What a message lies in is lent: a cycle that keeps it until a garbage collection would keep a slot from being reused."""
    parts = [memoryview(bytes(memoryview(part).cast("B"))) for part in codec.encode(tree)]
    alive = [weakref.ref(part) for part in parts]
    gc.disable()
    try:
        decoded = codec.decode(parts)
        del parts, decoded
        assert [part() for part in alive] == [None] * len(alive)
    finally:
        gc.enable()
