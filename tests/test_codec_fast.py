"""The two halves of the codec agree: the same bytes out of a tree, the same tree out of bytes, and no more is accepted."""

from __future__ import annotations

import gc
import random
import sys
import tracemalloc
from typing import Any

import flax.core
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgeml_ipc.codec import _fast, wire
from edgeml_ipc.codec.decoder import decode_in_python
from edgeml_ipc.codec.encoder import encode_in_python
from edgeml_ipc.errors import CodecError
from tests.test_codec import assert_same

DTYPES = [np.dtype(name) for name in wire.NUMPY_DTYPES]
arrays = st.sampled_from(DTYPES).flatmap(lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=4, max_side=5)))
large = st.integers(500, 600).map(lambda n: np.arange(n * 2, dtype=np.float64))
scalars = st.sampled_from(DTYPES).flatmap(lambda dtype: hnp.arrays(dtype, ())).map(lambda array: array[()])
keys = st.text(max_size=40) | st.integers(-(1 << 63), (1 << 64) - 1) | st.binary(max_size=40) | st.none() | st.booleans()
leaves = (
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.sampled_from(
        [n for bits in (5, 7, 8, 15, 16, 31, 32, 63) for n in (-(1 << bits), 1 - (1 << bits), (1 << bits) - 1, 1 << bits)]
    )
    | st.floats()
    | st.text(max_size=300)
    | st.binary(max_size=300)
    | st.sampled_from([b"x" * n for n in (255, 256, 4095, 4096, 70_000)] + ["y" * n for n in (31, 32, 255, 256, 65_536)])
    | arrays
    | large
    | scalars
)
trees = st.recursive(
    leaves,
    lambda children: (
        st.lists(children, max_size=20)
        | st.lists(children, max_size=20).map(tuple)
        | st.dictionaries(keys, children, max_size=20)
    ),
    max_leaves=40,
)


def as_bytes(parts: list[Any]) -> list[bytes]:
    return [bytes(memoryview(part)) for part in parts]


@settings(max_examples=600, deadline=None)
@given(trees)
def test_both_write_the_same_bytes_and_read_the_same_tree(tree: Any) -> None:
    compiled = _fast.try_encode(tree)
    assert compiled is not NotImplemented
    parts = as_bytes(compiled)
    assert parts == as_bytes(encode_in_python(tree))
    for copy in (False, True):
        decoded = _fast.try_decode(parts, 0, copy)
        assert decoded is not NotImplemented
        assert_same(decoded, decode_in_python(parts, copy=copy))


