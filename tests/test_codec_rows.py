"""Lists of dicts that are alike: columns on the wire, as they were at the other end, and nothing made that was not paid for."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.msgpack import Ext

from edgeml_ipc import codec
from edgeml_ipc.codec import _fast, rows, wire
from edgeml_ipc.codec.decoder import decode_in_python
from edgeml_ipc.codec.encoder import encode_in_python
from edgeml_ipc.errors import CodecError
from tests.test_codec import assert_same
from tests.test_codec_fast import as_bytes, assert_both_accept_the_same, keys, leaves, scalars

CELL_KINDS = [
    lambda i: np.full((3, 2), i, np.float32),
    lambda i: np.array(i, np.int64),
    lambda i: np.zeros((0, 4), np.uint8),
    lambda i: np.full(5000, i % 250, np.uint8),
    lambda i: np.full(4095, i % 250, np.uint8),
    lambda i: np.complex128(complex(i, -i)),
    lambda i: np.bool_(i % 2),
    lambda i: float(i) / 3,
    lambda i: i - (1 << 63),
    lambda i: i + (1 << 63),
    lambda i: i + (1 << 63) - 5,
    lambda i: i % 3 == 0,
    lambda i: f"row {i}",
    lambda i: None,
    lambda i: {},
    lambda i: [i, {"deep": i}],
    lambda i: {"x": i, "y": {"z": np.arange(i % 2, 4)}},
    lambda i: {"x": i} if i % 2 else {"y": i},
    lambda i: np.zeros(i % 3),
    lambda i: np.zeros(3, np.float32 if i % 5 else np.float64),
    lambda i: i if i % 7 else "seven",
    lambda i: np.arange(6).reshape(2, 3).T,
    lambda i: [{"a": j * i} for j in range(6)],
]


def table(kinds: list[int], count: int) -> list[dict[str, Any]]:
    return [{f"field {k}": CELL_KINDS[k](i) for k in kinds} for i in range(count)]


tables = st.builds(table, st.lists(st.integers(0, len(CELL_KINDS) - 1), unique=True, max_size=8), st.integers(0, 30))
rough = st.lists(st.dictionaries(st.sampled_from("abc") | keys, leaves | scalars, max_size=3), max_size=8)


def code_of(parts: list[Any]) -> int | None:
    """Return the extension type of a header's root, None if it is none."""
    node = msgspec.msgpack.decode(parts[0])
    return node.code if type(node) is Ext else None


@settings(max_examples=400, deadline=None)
@given(tables | rough)
def test_both_halves_write_the_same_and_read_what_was_given(tree: Any) -> None:
    parts = as_bytes(encode_in_python(tree))
    compiled = _fast.try_encode(tree)
    assert compiled is not NotImplemented
    assert as_bytes(compiled) == parts
    for copy in (False, True):
        assert_same(_fast.try_decode(parts, 0, copy), tree)
        assert_same(decode_in_python(parts, copy=copy), tree)


@settings(max_examples=300, deadline=None)
@given(tables, st.integers(0, 1 << 32))
def test_nothing_is_accepted_that_the_other_half_refuses(tree: Any, seed: int) -> None:
    assert_both_accept_the_same(tree, seed)


pytestmark = pytest.mark.usefixtures("codec_half")


def test_fifty_transitions_are_one_description_for_each_field() -> None:
    tree = [{"o": np.full(17, i, np.float32), "r": np.float32(i), "d": False} for i in range(50)]
    parts = codec.encode(tree)
    assert code_of(parts) == wire.ROWS
    assert len(parts[0]) < 100
    assert len(parts[1]) == 50 * 17 * 4 + 50 * 4 + 56
    assert_same(codec.decode(parts), tree)


@pytest.mark.parametrize(
    "tree",
    [
        [{"a": 1}] * (rows.MIN_ROWS - 1),
        [{}] * 10,
        [{"a": 1}] * 9 + [{"b": 1}],
        [{"a": 1}] * 9 + [{"a": 1, "b": 2}],
        [{"a": 1, "b": 2}] * 9 + [{"b": 2, "a": 1}],
        [{"a": 1, "b": 2}] * 9 + [{"a": 1}],
        [{"a": 1}] * 9 + [None],
        [None] * 9 + [{"a": 1}],
        [{1: 1}] * 9,
        [{"a": 1}] * 9 + [{b"a": 1}],
        [{f"field {i}": i for i in range(rows.MAX_FIELDS)}] * 4,
    ],
    ids=["few", "empty", "other key", "one more", "other order", "one less", "no dict", "first none", "int", "bytes", "fields"],
)
def test_what_is_not_alike_travels_as_a_list(tree: list[Any]) -> None:
    parts = codec.encode(tree)
    assert code_of(parts) is None
    assert_same(codec.decode(parts), tree)


def test_many_fields_and_levels() -> None:
    widest = [{f"field {i}": i for i in range(rows.MAX_FIELDS - 1)}] * 4
    deep: dict[str, Any] = {"leaf": 1}
    for _ in range(20):
        deep = {"x": deep, "y": 2}
    for tree in (widest, [deep] * 5):
        parts = codec.encode(tree)
        assert code_of(parts) == wire.ROWS
        assert_same(codec.decode(parts), tree)


