"""Columns: the fields of a tree of transitions, and whether what is given fits them.

Knows names, shapes and dtypes; knows nothing of memory, episodes, ids or sampling.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]
Path: TypeAlias = tuple[str, ...]


@dataclass(frozen=True)
class DataShape:
    """Name, shape and dtype of one stored field.

    Attributes:
        name: key of the field; `"observations.image"` names a field within a nested dict.
        shape: shape of one item, without a leading batch axis.
        dtype: name of a numpy dtype.

    Example:
        >>> DataShape("actions", (2,))
        DataShape(name='actions', shape=(2,), dtype='float32')
    """

    name: str
    shape: tuple[int, ...] = ()
    dtype: str = "float32"


def shapes_of_space(name: str, space: Any) -> list[DataShape]:
    """List the fields that a gymnasium space's samples have: one, or one for each leaf of a (nested) Dict space.

    Raises:
        TypeError: the space is neither a Dict nor one with a shape and a dtype.
    """
    spaces = getattr(space, "spaces", None)
    if isinstance(spaces, Mapping):
        return [shape for key, child in spaces.items() for shape in shapes_of_space(f"{name}.{key}", child)]
    shape, dtype = getattr(space, "shape", None), getattr(space, "dtype", None)
    if shape is None or dtype is None:
        raise TypeError(f"the space of {name!r} must be a Dict, or have a shape and a dtype, got {space!r}")
    return [DataShape(name, tuple(shape), np.dtype(dtype).name)]


def dtype_of(name: str) -> np.dtype[Any]:
    """Return the dtype of that name; bfloat16 and the float8s are found where ml_dtypes is installed.

    Raises:
        TypeError: there is no such dtype, or its values are Python objects.
    """
    try:
        dtype = np.dtype(name)
    except TypeError:
        try:
            import ml_dtypes
        except ImportError as error:
            raise TypeError(f"no dtype is called {name!r}; without ml_dtypes there is no bfloat16 and no float8") from error
        if not hasattr(ml_dtypes, name):
            raise
        dtype = np.dtype(getattr(ml_dtypes, name))
    if dtype.hasobject:
        raise TypeError(f"dtype {name!r} holds Python objects, which cannot be stored")
    return dtype


class Columns:
    """The fields of an item, a tree with a shape and a dtype for each leaf, and the arrays that store them."""

    def __init__(self, shapes: Iterable[DataShape], arrays: Mapping[str, Array]) -> None:
        """Name the fields of an item; `arrays` has those that are stored, by name."""
        self.shapes = {shape.name: shape for shape in shapes}
        self.arrays = dict(arrays)
        self._dtypes = {name: dtype_of(shape.dtype) for name, shape in self.shapes.items()}
        self._paths: dict[str, Path] = {name: tuple(name.split(".")) for name in self.shapes}
        self._nested = any(len(path) > 1 for path in self._paths.values())
        self._known = {path[:depth] for path in self._paths.values() for depth in range(1, len(path) + 1)}
        names = set(self._paths.values())
        for path in names:
            if any(path[:depth] in names for depth in range(1, len(path))):
                raise ValueError(f"a field cannot be an array and have fields within it: {'.'.join(path)!r}")

    def check(self, tree: Mapping[str, Any], rows: int | None, names: Iterable[str] | None = None) -> list[Array]:
        """Turn one tree into arrays that fit the fields exactly.

        Args:
            tree: nested dict with the fields, and no others.
            rows: None for one item; otherwise the leading size that each field must have.
            names: the fields that are wanted; None: all.
        Raises:
            ValueError: a field is missing, unknown, or has another shape, or an integer does not fit.
            TypeError: a field's dtype does not convert.
        """
        self._refuse_unknown(tree, ())
        wanted = self.shapes if names is None else names
        return [self._fit(self.shapes[name], _look_up(tree, self._paths[name]), rows) for name in wanted]

    def tree(self, leaves: Iterable[Any]) -> dict[str, Any]:
        """Return a nested dict of `leaves`, one per field in their order."""
        named = dict(zip(self.shapes, leaves, strict=True))
        return self._tree(named) if self._nested else named

    def views(self) -> dict[str, Any]:
        """Return what is stored as a nested dict of read-only views."""
        views = {name: column.view() for name, column in self.arrays.items()}
        for view in views.values():
            view.flags.writeable = False
        return self._tree(views)

    def _tree(self, leaves: Mapping[str, Any]) -> dict[str, Any]:
        root: dict[str, Any] = {}
        for name, leaf in leaves.items():
            *parents, last = self._paths[name]
            node = root
            for key in parents:
                node = node.setdefault(key, {})
            node[last] = leaf
        return root

    def _refuse_unknown(self, tree: Mapping[str, Any], prefix: Path) -> None:
        for key, value in tree.items():
            path = (*prefix, key)
            if path not in self._known:
                raise ValueError(
                    f"unknown field {'.'.join(map(str, path))!r}; the fields are {sorted(self.shapes)}, and further ones are "
                    "declared when the buffer is made (extra_columns)"
                )
            if isinstance(value, Mapping):
                self._refuse_unknown(value, path)

    def _fit(self, shape: DataShape, value: Any, rows: int | None) -> Array:
        required = shape.shape if rows is None else (rows, *shape.shape)
        try:
            array = np.asarray(value)
        except ValueError as error:
            raise ValueError(f"{shape.name!r} is ragged; an array of shape {required} is required") from error
        if array.shape != required:
            raise ValueError(f"{shape.name!r} has shape {array.shape}; {required} is required")
        dtype = self._dtypes[shape.name]
        if array.dtype == dtype:
            return array
        if not np.can_cast(array.dtype, dtype, "same_kind"):
            raise TypeError(f"{shape.name!r} has dtype {array.dtype}, which does not convert to {dtype}, which is required")
        cast = array.astype(dtype)
        if dtype.kind in "iu" and not np.array_equal(cast, array):
            raise ValueError(f"{shape.name!r} has values from {array.min()} to {array.max()}, which do not fit {dtype}")
        return cast


def _look_up(tree: Any, path: Path) -> Any:
    node = tree
    for depth, key in enumerate(path):
        if not isinstance(node, Mapping):
            raise ValueError(f"{'.'.join(path[:depth])!r} must be a dict with the key {key!r}, got {type(node).__name__}")
        if key not in node:
            raise ValueError(f"the field {'.'.join(path)!r} is missing; got the keys {sorted(map(str, node))}")
        node = node[key]
    return node


def as_bytes(array: Array) -> Array:
    """Return the bytes of an array as one run, whatever its dtype (bfloat16 exports no buffer of its own)."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)
