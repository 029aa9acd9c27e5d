"""Whatever arrives, `decode` gives a tree or raises CodecError: truncated, flipped, lying, bombs."""

from __future__ import annotations

import collections
import importlib
import pickle
import struct
import tracemalloc
from dataclasses import dataclass
from typing import Any, NamedTuple

import flax.core
import ml_dtypes
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.msgpack import Ext

from edgeml_ipc import codec
from edgeml_ipc.codec import decoder, encoder, wire
from edgeml_ipc.errors import CodecError

pytestmark = pytest.mark.usefixtures("codec_half")


class Pair(NamedTuple):
    left: Any
    right: Any


@dataclass
class Strict:
    size: int

    def __post_init__(self) -> None:
        if self.size < 0:
            raise ArithmeticError("negative size")


codec.register(Strict, name="hostile-strict")

SAMPLE: dict[Any, Any] = {
    "array": np.arange(6, dtype=np.float32).reshape(2, 3),
    "large": np.zeros((64, 64), np.float32),
    "half": np.ones(3, ml_dtypes.bfloat16),
    "scalars": [np.float64(2), 1.5, -1, None, True, 1 << 90, 2j, "\ud800", b"bytes", b"x" * 5000],
    "containers": ((1, {2}), frozenset({3}), {(4, "k"): 5}, collections.OrderedDict(a=1)),
    "named": Pair(1, np.int8(2)),
    "registered": Strict(3),
    "frozen": flax.core.freeze({"w": np.zeros(2)}),
}


def parts_of(tree: Any) -> list[bytes]:
    return [bytes(memoryview(part)) for part in codec.encode(tree)]


def header_of(node: Any) -> bytes:
    return msgspec.msgpack.encode(node)


def refused(parts: list[Any], match: str | None = None) -> None:
    with pytest.raises(CodecError, match=match):
        codec.decode(parts)


def decode_or_refuse(parts: list[Any]) -> None:
    """Any other exception than CodecError fails the test."""
    try:
        codec.decode(parts)
    except CodecError:
        return


SAMPLE_PARTS = parts_of(SAMPLE)


def test_truncated_at_every_byte_of_the_header() -> None:
    header, *rest = SAMPLE_PARTS
    for length in range(len(header)):
        refused([header[:length], *rest])
    refused([header + b"\xc0", *rest], "trailing")


@pytest.mark.parametrize("index", range(1, len(SAMPLE_PARTS)))
def test_truncated_grown_missing_and_extra_parts(index: int) -> None:
    part = SAMPLE_PARTS[index]
    for wrong in (part[:-1], part + b"\0", b"", part[: len(part) // 2], part * 2):
        parts = SAMPLE_PARTS.copy()
        parts[index] = wrong
        if type(codec.decode(SAMPLE_PARTS)["scalars"][-1]) is bytes and len(part) == 5000:
            decode_or_refuse(parts)  # bytes of any length are bytes
        else:
            refused(parts)
    refused(SAMPLE_PARTS[:index] + SAMPLE_PARTS[index + 1 :])
    refused([*SAMPLE_PARTS[:index], b"", *SAMPLE_PARTS[index:]])


def test_every_single_bit_flip_of_the_header() -> None:
    header, *rest = SAMPLE_PARTS
    for position in range(len(header)):
        for bit in range(8):
            flipped = bytearray(header)
            flipped[position] ^= 1 << bit
            decode_or_refuse([bytes(flipped), *rest])


@settings(max_examples=500, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(SAMPLE_PARTS[0]) - 1), st.integers(0, 255)), min_size=1, max_size=6))
def test_random_byte_changes_of_the_header(changes: list[tuple[int, int]]) -> None:
    header = bytearray(SAMPLE_PARTS[0])
    for position, value in changes:
        header[position] = value
    decode_or_refuse([bytes(header), *SAMPLE_PARTS[1:]])


@settings(max_examples=500, deadline=None)
@given(st.lists(st.binary(max_size=64), max_size=4))
def test_random_bytes(parts: list[bytes]) -> None:
    decode_or_refuse(parts)