def test_large_arrays_of_rows_are_not_copied() -> None:
    images = [np.full((64, 64, 3), i, np.uint8) for i in range(6)]
    parts = codec.encode([{"image": image, "reward": 0.5} for image in images])
    assert code_of(parts) == wire.ROWS
    own = [np.frombuffer(part, np.uint8) for part in parts[1:7]]
    assert all(np.shares_memory(part, image) for part, image in zip(own, images, strict=True))


def test_arrays_of_rows_are_read_only_views_or_copies_of_their_own() -> None:
    tree = [{"small": np.full(4, i), "wide": np.full((500,), i)} for i in range(40)]
    parts = as_bytes(codec.encode(tree))
    for row in codec.decode(parts):
        for cell in row.values():
            assert not cell.flags.owndata
            assert cell.flags.aligned
            with pytest.raises(ValueError, match="WRITEABLE"):
                cell.flags.writeable = True
    copies = codec.decode(parts, copy=True)
    for row in copies:
        for cell in row.values():
            assert cell.flags.writeable
            assert cell.flags.owndata
            cell += 1
    assert_same(codec.decode(parts), tree)


def test_device_arrays_and_ml_dtypes_in_rows() -> None:
    tree = [{"x": jnp.full(3, i), "y": jnp.ones(2, jnp.bfloat16), "z": i} for i in range(5)]
    decoded = codec.decode(codec.encode(tree))
    assert [row["z"] for row in decoded] == [0, 1, 2, 3, 4]
    assert all(np.array_equal(a["x"], b["x"]) and a["y"].dtype == b["y"].dtype for a, b in zip(decoded, tree, strict=True))


def test_an_error_in_a_row_is_placed() -> None:
    tree = {"batch": [{"x": i, "y": object() if i == 3 else None} for i in range(5)]}
    with pytest.raises(CodecError, match=r"\['batch'\]\[3\]\['y'\]"):
        codec.encode(tree)


def message(node: Any, *parts: bytes) -> list[bytes]:
    return [msgspec.msgpack.encode(Ext(wire.ROWS, msgspec.msgpack.encode(node))), *parts]


def column(text: str) -> Ext:
    return Ext(wire.PACKED_ARRAY, text.encode())


HOSTILE: list[tuple[Any, tuple[bytes, ...]]] = [
    ([], ()),
    ([2, "n"], ()),
    ({"a": 1}, ()),
    ([-1, "a", {"x": column("uint8:1")}], (bytes(8),)),
    ([1.0, "a", {"x": column("uint8:1")}], (bytes(8),)),
    ([True, "a", {"x": column("uint8:1")}], (bytes(8),)),
    ([1 << 63, "a", {"x": column("uint8:1")}], (bytes(8),)),
    ([1, b"a", {"x": column("uint8:1")}], (bytes(8),)),
    ([1, "a", [column("uint8:1")]], (bytes(8),)),
    ([1, "q", {"x": column("uint8:1")}], (bytes(8),)),
    ([1, "é", {"x": column("uint8:1")}], (bytes(8),)),
    ([1, "", {"x": column("uint8:1")}], (bytes(8),)),
    ([1, "aa", {"x": column("uint8:1")}], (bytes(8),)),
    ([1, "n", {"x": column("uint8:1")}], (bytes(8),)),
    ([1, "a", {1: column("uint8:1")}], (bytes(8),)),
    ([1, "a", {"x": 5}], ()),
    ([1, "a", {"x": None}], ()),
    ([2, "a", {"x": column("uint8:1")}], (bytes(8),)),
    ([1, "a", {"x": column("uint8:")}], (bytes(8),)),
    ([1, "s", {"x": column("uint8:1,1")}], (bytes(8),)),
    ([1, "f", {"x": column("float32:1")}], (bytes(8),)),
    ([1, "i", {"x": column("uint64:1")}], (bytes(8),)),
    ([1, "b", {"x": column("uint8:1")}], (bytes(8),)),
    ([2, "n", {"x": None}, 1], ()),
    ([2, "n", {"x": None}, 1, 2, 3], ()),
    ([1, "a", {"x": column("uint8:1")}, 7], (bytes(8),)),
    ([rows.MAX_CELLS, "a", {"x": column(f"uint8:{rows.MAX_CELLS},0")}], (b"",)),
    ([1 << 62, "a", {"x": column(f"uint8:{1 << 62},0")}], (b"",)),
    ([rows.MAX_CELLS + 1, "", {}], ()),
]


@pytest.mark.parametrize(("node", "parts"), HOSTILE)
def test_hostile_rows(node: Any, parts: tuple[bytes, ...]) -> None:
    with pytest.raises(CodecError):
        codec.decode(message(node, *parts))


def test_the_cells_of_a_message_are_bounded_over_all_its_lists() -> None:
    count = rows.MAX_CELLS // 4 + 1
    half = Ext(wire.ROWS, msgspec.msgpack.encode([count, "a", {"x": column(f"uint8:{count},0")}]))
    assert len(codec.decode([msgspec.msgpack.encode([half]), b""])[0]) == count
    with pytest.raises(CodecError, match="cells"):
        codec.decode([msgspec.msgpack.encode([half, half]), b""])


def test_more_rows_than_a_message_may_have_as_columns_travel_all_the_same() -> None:
    tree = [{"a": i} for i in range(rows.MAX_CELLS // 2 + 1)]
    parts = codec.encode(tree)
    assert code_of(parts) is None
    assert len(codec.decode(parts)) == len(tree)
