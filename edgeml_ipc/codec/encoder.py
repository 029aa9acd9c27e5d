"""Tree to bytes: one walk that checks types and puts extension types in the place of special nodes, then one msgspec call.

The walk looks up a handler by the exact type of each node. Most leaves are written by msgspec as they are; an int past
64 bits or a string with lone surrogates makes msgspec refuse, and only then are the leaves looked at one by one.

Where the compiled half is there (`_fast.pyi`), it is asked first, and what it has no form for is done here.
"""

from __future__ import annotations

import math
import struct
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import msgspec
import numpy as np
from msgspec.msgpack import Ext

from edgeml_ipc.codec import wire
from edgeml_ipc.codec.compression import CompressedArray, describe
from edgeml_ipc.codec.decoder import namedtuple_class
from edgeml_ipc.codec.registry import Expanded, advice, registration_of
from edgeml_ipc.codec.rows import MAX_CELLS, columns_of
from edgeml_ipc.errors import CodecError

try:
    import edgeml_ipc.codec._fast as _fast
except ImportError:  # not built: there is no C compiler, or it is a free-threaded Python
    _fast = None  # type: ignore[assignment]


class _TooDeep(CodecError):
    pass


class Out:
    """What one walk collects beside the header."""

    __slots__ = ("cells_left", "inflated_bytes", "own", "shared")

    def __init__(self) -> None:
        self.own: list[Any] = [b""]  # parts: the header's place, then one for each large array or bytes
        self.shared: list[bytes] = []  # pieces of the last part, which small arrays share
        self.inflated_bytes = 0  # what the compressed arrays yield
        self.cells_left = MAX_CELLS  # of lists of rows


Handler: TypeAlias = Callable[[Any, Out, int], Any]  # node, out, depth of the node -> what msgspec shall write

_encode_msgpack = msgspec.msgpack.Encoder().encode
_COMPLEX = struct.Struct("<dd")
_OWN_BYTES = Ext(wire.OWN_BYTES, b"")
_FIRST_USER_DTYPE = 256  # numpy numbers dtypes that it did not define itself from here on
_array_plans: dict[tuple[np.dtype[Any], tuple[int, ...]], tuple[Ext, bytes, bool]] = {}  # extension, padding, part of its own?
_PLAIN = frozenset({type(None), bool, int, float, str})
_PLAIN_KEYS = _PLAIN | {bytes}


def encode_in_python(tree: Any) -> list[Any]:
    """See `edgeml_ipc.codec.encode`."""
    out = Out()
    try:
        parts = out.own
        parts[0] = _write(tree if type(tree) in _PLAIN else _handlers[type(tree)](tree, out, 1))
    except _TooDeep as error:
        raise CodecError(f"cannot encode payload: {error}") from None
    except CodecError as error:
        raise CodecError(f"cannot encode payload{_find(tree)}: {error}") from error.__cause__
    shared = out.shared
    if shared:
        parts.append(shared[0] if len(shared) == 1 else b"".join(shared))
    if len(parts) > wire.MAX_PARTS:
        raise CodecError(
            f"cannot encode payload: {len(parts)} arrays and bytes of {wire.OWN_PART_BYTES} bytes or more in one message are "
            f"over the limit of {wire.MAX_PARTS}; stack them"
        )
    return parts


def _write(node: Any) -> bytes:
    """Serialize what the walk made."""
    try:
        return _encode_msgpack(node)
    except (OverflowError, UnicodeEncodeError):
        return _encode_msgpack(_bridge(node))


def _bridge(node: Any) -> Any:
    """Replace the leaves that msgpack has no form for: ints past 64 bits and strings with lone surrogates."""
    kind = type(node)
    if kind is int and not -(1 << 63) <= node < 1 << 64:
        nbytes = node.bit_length() // 8 + 1
        if nbytes > wire.MAX_BIG_INT_BYTES:
            raise CodecError(f"an int of {node.bit_length()} bits is over the limit of {wire.MAX_BIG_INT_BYTES * 8 - 1}")
        return Ext(wire.BIG_INT, node.to_bytes(nbytes, "little", signed=True))
    if kind is str:
        return node if node.isascii() else _bridge_str(node)
    if kind is list:
        return [_bridge(item) for item in node]
    if kind is dict:
        keys = [_bridge(key) for key in node]
        values = [_bridge(value) for value in node.values()]
        if not any(type(key) is Ext for key in keys):
            return dict(zip(keys, values, strict=True))
        return Ext(wire.PAIRS, _encode_msgpack([item for pair in zip(keys, values, strict=True) for item in pair]))
    return node


def _bridge_str(text: str) -> Any:
    try:
        text.encode()
    except UnicodeEncodeError:
        return Ext(wire.SURROGATE_STR, text.encode("utf-8", "surrogatepass"))
    return text


# Containers


def _walk(items: Iterable[Any], out: Out, depth: int) -> list[Any]:
    """Walk the items of a container that is at `depth`."""
    if depth > wire.MAX_DEPTH:
        raise _TooDeep(f"it nests deeper than {wire.MAX_DEPTH} levels, or contains itself")
    depth += 1
    return [item if (kind := type(item)) in _PLAIN else _handlers[kind](item, out, depth) for item in items]