hostile_nodes = st.recursive(
    st.none() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats() | st.text(max_size=6) | st.binary(max_size=6),
    lambda inner: st.one_of(
        st.lists(inner, max_size=5),
        st.dictionaries(st.text(max_size=3) | st.integers(0, 9), inner, max_size=3),
        st.builds(
            lambda code, node: Ext(code, header_of(node)), st.sampled_from(range(wire.TUPLE, wire.REGISTERED + 3)), inner
        ),
        st.builds(Ext, st.integers(-128, 127), st.binary(max_size=20)),
        st.builds(
            lambda code, text: Ext(code, text.encode()),
            st.sampled_from([wire.PACKED_ARRAY, wire.OWN_ARRAY, wire.SCALAR]),
            st.from_regex(r"(float32|int8|bfloat16|bool):([0-9]{1,3}(,[0-9]{1,2}){0,2})?", fullmatch=True),
        ),
        st.builds(
            lambda name, node: Ext(wire.REGISTERED, header_of([name, node])), st.sampled_from(["hostile-strict", "no"]), inner
        ),
        st.builds(
            lambda name, fields, items: Ext(wire.NAMEDTUPLE, header_of([name, fields, *items])),
            st.sampled_from(["Pair", "class", "_x", ""]),
            st.sampled_from(["a b", "a a", "_a", "class", ""]),
            st.lists(inner, max_size=3),
        ),
    ),
    max_leaves=10,
)


@settings(max_examples=500, deadline=None)
@given(hostile_nodes, st.lists(st.binary(max_size=40), max_size=3), st.booleans())
def test_random_headers_of_valid_msgpack(node: Any, rest: list[bytes], copy: bool) -> None:
    try:
        tree = codec.decode([header_of(node), *rest], copy=copy)
    except CodecError:
        return
    encoder.encode(tree)  # what is accepted is a tree of the kinds that travel


# Lies about arrays


@pytest.mark.parametrize(
    "text",
    [
        "float32:-1",
        "float32:2,-2",
        "float32:17",
        "float32:13",
        "float32:9999999999999999999",
        "float32:4294967296,4294967296,4294967296",
        "float32:4611686018427387904,4",
        "float32:0,4611686018427387904,4",
        "float32:" + ",".join(["1"] * 33),
        "float32:" + ",".join(["65536"] * 32),
        "float32:1" + "0" * 5000,
        "float32:4,",
        "float32:,4",
        "float32: 16",
        "float32:+16",
        "float32:1_6",
        "float32:\u0661\u0666",
        "float32:16\n",
        "float32:0x10",
        "float32:16.0",
        "float32",
        ":16",
        "",
        "\xff\xfe:3",
        "float128:4",
        "object:8",
        "O:8",
        "<f4:16",
        "str:16",
        "void512:1",
        "datetime64:8",
        "datetime64[ns]:8",
        "int4:64",
        "longdouble:4",
        "V64:1",
        "numpy:16",
        "__class__:16",
        "finfo:16",
        "Float32:16",
    ],
)
@pytest.mark.parametrize("code", [wire.PACKED_ARRAY, wire.OWN_ARRAY, wire.SCALAR])
@pytest.mark.parametrize("copy", [False, True])
def test_lying_array_descriptions(text: str, code: int, copy: bool) -> None:
    with pytest.raises(CodecError):
        codec.decode([header_of(Ext(code, text.encode("utf-8"))), bytes(64)], copy=copy)


@pytest.mark.parametrize("code", [wire.PACKED_ARRAY, wire.OWN_ARRAY])
def test_the_same_descriptions_with_honest_values_are_accepted(code: int) -> None:
    for text, size in (("float32:16", 64), ("float32:" + ",".join(["1"] * 32), 4), ("float32:0,5", 0), ("float64:", 8)):
        raw = bytes(size + -size % 8) if code == wire.PACKED_ARRAY else bytes(size)
        codec.decode([header_of(Ext(code, text.encode())), raw])


def test_a_part_is_not_used_twice_nor_left_over() -> None:
    own, packed = Ext(wire.OWN_ARRAY, b"uint8:8"), Ext(wire.PACKED_ARRAY, b"uint8:8")
    refused([header_of([own, own]), bytes(8)], "more than the 2 parts")
    refused([header_of([own, packed]), bytes(8)])
    refused([header_of([packed, own]), bytes(8)])
    refused([header_of(packed)], "more than the 1 parts")
    refused([header_of(own)], "more than the 1 parts")
    refused([header_of(Ext(wire.OWN_BYTES, b""))], "more than the 1 parts")
    refused([header_of([packed, packed]), bytes(8)])
    refused([header_of(packed), bytes(16)], "shared part has 16 bytes")
    refused([header_of(1), b""], "2 parts, of which its header uses 1")
    refused([header_of([own]), bytes(8), bytes(8)], "3 parts, of which its header uses 2")
    assert len(codec.decode([header_of([packed, own, packed]), bytes(8), bytes(16)])) == 3


def test_a_scalar_has_no_dimensions() -> None:
    refused([header_of(Ext(wire.SCALAR, b"float32:2")), bytes(8)], "shape")
    assert type(codec.decode([header_of(Ext(wire.SCALAR, b"float32:")), bytes(8)])) is np.float32