@pytest.mark.parametrize(
    ("tree", "known"),
    [
        (jnp.ones((3, 2)), True),
        ({"a": np.asfortranarray(np.arange(6).reshape(2, 3))}, True),
        (np.ones(3, ">f4"), True),
        ([np.float64(1), np.bool_(True)], True),
        (1 << 80, False),
        ("\ud800", False),
        ({(1, 2): 3}, False),
        ({1}, False),
        (1j, False),
        (flax.core.freeze({"a": 1}), False),
        (jnp.ones(2, jnp.bfloat16), False),
        (object(), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_it_has_no_form_for_is_left_to_the_other(tree: Any, known: bool) -> None:
    compiled = _fast.try_encode(tree)
    assert (compiled is not NotImplemented) is known
    if known:
        assert as_bytes(compiled) == as_bytes(encode_in_python(tree))


def nested(levels: int) -> Any:
    tree: Any = 0
    for level in range(levels):
        tree = [tree] if level % 2 else (tree,)
    return tree


def test_the_deepest_tree_and_one_level_more() -> None:
    deepest = as_bytes(_fast.try_encode(nested(wire.MAX_DEPTH)))
    assert_same(_fast.try_decode(deepest, 0, False), nested(wire.MAX_DEPTH))
    assert _fast.try_encode(nested(wire.MAX_DEPTH + 1)) is NotImplemented
    tuples: Any = ()
    too_deep = b"\x91" * wire.MAX_DEPTH + b"\x90"
    assert _fast.try_decode([too_deep], 0, False) is NotImplemented
    with pytest.raises(CodecError, match="deeper"):
        decode_in_python([too_deep])
    assert _fast.try_decode([b"\xd4\x10\x90"], 0, False) == tuples


def mutated(parts: list[bytes], rng: random.Random) -> list[bytes]:
    """Change, cut, lengthen, drop or swap: what a broken or hostile peer sends."""
    parts = parts.copy()
    index = rng.randrange(len(parts)) if rng.random() < 0.3 else 0
    part = bytearray(parts[index])
    for _ in range(rng.randint(1, 3)):
        action = rng.randrange(5)
        if action == 0 and part:
            part[rng.randrange(len(part))] = rng.randrange(256)
        elif action == 1:
            del part[rng.randint(0, len(part)) :]
        elif action == 2:
            part[rng.randint(0, len(part)) : 0] = rng.randbytes(rng.randint(1, 4))
        elif action == 3 and len(parts) > 1:
            parts.pop(rng.randrange(1, len(parts)))
            index = 0
        else:
            parts.append(b"")
    parts[index] = bytes(part)
    return parts


def assert_both_accept_the_same(tree: Any, seed: int) -> None:
    """Mutate a message again and again: what the compiled half takes, the other takes too, for the same."""
    parts = as_bytes(encode_in_python(tree))
    rng = random.Random(seed)
    for _ in range(20):
        wrong = mutated(parts, rng)
        compiled = _fast.try_decode(wrong, 0, False)
        if compiled is not NotImplemented:
            assert_same(compiled, decode_in_python(wrong))  # which raises CodecError where it refuses


@settings(max_examples=300, deadline=None)
@given(trees, st.integers(0, 1 << 32))
def test_nothing_is_accepted_that_the_other_refuses(tree: Any, seed: int) -> None:
    assert_both_accept_the_same(tree, seed)


@pytest.mark.parametrize("text", [b"float32", b"float32:1,", b"float32:,1", b"float32:-1", b"float32:1x", b"float33:1", b":1"])
def test_descriptions_that_are_none(text: bytes) -> None:
    header = bytes([0xC7, len(text), wire.PACKED_ARRAY]) + text
    assert _fast.try_decode([header, b"\0" * 8], 0, False) is NotImplemented
    with pytest.raises(CodecError):
        decode_in_python([header, b"\0" * 8])


@pytest.mark.parametrize("dims", ["9" * 15, "4611686018427387904,4", "65536,65536,65536,65536", ",".join(["1"] * 33)])
def test_sizes_that_no_memory_holds_are_not_made(dims: str) -> None:
    text = f"float64:{dims}".encode()
    for code in (wire.PACKED_ARRAY, wire.OWN_ARRAY):
        header = bytes([0xC8]) + len(text).to_bytes(2, "big") + bytes([code]) + text
        assert _fast.try_decode([header, b"\0" * 8], 0, False) is NotImplemented
    for count in (b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc9\xff\xff\xff\xff\x10", b"\xdb\xff\xff\xff\xff"):
        assert _fast.try_decode([count], 0, False) is NotImplemented


def test_views_cannot_be_made_writable_and_keep_their_part() -> None:
    for part_of in (
        bytes,
        bytearray,
        lambda part: memoryview(bytearray(part)),
        lambda part: np.frombuffer(bytearray(part), np.uint8),
    ):
        parts = [part_of(part) for part in as_bytes(_fast.try_encode([np.arange(3.0), np.zeros(1000), np.ones(3, np.uint8)]))]
        views = _fast.try_decode(parts, 0, False)
        expected = decode_in_python(parts)
        del parts
        gc.collect()
        assert_same(views, expected)
        for view in views:
            assert view.flags.c_contiguous
            assert view.flags.aligned
            assert not view.flags.owndata
            with pytest.raises(ValueError, match="WRITEABLE"):
                view.flags.writeable = True


def test_copies_are_writable_and_their_own() -> None:
    parts = as_bytes(_fast.try_encode({"small": np.arange(3.0), "large": np.zeros(100_000)}))
    for array in _fast.try_decode(parts, 0, True).values():
        assert array.flags.writeable
        assert array.flags.owndata


def test_no_reference_is_kept_or_lost() -> None:
    marker, text, array, blob = object(), "a text" * 3, np.zeros(2000), b"z" * 5000
    tree = {"list": [text, array, blob], "tuple": (array, 1.5, None), "scalar": np.float32(2), text: True}
    nodes = [text, array, blob, tree, tree["list"], tree["tuple"], None, True, np.dtype(np.float32)]

    def many() -> None:
        for _ in range(200):
            parts = _fast.try_encode(tree)
            held = as_bytes(parts)
            for copy in (False, True):
                assert _fast.try_decode(held, 0, copy) is not NotImplemented
            assert _fast.try_encode({"list": [text, array, marker], "t": (array, {1})}) is NotImplemented
            assert _fast.try_decode(held[:-1], 0, False) is NotImplemented
            assert _fast.try_decode([held[0][:-1], *held[1:]], 0, False) is NotImplemented

    many()
    gc.collect()
    before = [sys.getrefcount(node) for node in nodes]
    tracemalloc.start()
    many()
    gc.collect()
    used_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    after = [sys.getrefcount(node) for node in nodes]
    assert [now - then for now, then in zip(after, before, strict=True)] == [0] * len(nodes)
    assert used_bytes < 20_000


def test_parts_of_other_kinds_are_left_to_the_other() -> None:
    assert _fast.try_decode(iter([b"\xc0"]), 0, False) is NotImplemented  # type: ignore[arg-type]
    assert _fast.try_decode([], 0, False) is NotImplemented
    assert _fast.try_decode([b"\xc0"], 1, False) is NotImplemented
    assert _fast.try_decode([1], 0, False) is NotImplemented
    assert _fast.try_decode((b"envelope", b"\xc0"), 1, False) is None
