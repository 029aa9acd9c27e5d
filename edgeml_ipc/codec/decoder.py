"""Bytes to tree: one msgspec call with a hook that turns extension types into arrays and containers.

What arrives is not trusted: depth, dtypes, shapes, sizes and counts are checked before anything of that size is made,
and whatever is wrong ends as `CodecError`.
"""

from __future__ import annotations

import importlib
import keyword
import math
import re
import struct
from collections import OrderedDict, namedtuple
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, TypeAlias

import msgspec
import numpy as np

from edgeml_ipc.codec import wire
from edgeml_ipc.codec.compression import decompress
from edgeml_ipc.codec.registry import Expanded, registration_named
from edgeml_ipc.codec.rows import MAX_CELLS, rows_of
from edgeml_ipc.codec.wire import COMPRESSED_ARRAY, OWN_ARRAY, OWN_BYTES, PACKED_ARRAY, ROWS, SCALAR, TUPLE
from edgeml_ipc.errors import CodecError

try:
    import edgeml_ipc.codec._fast as _fast
except ImportError:  # not built: there is no C compiler, or it is a free-threaded Python
    _fast = None  # type: ignore[assignment]

Hook: TypeAlias = Callable[[int, memoryview], Any]
Plan: TypeAlias = tuple[tuple[int, ...], "np.dtype[Any]", int, int]  # shape, dtype, bytes, bytes with padding

_decode_msgpack = msgspec.msgpack.decode

# Each level of nesting costs a header byte out of this set: a map or list, or the code of a nested extension type.
_OPENERS = frozenset([*range(0x80, 0xA0), *range(0xDC, 0xE0), *range(wire.TUPLE, wire.ROWS + 1)])
_NOT_OPENERS = bytes(sorted(set(range(256)) - _OPENERS))
# msgpack's own timestamp has extension type -1, after a length of 4, 8 or 12 bytes; msgspec makes a datetime of it.
_TIMESTAMP = re.compile(rb"[\xd6\xd7\x04\x08\x0c]\xff")

_CONTAINERS = frozenset({dict, list, tuple})
_IN_SHARED = frozenset({PACKED_ARRAY, SCALAR})
_COMPLEX = struct.Struct("<dd")
_plans: dict[bytes, Plan] = {}