def test_parts_that_are_no_buffers() -> None:
    refused([])
    refused([b""])
    for header in (None, 5, "text", object()):
        refused([header])
    for part in (None, 5, "x" * 8, memoryview(bytes(32))[::4]):
        for code in (wire.PACKED_ARRAY, wire.OWN_ARRAY):
            refused([header_of(Ext(code, b"uint8:8")), part])
    for part in (None, 5, "text"):
        refused([header_of(Ext(wire.OWN_BYTES, b"")), part])


def test_too_many_parts() -> None:
    refused([b"\x90"] + [b""] * wire.MAX_PARTS, "parts")


# Bombs


def nested_ext(code: int, depth: int, wrap: Any) -> bytes:
    data = header_of(1)
    for _ in range(depth):
        data = header_of(Ext(code, wrap(data)))
    return data


KEYS = [header_of(Ext(wire.BIG_INT, data)) for data in (b"a", b"b")]
BOMBS = {
    "lists": b"\x91" * 100_000 + b"\xc0",
    "maps": b"\x81\xa1a" * 100_000 + b"\xc0",
    "lists16": b"\xdc\x00\x01" * 65 + b"\xc0",
    "lists32": b"\xdd\x00\x00\x00\x01" * 65 + b"\xc0",
    "maps32": b"\xdf\x00\x00\x00\x01\x00" * 65 + b"\xc0",
    "65 lists": b"\x91" * 65 + b"\xc0",
    "65 empty at the end": b"\x91" * 64 + b"\x90",
    "keys": b"\x81" + b"\x91" * 100 + b"\x01\x02",
    "tuples": nested_ext(wire.TUPLE, 65, lambda data: b"\x91" + data),
    "many tuples": nested_ext(wire.TUPLE, 600, lambda data: b"\x91" + data),
    "frozen dicts": nested_ext(wire.FROZEN_DICT, 65, lambda data: b"\x81\xa1a" + data),
    "no containers": nested_ext(wire.TUPLE, 65, lambda data: data),
    "hidden by equal keys": b"\x82" + KEYS[0] + b"\x91" * 70 + b"\xc0" + KEYS[1] + b"\x01",
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
def test_nesting_bombs(bomb: bytes) -> None:
    refused([bomb])


def test_depth_at_the_limit_is_accepted() -> None:
    codec.decode([b"\x91" * 64 + b"\xc0"])
    codec.decode([b"\x91" * 63 + b"\x90"])
    codec.decode([nested_ext(wire.TUPLE, 64, lambda data: b"\x91" + data)])


def test_wide_trees_are_not_taken_for_deep_ones() -> None:
    tree = {f"k{i}": [[i], (i,), {"x": -1.0}] for i in range(500)}
    assert codec.decode(parts_of(tree)) == tree


@pytest.mark.parametrize(
    "header",
    [
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\xc9\xff\xff\xff\xff\x01",
        b"\xdc\xff\xff" * 60,
        b"\xdd\x7f\xff\xff\xff" * 60,
    ],
    ids=repr,
)
def test_huge_counts_allocate_nothing(header: bytes) -> None:
    tracemalloc.start()
    try:
        refused([header])
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_caches_are_bounded() -> None:
    for i in range(wire.MAX_CACHED + 100):
        codec.decode([header_of(Ext(wire.PACKED_ARRAY, b"uint8:0,%d" % i)), b""])
        codec.encode(np.zeros((0, i), np.uint8))
    assert len(decoder._plans) <= wire.MAX_CACHED
    assert len(encoder._array_plans) <= wire.MAX_CACHED
    for i in range(300):
        codec.decode([header_of(Ext(wire.NAMEDTUPLE, header_of([f"T{i}", "a", 1])))])
    assert decoder.namedtuple_class.cache_info().currsize <= 256


# Odd nodes


@pytest.mark.parametrize(
    ("node", "match"),
    [
        (Ext(99, b""), "extension type 99"),
        (Ext(0, b""), "extension type 0"),
        (Ext(-5, b""), "extension type -5"),
        (Ext(wire.COMPLEX, bytes(15)), "16 bytes"),
        (Ext(wire.BIG_INT, b"\x7f" * 1025), "limit of 1024"),
        (Ext(wire.SURROGATE_STR, b"\xff\xfe"), "malformed"),
        (Ext(wire.TUPLE, header_of({"a": 1})), "dict where a list"),
        (Ext(wire.TUPLE, b""), "truncated"),
        (Ext(wire.TUPLE, header_of([1]) + b"\0"), "trailing"),
        (Ext(wire.SET, header_of([[1]])), "unhashable"),
        (Ext(wire.FROZENSET, header_of([{}])), "unhashable"),
        (Ext(wire.PAIRS, header_of([1])), "malformed"),
        (Ext(wire.PAIRS, header_of([[1], 2])), "unhashable"),
        (Ext(wire.ORDERED_DICT, header_of([1, 2, 3])), "malformed"),
        (Ext(wire.FROZEN_DICT, header_of([1])), "list where a dict"),
        (Ext(wire.NAMEDTUPLE, header_of([])), "malformed"),
        (Ext(wire.NAMEDTUPLE, header_of(["P"])), "malformed"),
        (Ext(wire.NAMEDTUPLE, header_of([1, "a", 2])), "int where a str"),
        (Ext(wire.NAMEDTUPLE, header_of(["P", ["a"], 2])), "list where a str"),
        (Ext(wire.NAMEDTUPLE, header_of(["P", "a b", 2])), "malformed"),
        (Ext(wire.NAMEDTUPLE, header_of(["P", "a", 1, 2])), "malformed"),
        (Ext(wire.NAMEDTUPLE, header_of(["P", "a a", 1, 2])), "duplicate"),
        (Ext(wire.NAMEDTUPLE, header_of(["P", "_a", 1])), "underscore"),
        (Ext(wire.NAMEDTUPLE, header_of(["P", "class", 1])), "cannot be the name"),
        (Ext(wire.NAMEDTUPLE, header_of(["P", "a=print('x')", 1])), "cannot be the name"),
        (Ext(wire.NAMEDTUPLE, header_of(["x;import os", "a", 1])), "cannot be the name"),
        (Ext(wire.NAMEDTUPLE, header_of(["P" * 300, "a", 1])), "cannot be the name"),
        (Ext(wire.NAMEDTUPLE, header_of(["P", " ".join(f"f{i}" for i in range(300)), *range(300)])), "limit of 256"),
        (Ext(wire.REGISTERED, header_of([])), "malformed"),
        (Ext(wire.REGISTERED, header_of(["hostile-strict"])), "malformed"),
        (Ext(wire.REGISTERED, header_of([1, {}])), "int where a str"),
        (Ext(wire.REGISTERED, header_of(["os.system", ["true"]])), r"codec\.register"),
        (Ext(wire.REGISTERED, header_of(["hostile-strict", {}])), r"fields \['size'\]"),
        (Ext(wire.REGISTERED, header_of(["hostile-strict", {"size": 1, "x": 2}])), r"fields \['size'\]"),
        (Ext(wire.REGISTERED, header_of(["hostile-strict", [1]])), r"fields \['size'\]"),
        (Ext(wire.REGISTERED, header_of(["hostile-strict", {"size": -1}])), "negative size"),
        ({"t": Ext(-1, struct.pack(">I", 5))}, "timestamp"),
        (Ext(-1, struct.pack(">Q", 5)), "timestamp"),
        ([Ext(-1, struct.pack(">Iq", 5, 5))], "timestamp"),
        (Ext(wire.TUPLE, header_of([Ext(-1, struct.pack(">I", 5))])), "timestamp"),
        (Ext(-1, b"12345"), "malformed"),
    ],
    ids=lambda value: repr(value)[:50],
)
def test_odd_nodes(node: Any, match: str) -> None:
    refused([header_of(node)], match)


def test_timestamp_as_a_key_and_with_longer_length_fields() -> None:
    timestamp = b"\xd6\xff\0\0\0\x05"
    refused([b"\x81" + timestamp + b"\x01"], "timestamp")
    refused([b"\xc8\x00\x04\xff\0\0\0\x05"], "timestamp")
    refused([b"\xc9\x00\x00\x00\x04\xff\0\0\0\x05"], "timestamp")
    assert codec.decode(parts_of([b"\xd6\xff", -1, 0x04FF])) == [b"\xd6\xff", -1, 0x04FF]


def test_arrays_as_keys_are_refused() -> None:
    array = header_of(Ext(wire.PACKED_ARRAY, b"uint8:8"))
    refused([b"\x81" + array + b"\x01", bytes(8)])
    refused([header_of(Ext(wire.SET, b"\x91" + array)), bytes(8)], "unhashable")


def test_nothing_is_unpickled(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise AssertionError("pickle was used")

    for name in ("loads", "load", "dumps", "dump", "Unpickler", "Pickler"):
        monkeypatch.setattr(pickle, name, fail)
    codec.decode(parts_of(SAMPLE))
    for module in ("", ".encoder", ".decoder", ".registry", ".wire"):
        assert "pickle" not in vars(importlib.import_module(f"edgeml_ipc.codec{module}"))


def test_state_of_a_failed_decode_is_gone() -> None:
    for _ in range(3):
        refused(SAMPLE_PARTS[:-1])
        assert codec.decode(SAMPLE_PARTS)["named"].right == 2