def _list(node: list[Any], out: Out, depth: int) -> list[Any] | Ext:
    columns = columns_of(node, depth, out.cells_left)
    if columns is None:
        return _walk(node, out, depth)
    out.cells_left -= columns.cells
    tree = _dict(columns.tree, out, depth + 1)
    return Ext(wire.ROWS, _write([len(node), columns.kinds, tree, *_walk(columns.nodes, out, depth)]))


def _dict(node: dict[Any, Any], out: Out, depth: int) -> Any:
    for key in node:
        if type(key) not in _PLAIN_KEYS:
            return _pairs(wire.PAIRS, node, out, depth)
    if depth > wire.MAX_DEPTH:
        raise _TooDeep(f"it nests deeper than {wire.MAX_DEPTH} levels, or contains itself")
    depth += 1
    return {
        key: value if (kind := type(value)) in _PLAIN else _handlers[kind](value, out, depth) for key, value in node.items()
    }


def _pairs(code: int, node: dict[Any, Any], out: Out, depth: int) -> Ext:
    return Ext(code, _write(_walk((item for pair in node.items() for item in pair), out, depth)))


def _ordered_dict(node: OrderedDict[Any, Any], out: Out, depth: int) -> Ext:
    return _pairs(wire.ORDERED_DICT, node, out, depth)


def _frozen_dict(node: Any, out: Out, depth: int) -> Ext:
    walked = _dict(node.unfreeze(), out, depth)
    if type(walked) is not dict:
        raise CodecError("a FrozenDict travels with keys that are str, int, float, bool, bytes or None only")
    return Ext(wire.FROZEN_DICT, _write(walked))


def _tuple(node: tuple[Any, ...], out: Out, depth: int) -> Ext:
    return Ext(wire.TUPLE, _write(_walk(node, out, depth)))


def _set(node: set[Any], out: Out, depth: int) -> Ext:
    return Ext(wire.SET, _write(_walk(node, out, depth)))


def _frozenset(node: frozenset[Any], out: Out, depth: int) -> Ext:
    return Ext(wire.FROZENSET, _write(_walk(node, out, depth)))


def _namedtuple_handler(cls: type[Any]) -> Handler:
    names = [cls.__name__, " ".join(cls._fields)]
    try:
        namedtuple_class(cls.__name__, cls._fields)
    except (CodecError, ValueError) as error:
        raise CodecError(f"the namedtuple {_name(cls)} must be registered on both ends by codec.register: {error}") from error
    return lambda node, out, depth: Ext(wire.NAMEDTUPLE, _write(names + _walk(node, out, depth)))


def _registered(node: Any, out: Out, depth: int) -> Ext:
    registration = registration_of(type(node))
    assert registration is not None  # this handler was chosen because it is there, and none is ever removed
    return Ext(wire.REGISTERED, _write([registration.name, *_walk((registration.to_tree(node),), out, depth)]))


def _expanded(node: Expanded, out: Out, depth: int) -> Ext:
    return Ext(wire.REGISTERED, _write([node.name, *_walk((node.tree,), out, depth)]))


# Leaves


def _bytes(node: bytes, out: Out, depth: int) -> Any:
    if len(node) < wire.OWN_PART_BYTES:
        return node
    out.own.append(node)
    return _OWN_BYTES


def _complex(node: complex, out: Out, depth: int) -> Ext:
    return Ext(wire.COMPLEX, _COMPLEX.pack(node.real, node.imag))


def _array(node: np.ndarray[Any, Any], out: Out, depth: int) -> Ext:
    try:
        ext, padding, own = _array_plans[node.dtype, node.shape]
    except KeyError:
        return _first_array(node, out, depth)
    if own:
        out.own.append(exportable(node))
    else:
        out.shared.append(node.tobytes())
        if padding:
            out.shared.append(padding)
    return ext


def _first_array(node: np.ndarray[Any, Any], out: Out, depth: int) -> Ext:
    """Encode the first array of its dtype and shape, and remember how; big-endian ones are converted each time."""
    dtype, shape = node.dtype, node.shape
    _check_dtype(dtype)
    if dtype.byteorder == ">" or (dtype.byteorder == "=" and sys.byteorder == "big"):
        return _array(node.astype(wire.dtype_named(dtype.name)), out, depth)
    if len(shape) > wire.MAX_NDIM:
        raise CodecError(f"an array of {len(shape)} dimensions is over the limit of {wire.MAX_NDIM}")
    own = node.nbytes >= wire.OWN_PART_BYTES
    ext = Ext(wire.OWN_ARRAY if own else wire.PACKED_ARRAY, wire.array_text(dtype, shape))
    if len(_array_plans) >= wire.MAX_CACHED:
        _array_plans.clear()
    _array_plans[dtype, shape] = ext, bytes(-node.nbytes % wire.ALIGNMENT), own
    return _array(node, out, depth)