def decode_in_python(parts: Sequence[Any], first: int = 0, copy: bool = False, objects: bool = True) -> Any:
    """See `edgeml_ipc.codec.decode`.

    Args:
        first: where the header is among the parts; what lies before it is not for the codec.
        objects: make objects of registered classes; otherwise each is left as a `registry.Expanded`.
    """
    if first:
        parts = parts[first:]
    next_part = 1
    shared: Any = None  # the last part, once a small array asked for it
    offset = 0  # of the next small array within it
    inflatable_bytes = wire.MAX_INFLATED_BYTES  # what compressed arrays may still yield
    cells_left = MAX_CELLS

    def hook(code: int, data: memoryview) -> Any:
        nonlocal next_part, shared, offset, inflatable_bytes, cells_left
        if code in _IN_SHARED:
            if shared is None:
                shared = _readable(_part(parts, max(next_part, len(parts) - 1)))
            shape, dtype, _, step = _plans.get(bytes(data)) or _plan(bytes(data))
            array: np.ndarray[Any, Any] = np.ndarray(shape, dtype, shared, offset)
            offset += step
            if code == SCALAR:
                if shape:
                    raise CodecError(f"a scalar has the shape {shape}")
                return array[()]
            return array.copy() if copy else array
        if code == OWN_ARRAY:
            shape, dtype, nbytes, _ = _plans.get(bytes(data)) or _plan(bytes(data))
            part = _readable(_part(parts, next_part))
            if len(part) != nbytes:
                raise CodecError(f"{dtype.name}{list(shape)} has {nbytes} bytes, but its part has {len(part)}")
            next_part += 1
            array = np.ndarray(shape, dtype, part)
            return array.copy() if copy else array
        if code == OWN_BYTES:
            next_part += 1
            return bytes(memoryview(_part(parts, next_part - 1)))
        if code == COMPRESSED_ARRAY:
            array = decompress(bytes(data), _part(parts, next_part), inflatable_bytes)
            next_part += 1
            inflatable_bytes -= array.nbytes
            if copy and not array.flags.writeable:
                return array.copy()
            array.flags.writeable = copy
            return array
        if code == ROWS:
            rows, cells = rows_of(_decode_msgpack(data, ext_hook=hook), cells_left, copy=copy)  # noqa: F821 - as below
            cells_left -= cells
            return rows
        if TUPLE <= code < ROWS:
            return _container(code, _decode_msgpack(data, ext_hook=hook), objects)  # noqa: F821 - deleted only at the end
        return _leaf(code, bytes(data))

    try:
        header = _checked_header(parts)
        tree = _decode_msgpack(header, ext_hook=hook)
        used = next_part + (shared is not None)
        if used != len(parts):
            raise CodecError(f"the message has {len(parts)} parts, of which its header uses {used}")
        if shared is not None and offset != len(shared):
            raise CodecError(f"the shared part has {len(shared)} bytes, of which the header uses {offset}")
        return tree
    except (msgspec.DecodeError, ValueError, TypeError, LookupError, ArithmeticError, BufferError, RecursionError) as error:
        raise CodecError(f"the message is malformed: {error}") from error
    finally:
        del hook  # it refers to itself, and so would keep the parts, and what they lie in, until the next garbage collection


def _checked_header(parts: Sequence[Any]) -> bytes:
    if not 0 < len(parts) <= wire.MAX_PARTS:
        raise CodecError(f"a message has 1 to {wire.MAX_PARTS} parts, not {len(parts)}")
    header = parts[0]
    if type(header) is not bytes:
        header = bytes(memoryview(header))
    if (len(header) > wire.MAX_DEPTH and len(header.translate(None, _NOT_OPENERS)) > wire.MAX_DEPTH) or (
        0xFF in header and _TIMESTAMP.search(header)
    ):
        _inspect(header)
    return header


def _part(parts: Sequence[Any], index: int) -> Any:
    if index >= len(parts):
        raise CodecError(f"the header uses more than the {len(parts)} parts of the message")
    return parts[index]


def _readable(part: Any) -> Any:
    """Return bytes as they are, else the part as read-only uint8; arrays made on either keep it alive and cannot write.

    numpy looks through a memoryview, so that on a writable part `flags.writeable = True` would work; not through an array.
    """
    return part if type(part) is bytes else np.frombuffer(memoryview(part).toreadonly(), np.uint8)


def _plan(text: bytes) -> Plan:
    """Parse an array's description once, and remember it."""
    dtype, shape = wire.parse_array_text(text)
    nbytes = math.prod(shape) * dtype.itemsize
    if len(_plans) >= wire.MAX_CACHED:
        _plans.clear()
    plan = _plans[text] = shape, dtype, nbytes, nbytes + -nbytes % wire.ALIGNMENT
    return plan


def _leaf(code: int, data: bytes) -> Any:
    if code == wire.COMPLEX:
        if len(data) != _COMPLEX.size:
            raise CodecError(f"a complex number has {_COMPLEX.size} bytes, not {len(data)}")
        return complex(*_COMPLEX.unpack(data))
    if code == wire.BIG_INT:
        if len(data) > wire.MAX_BIG_INT_BYTES:
            raise CodecError(f"an int of {len(data)} bytes is over the limit of {wire.MAX_BIG_INT_BYTES}")
        return int.from_bytes(data, "little", signed=True)
    if code == wire.SURROGATE_STR:
        return data.decode("utf-8", "surrogatepass")
    raise CodecError(f"extension type {code} means nothing to this version")


