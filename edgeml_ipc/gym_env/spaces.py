"""Gymnasium's spaces as trees that the codec carries, and back: a schema, so that nothing has to be unpickled."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
from gymnasium import Space, spaces
from gymnasium.spaces.graph import GraphInstance

from edgeml_ipc import codec
from edgeml_ipc.codec.wire import dtype_named
from edgeml_ipc.errors import CodecError

MAX_SPACES: Final = 4096  # within one
MAX_BOUNDS_BYTES: Final = 1 << 30  # of one Box: no message could hold a larger observation
_MALFORMED: Final = (ValueError, TypeError, KeyError, AttributeError, AssertionError, OverflowError, IndexError)

codec.register(GraphInstance, "gymnasium.GraphInstance")  # the values of a Graph space

Schema = dict[str, Any]


# --- to a schema --------------------------------------------------------------------------------------------------------


def describe(space: Space[Any], where: str = "the space") -> Schema:
    """Return the schema of a space of gymnasium's own kinds.

    Raises:
        CodecError: it is, or contains, a space of another class; the message says where.
    """
    describer = _DESCRIBERS.get(type(space))
    if describer is None:
        raise CodecError(
            f"{where} is a {type(space).__module__}.{type(space).__qualname__}, which cannot be described to another process; "
            f"these can: {', '.join(kind.__name__ for kind in _DESCRIBERS)}"
        )
    return {"kind": type(space).__name__, **describer(space, where)}


def _describe_box(space: spaces.Box, _: str) -> Schema:
    schema: Schema = {"dtype": space.dtype.name, "shape": space.shape}
    for name, bound, bounded in (("low", space.low, space.bounded_below), ("high", space.high, space.bounded_above)):
        schema[name] = _one_for_all(bound)
        if space.dtype.kind == "i" and not bounded.all():  # gymnasium writes the dtype's limit for "none"
            schema[f"{name}_bounded"] = _one_for_all(bounded)
    return schema


def _one_for_all(array: np.ndarray[Any, Any]) -> Any:
    """Return the one value that all elements have, or else the array."""
    return array.flat[0] if array.size and (array == array.flat[0]).all() else array


def _describe_dict(space: spaces.Dict, where: str) -> Schema:
    return {"spaces": [[key, describe(inner, f"{where}[{key!r}]")] for key, inner in space.spaces.items()]}


def _describe_row(space: spaces.Tuple[Any] | spaces.OneOf[Any], where: str) -> Schema:
    return {"spaces": [describe(inner, f"{where}[{i}]") for i, inner in enumerate(space.spaces)]}


def _describe_graph(space: spaces.Graph, where: str) -> Schema:
    edge = None if space.edge_space is None else describe(space.edge_space, f"{where}.edge_space")
    return {"node": describe(space.node_space, f"{where}.node_space"), "edge": edge}


_DESCRIBERS: dict[type, Callable[[Any, str], Schema]] = {
    spaces.Box: _describe_box,
    spaces.Discrete: lambda space, _: {"n": int(space.n), "start": int(space.start), "dtype": np.dtype(space.dtype).name},
    spaces.MultiBinary: lambda space, _: {"shape": space.shape},
    spaces.MultiDiscrete: lambda space, _: {"nvec": space.nvec, "start": space.start, "dtype": space.dtype.name},
    spaces.Text: lambda space, _: {
        "min_length": space.min_length,
        "max_length": space.max_length,
        "charset": "".join(space.character_list),
    },
    spaces.Dict: _describe_dict,
    spaces.Tuple: _describe_row,
    spaces.OneOf: _describe_row,
    spaces.Sequence: lambda space, where: {
        "space": describe(space.feature_space, f"{where}.feature_space"),
        "stack": space.stack,
    },
    spaces.Graph: _describe_graph,
}


# --- from a schema --------------------------------------------------------------------------------------------------------


def build(schema: Any) -> Space[Any]:
    """Return the space that a schema describes.

    Args:
        schema: from a peer, and not trusted.
    Raises:
        CodecError: it describes no space, or one over a limit.
    """
    return _Builder().build(schema)


class _Builder:
    """Builds one space and those within it; counts them."""

    def __init__(self) -> None:
        self._left = MAX_SPACES

    def build(self, schema: Any) -> Space[Any]:
        self._left -= 1
        if self._left < 0:
            raise CodecError(f"a space of more than {MAX_SPACES} spaces is over the limit")
        kind = schema.get("kind") if isinstance(schema, Mapping) else None
        builder = _BUILDERS.get(kind) if isinstance(kind, str) else None
        if builder is None:
            raise CodecError(f"not the schema of a space: {str(schema)[:200]}")
        try:
            return builder(self, schema)
        except _MALFORMED as error:
            raise CodecError(f"the schema of a {kind} describes none: {error!r}") from error

    def box(self, schema: Schema) -> spaces.Box:
        shape, dtype = _shape(schema["shape"]), dtype_named(schema["dtype"])
        if math.prod(shape) * dtype.itemsize > MAX_BOUNDS_BYTES:
            raise CodecError(f"a Box of shape {shape} is over the limit of {MAX_BOUNDS_BYTES:,} bytes")
        low, high = (np.array(np.broadcast_to(np.asarray(schema[name], dtype), shape)) for name in ("low", "high"))
        space = spaces.Box(low, high, shape, dtype.type)
        for name in ("low", "high"):
            if f"{name}_bounded" in schema:
                bounded = np.array(np.broadcast_to(np.asarray(schema[f"{name}_bounded"], bool), shape))
                setattr(space, "bounded_below" if name == "low" else "bounded_above", bounded)
        return space

    def discrete(self, schema: Schema) -> spaces.Discrete[Any]:
        n, start, dtype = int(schema["n"]), int(schema["start"]), dtype_named(schema["dtype"])
        if dtype == np.int64:
            return spaces.Discrete(n, start=start)  # older gymnasium has no other
        return spaces.Discrete(n, start=start, dtype=dtype.type)

    def multi_binary(self, schema: Schema) -> spaces.MultiBinary:
        shape = _shape(schema["shape"])
        return spaces.MultiBinary(shape[0] if len(shape) == 1 else shape)

    def multi_discrete(self, schema: Schema) -> spaces.MultiDiscrete[Any]:
        dtype = dtype_named(schema["dtype"])
        nvec, start = (np.array(schema[name], dtype) for name in ("nvec", "start"))
        return spaces.MultiDiscrete(nvec, dtype=dtype.type, start=start)

    def text(self, schema: Schema) -> spaces.Text:
        return spaces.Text(int(schema["max_length"]), min_length=int(schema["min_length"]), charset=str(schema["charset"]))

    def dict(self, schema: Schema) -> spaces.Dict:
        return spaces.Dict([(key, self.build(inner)) for key, inner in schema["spaces"]])

    def tuple(self, schema: Schema) -> spaces.Tuple[Any]:
        return spaces.Tuple([self.build(inner) for inner in schema["spaces"]])

    def one_of(self, schema: Schema) -> spaces.OneOf[Any]:
        return spaces.OneOf([self.build(inner) for inner in schema["spaces"]])

    def sequence(self, schema: Schema) -> spaces.Sequence:
        return spaces.Sequence(self.build(schema["space"]), stack=bool(schema["stack"]))

    def graph(self, schema: Schema) -> spaces.Graph:
        edge = schema["edge"]
        return spaces.Graph(self.build(schema["node"]), None if edge is None else self.build(edge))


def _shape(shape: Any) -> tuple[int, ...]:
    if not isinstance(shape, list | tuple) or any(type(size) is not int or size < 0 for size in shape):
        raise CodecError(f"a shape must be a tuple of ints from 0, got {shape!r}")
    if len(shape) > 32 or math.prod(shape) > MAX_BOUNDS_BYTES:
        raise CodecError(f"the shape {shape!r} is over the limit of 32 dimensions and {MAX_BOUNDS_BYTES:,} elements")
    return tuple(shape)


_BUILDERS: dict[str, Callable[[_Builder, Schema], Space[Any]]] = {
    "Box": _Builder.box,
    "Discrete": _Builder.discrete,
    "MultiBinary": _Builder.multi_binary,
    "MultiDiscrete": _Builder.multi_discrete,
    "Text": _Builder.text,
    "Dict": _Builder.dict,
    "Tuple": _Builder.tuple,
    "OneOf": _Builder.one_of,
    "Sequence": _Builder.sequence,
    "Graph": _Builder.graph,
}
