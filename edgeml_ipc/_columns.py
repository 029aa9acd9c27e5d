"""Like items as columns: one array for each leaf instead of one small tree for each item.

Fifty transitions of five leaves are then five arrays on the wire, not 250. Only items that are exactly alike are packed: dicts
with the same keys, arrays of one shape and dtype, numpy scalars of one dtype, floats, bools, ints that fit in 64 bits. All
others travel as they are.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

MAX_ITEMS: Final = 1 << 16  # items of no bytes cost their sender nothing

_PYTHON_KINDS: Final[dict[type, tuple[str, type]]] = {
    float: ("float", np.float64),
    int: ("int", np.int64),
    bool: ("bool", np.bool_),
}


def pack(items: list[Any]) -> dict[str, Any]:
    """Return `{"items": items}`, or `{"count", "columns", "kinds"}` where the items are alike."""
    kinds: list[str] = []
    columns = _columns(items, kinds) if 1 < len(items) <= MAX_ITEMS and type(items[0]) is dict else None
    return {"items": items} if columns is None else {"count": len(items), "columns": columns, "kinds": kinds}


def unpack(packed: dict[str, Any]) -> list[Any]:
    """Return the items. Their arrays are views of the columns; Python numbers and numpy scalars come back as such."""
    if "items" in packed:
        items: list[Any] = list(packed["items"])
        return items
    count = int(packed["count"])
    if not 0 <= count <= MAX_ITEMS:
        raise ValueError(f"a batch of {count} items; the limit is {MAX_ITEMS}")
    leaves: list[tuple[tuple[Any, ...], Any]] = []
    _leaves(packed["columns"], (), leaves)
    columns = [(path, _values(column, kind, count)) for (path, column), kind in zip(leaves, packed["kinds"], strict=True)]
    return [_row(columns, i) for i in range(count)]


def _values(column: Any, kind: str, count: int) -> list[Any]:
    """Split a column into the `count` leaves that were packed into it."""
    if not isinstance(column, np.ndarray) or column.ndim < 1 or len(column) != count:
        raise ValueError(f"a column of a batch of {count} is {type(column).__name__} of shape {np.shape(column)}")
    if kind in ("float", "int", "bool"):
        values: list[Any] = column.tolist()
        return values
    if kind == "array" and column.ndim == 1:
        return [column[i, ...] for i in range(count)]  # arrays without dimensions, not scalars
    return list(column)


def _columns(items: list[Any], kinds: list[str]) -> Any:
    """Stack what is alike; return None if anything is not. Appends the kind of each leaf in traversal order."""
    first = items[0]
    kind = type(first)
    if any(type(item) is not kind for item in items):
        return None
    if kind is dict:
        return _columns_of_dicts(items, kinds)
    if kind is np.ndarray:
        if first.dtype.hasobject or any(item.shape != first.shape or item.dtype != first.dtype for item in items):
            return None
        kinds.append("array")
        return np.stack(items)
    if isinstance(first, np.generic) and not first.dtype.hasobject:
        if any(item.dtype != first.dtype for item in items):
            return None
        kinds.append("scalar")
        return np.array(items, dtype=first.dtype)
    if kind in _PYTHON_KINDS:
        name, dtype = _PYTHON_KINDS[kind]
        if kind is int and not all(-(1 << 63) <= item < 1 << 63 for item in items):
            return None
        kinds.append(name)
        return np.array(items, dtype=dtype)
    return None


def _columns_of_dicts(items: list[Any], kinds: list[str]) -> dict[Any, Any] | None:
    keys = list(items[0])
    if not keys or any(list(item) != keys for item in items):
        return None
    found = {}
    for key in keys:
        column = _columns([item[key] for item in items], kinds)
        if column is None:
            return None
        found[key] = column
    return found


def _leaves(tree: Any, path: tuple[Any, ...], found: list[tuple[tuple[Any, ...], Any]]) -> None:
    if type(tree) is dict:
        for key, value in tree.items():
            _leaves(value, (*path, key), found)
    else:
        found.append((path, tree))


def _row(columns: list[tuple[tuple[Any, ...], list[Any]]], i: int) -> dict[Any, Any]:
    row: dict[Any, Any] = {}
    for path, column in columns:
        place = row
        for key in path[:-1]:
            place = place.setdefault(key, {})
        place[path[-1]] = column[i]
    return row