def _container(code: int, inner: Any, objects: bool) -> Any:
    if code == wire.FROZEN_DICT:
        return _frozen_dict()(_expect(dict, inner))
    items = _expect(list, inner)
    if code == wire.TUPLE:
        return tuple(items)
    if code == wire.SET:
        return set(items)
    if code == wire.FROZENSET:
        return frozenset(items)
    if code == wire.PAIRS:
        return dict(zip(items[::2], items[1::2], strict=True))
    if code == wire.ORDERED_DICT:
        return OrderedDict(zip(items[::2], items[1::2], strict=True))
    if code == wire.NAMEDTUPLE:
        name, fields, *values = items
        return namedtuple_class(_expect(str, name), tuple(_expect(str, fields).split()))(*values)
    name, tree = items
    if not objects:
        return Expanded(_expect(str, name), tree)
    registration = registration_named(_expect(str, name))
    try:
        return registration.from_tree(tree)
    except CodecError:
        raise
    except Exception as error:  # a user's function; whatever it raises reaches the caller as CodecError
        raise CodecError(f"from_tree of {registration.cls.__qualname__!r} refused the message: {error!r}") from error


def _expect(kind: type[Any], value: Any) -> Any:
    if type(value) is not kind:
        raise CodecError(f"the header has a {type(value).__name__} where a {kind.__name__} belongs")
    return value


@lru_cache(maxsize=256)
def namedtuple_class(name: str, fields: tuple[str, ...]) -> Callable[..., Any]:
    """Return a namedtuple class of that name with those fields; always the same one while it is among the recent ones.

    Raises:
        CodecError: they cannot be the names of a namedtuple and of its fields, or are too many or too long.
    """
    if len(fields) > wire.MAX_NAMEDTUPLE_FIELDS:
        raise CodecError(f"a namedtuple of {len(fields)} fields is over the limit of {wire.MAX_NAMEDTUPLE_FIELDS}")
    for word in (name, *fields):
        if type(word) is not str or len(word) > wire.MAX_NAME_CHARS or not word.isidentifier() or keyword.iskeyword(word):
            raise CodecError(f"{str(word)[:64]!r} cannot be the name of a namedtuple or of its field")
    return namedtuple(name, fields, module=__name__)  # refuses "_x" and doubles by ValueError


@lru_cache(maxsize=1)
def _frozen_dict() -> Callable[[dict[Any, Any]], Any]:
    """Return flax's FrozenDict, or dict where flax is not installed."""
    try:
        return importlib.import_module("flax.core.frozen_dict").FrozenDict  # type: ignore[no-any-return]
    except ImportError:
        return dict


def _inspect(header: bytes) -> None:
    """Measure a header that may be too deep or hold a timestamp; the cheap test that leads here also has false alarms.

    Raises:
        CodecError: it nests deeper than `MAX_DEPTH`, or holds a timestamp.
    """

    def skeleton(code: int, data: memoryview) -> Any:
        # Leaves are all different, so that no key of a map hides another one and what lies below it.
        return _decode_msgpack(data, ext_hook=skeleton) if wire.TUPLE <= code <= wire.ROWS else object()

    level = [_decode_msgpack(header, ext_hook=skeleton)]
    for depth in range(wire.MAX_DEPTH + 1):
        if datetime in set(map(type, level)):
            raise CodecError("the header holds a timestamp, which is not among the codec's types")
        containers = [node for node in level if type(node) in _CONTAINERS]
        if not containers:
            return
        if depth == wire.MAX_DEPTH:
            raise CodecError(f"the message nests deeper than {wire.MAX_DEPTH} levels")
        level = []
        for node in containers:
            level += node
            if type(node) is dict:
                level += node.values()


decode: Callable[..., Any] = decode_in_python
if _fast is not None:
    _fast.prepare_decode(decode_in_python)
    decode = _fast.decode