def _compressed_array(node: CompressedArray, out: Out, depth: int) -> Ext:
    out.inflated_bytes += math.prod(node.shape) * node.dtype.itemsize
    if out.inflated_bytes > wire.MAX_INFLATED_BYTES:
        raise CodecError(f"compressed arrays of more than {wire.MAX_INFLATED_BYTES} bytes in one message")
    out.own.append(node.data)
    return Ext(wire.COMPRESSED_ARRAY, describe(node))


def exportable(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the array, or a view, that exports its bytes in C order; a copy only where its memory is in another order."""
    if not array.flags.c_contiguous:
        array = np.ascontiguousarray(array)
    return array if array.dtype.num < _FIRST_USER_DTYPE else array.view(np.uint8)


def _scalar_handler(cls: type[np.generic]) -> Handler:
    dtype = np.dtype(cls)
    _check_dtype(dtype)
    ext = Ext(wire.SCALAR, wire.array_text(dtype, ()))
    padding = bytes(-dtype.itemsize % wire.ALIGNMENT)

    def scalar(node: Any, out: Out, depth: int) -> Ext:
        out.shared.append(node.tobytes() + padding)
        return ext

    return scalar


def _check_dtype(dtype: np.dtype[Any]) -> None:
    if dtype.hasobject:
        raise CodecError(
            f"an array of dtype {dtype} holds Python objects, which never travel (nothing is unpickled); send a list of its "
            "items, or an array of numbers"
        )
    if not (dtype.num < _FIRST_USER_DTYPE and dtype.name in wire.NUMPY_DTYPES) and not wire.is_ml_dtype(dtype):
        raise CodecError(f"dtype {dtype} cannot travel; these can: {', '.join(wire.NUMPY_DTYPES + wire.ML_DTYPES)}")


def _device_array(node: Any, out: Out, depth: int) -> Ext:
    """Encode a JAX array through its host buffer: a view on the CPU, a transfer from elsewhere."""
    try:
        host = np.asarray(node)
    except (TypeError, ValueError, RuntimeError) as error:  # traced, deleted, a PRNG key, spread over other hosts
        raise CodecError(f"a {_name(type(node))} has no array on this host: {error}") from error
    return _array(host, out, depth)


# Which handler


class _Handlers(dict[type[Any], Handler]):
    """Handlers by exact type; what is looked up for the first time is decided once."""

    def __missing__(self, cls: type[Any]) -> Handler:
        handler = _handler_for(cls)
        if len(self) < wire.MAX_CACHED:
            self[cls] = handler
        return handler


_BUILT_IN: dict[type[Any], Handler] = {
    dict: _dict,
    list: _list,
    tuple: _tuple,
    set: _set,
    frozenset: _frozenset,
    OrderedDict: _ordered_dict,
    bytes: _bytes,
    complex: _complex,
    np.ndarray: _array,
    np.memmap: _array,
    CompressedArray: _compressed_array,
    Expanded: _expanded,
}
_handlers = _Handlers(_BUILT_IN)


def _handler_for(cls: type[Any]) -> Handler:
    if registration_of(cls) is not None:
        return _registered
    module = cls.__module__
    if module == "flax.core.frozen_dict" and cls.__name__ == "FrozenDict":
        return _frozen_dict
    if issubclass(cls, np.generic):
        return _scalar_handler(cls)
    if module.partition(".")[0] in ("jax", "jaxlib") and hasattr(cls, "__array__"):
        return _device_array
    if issubclass(cls, tuple) and hasattr(cls, "_fields"):
        return _namedtuple_handler(cls)
    raise CodecError(f"{_name(cls)} is not among the types that travel; {advice(cls)}")


def _name(cls: type[Any]) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def forget(cls: type[Any]) -> None:
    """Forget how objects of that class were handled before it was registered."""
    _handlers.pop(cls, None)


def is_built_in(cls: type[Any]) -> bool:
    """Tell whether the codec has a form of its own for that class."""
    return cls in _PLAIN or cls in _BUILT_IN or issubclass(cls, np.generic)


# Where it went wrong


def _find(tree: Any) -> str:
    """Return the path to the node that cannot be encoded, such as `['observations'][3]`; slow, for errors only."""
    path = ""
    for _ in range(wire.MAX_DEPTH):
        for step, child in _children(tree):
            try:
                _write(child if type(child) in _PLAIN else _handlers[type(child)](child, Out(), 1))
            except CodecError:
                path, tree = f"{path}[{step!r:.80}]", child
                break
        else:
            break
    return path


def _children(node: Any) -> Iterable[tuple[Any, Any]]:
    if type(node) is dict:
        return node.items()
    return enumerate(node) if type(node) in (list, tuple) else ()


# For the compiled half


def _to_host(node: Any) -> np.ndarray[Any, Any] | None:
    """Return a plain little-endian ndarray in C order that has the node's bytes, or None where the node is no array."""
    if type(node) is not np.ndarray:
        if _handlers[type(node)] not in (_array, _device_array):
            return None
        node = np.asarray(node)
    return np.asarray(node, node.dtype.newbyteorder("<"), order="C")


encode: Callable[[Any], list[Any]] = encode_in_python
if _fast is not None:
    _fast.prepare_encode(_to_host, encode_in_python)
    encode = _fast.encode
