"""Lists of dicts that are alike, as columns: one array for each number or small array of a row, instead of one for each row.

Fifty transitions of six leaves are then six descriptions in the header, not 300. What is not alike in all rows, or has no
dtype, or is large, travels row by row as it is. Rows come back as they were; their arrays are views of the columns.

The compiled half has the same rules (`_rows_out.c`, `_rows_in.c`); `transports/WIRE.md` draws the bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np

from edgeml_ipc.codec import wire
from edgeml_ipc.errors import CodecError

MIN_ROWS: Final = 4  # fewer are not worth it
MAX_LEVELS: Final = 8  # of maps in a row, its own included; deeper ones travel row by row
MAX_FIELDS: Final = 256  # maps and leaves of a row
MAX_CELLS: Final = 1 << 22  # rows x fields, over all lists of a message: rows of nothing cost their sender nothing

ARRAY, SCALAR, FLOAT, INT, BOOL, NODE = "asfibn"  # what a column's cells are; NODE: no column, the cells follow the map
_OF_NUMBERS: Final[dict[str, np.dtype[Any]]] = {
    FLOAT: np.dtype(np.float64),
    INT: np.dtype(np.int64),
    BOOL: np.dtype(np.bool_),
}
_PYTHON_NUMBERS: Final = {float: FLOAT, int: INT, bool: BOOL}


class Columns:
    """Rows as columns, to be written.

    Attributes:
        kinds: what the cells of each leaf are, a letter for each, in the order of the map's walk.
        tree: the map of a row, with a column (an array, first axis: rows) or None in the place of each leaf.
        nodes: the cells of the leaves that are None, leaf by leaf.
        cells: rows x fields, which the message's budget pays for.
    """

    def __init__(self, rows: list[Any], cells: int) -> None:
        self.kinds = ""
        self.nodes: list[Any] = []
        self.cells = cells
        self.tree = self._map(rows)

    def _map(self, rows: list[Any]) -> dict[str, Any]:
        return {key: self._column([row[key] for row in rows], 2) for key in rows[0]}

    def _column(self, cells: list[Any], level: int) -> Any:
        first = cells[0]
        if _is_map(first, level) and all(_same_keys(first, cell) for cell in cells):
            return {key: self._column([cell[key] for cell in cells], level + 1) for key in first}
        kind = _kind(first)
        if kind == NODE or not _alike(kind, first, cells):
            self.kinds += NODE
            self.nodes += cells
            return None
        self.kinds += kind
        if kind == ARRAY:
            return np.stack(cells)
        if kind == SCALAR:
            return np.frombuffer(b"".join(cell.tobytes() for cell in cells), first.dtype)
        return np.array(cells, dtype=_OF_NUMBERS[kind])


def columns_of(items: list[Any], depth: int, budget: int) -> Columns | None:
    """Return a list as columns, or None where its items are no rows.

    Args:
        depth: of the list within the message. budget: how many cells the message may still have.
    """
    if len(items) < MIN_ROWS or depth + MAX_LEVELS >= wire.MAX_DEPTH or not _is_map(items[0], 1):
        return None
    first = items[0]
    fields = _fields(first, 1)
    if fields > MAX_FIELDS or len(items) * fields > budget or not all(_same_keys(first, item) for item in items):
        return None
    return Columns(items, len(items) * fields)


def _is_map(node: Any, level: int) -> bool:
    return type(node) is dict and len(node) > 0 and level <= MAX_LEVELS and all(type(key) is str for key in node)


def _same_keys(first: dict[str, Any], other: Any) -> bool:
    """Tell whether `other` is a dict with the same keys in the same order."""
    return type(other) is dict and len(other) == len(first) and all(map(_is_same_key, first, other))


def _is_same_key(one: Any, other: Any) -> bool:
    return type(other) is str and one == other


def _fields(node: Any, level: int) -> int:
    return 1 + sum(_fields(child, level + 1) for child in node.values()) if _is_map(node, level) else 1


def _kind(cell: Any) -> str:
    """Say what a column of cells like this one would be."""
    kind = type(cell)
    if kind in _PYTHON_NUMBERS:
        return _PYTHON_NUMBERS[kind] if kind is not int or -(1 << 63) <= cell < 1 << 63 else NODE
    if kind is np.ndarray:
        return ARRAY if _has_row_form(cell) and cell.ndim < wire.MAX_NDIM and cell.nbytes < wire.OWN_PART_BYTES else NODE
    return SCALAR if isinstance(cell, np.generic) and cell.dtype.name in wire.NUMPY_DTYPES else NODE


def _has_row_form(array: np.ndarray[Any, Any]) -> bool:
    dtype = array.dtype
    return dtype.name in wire.NUMPY_DTYPES and dtype == wire.dtype_named(dtype.name) and array.flags.c_contiguous


def _alike(kind: str, first: Any, cells: list[Any]) -> bool:
    of = type(first)
    if any(type(cell) is not of for cell in cells):
        return False
    if kind == ARRAY:
        return all(cell.shape == first.shape and cell.dtype == first.dtype and cell.flags.c_contiguous for cell in cells)
    return kind != INT or all(-(1 << 63) <= cell < 1 << 63 for cell in cells)


def rows_of(node: Any, budget: int, *, copy: bool) -> tuple[list[dict[str, Any]], int]:
    """Return the rows that were written as `[count, kinds, tree, node ...]`, and how many cells they have.

    Args:
        budget: how many cells the message may still have.
        copy: make arrays that are copies of their own; otherwise they are views of the columns.
    Raises:
        CodecError: the columns do not fit `count` and `kinds`, or are over the budget.
    """
    if type(node) is not list or len(node) < 3:
        raise CodecError("a list of rows is not [count, kinds, tree, node ...]")
    count, kinds, tree = node[:3]
    if type(count) is not int or count < 0 or type(kinds) is not str or type(tree) is not dict:
        raise CodecError("a list of rows is not [count, kinds, tree, node ...]")
    leaves: list[Callable[[int], Any]] = []
    nodes = iter(node[3:])
    kinds_left = iter(kinds)
    fields = _template(tree, count, kinds_left, nodes, leaves, copy=copy)
    if next(kinds_left, None) is not None or next(nodes, leaves) is not leaves:
        raise CodecError("a list of rows has more kinds or nodes than its map has leaves")
    if count * fields > budget:
        raise CodecError(f"{count} rows of {fields} fields: more than {MAX_CELLS} cells in one message")
    return [_row(tree, row, iter(leaves)) for row in range(count)], count * fields


def _template(
    tree: dict[Any, Any],
    count: int,
    kinds: Iterator[str],
    nodes: Iterator[Any],
    leaves: list[Callable[[int], Any]],
    *,
    copy: bool,
) -> int:
    """Collect how the cells of each leaf are made, and return how many fields there are."""
    fields = 1
    for key, column in tree.items():
        if type(key) is not str:
            raise CodecError("a row's key is not a str")
        if type(column) is dict:
            fields += _template(column, count, kinds, nodes, leaves, copy=copy)
        else:
            leaves.append(_cells(column, count, next(kinds, ""), nodes, copy=copy))
            fields += 1
    return fields


def _cells(column: Any, count: int, kind: str, nodes: Iterator[Any], *, copy: bool) -> Callable[[int], Any]:
    """Check a column, and return row -> cell."""
    if column is None and kind == NODE:
        cells = [cell for _, cell in zip(range(count), nodes, strict=False)]
        if len(cells) != count:
            raise CodecError("a list of rows has fewer nodes than its map asks for")
        return cells.__getitem__
    if type(column) is not np.ndarray or kind == NODE or not column.ndim or len(column) != count:
        raise CodecError(f"a column of {count} cells of kind {kind!r} is a {type(column).__name__} of shape {np.shape(column)}")
    if kind == ARRAY:
        return (lambda row: column[row, ...].copy()) if copy else (lambda row: column[row, ...])
    if column.ndim != 1 or (kind in _OF_NUMBERS and column.dtype != _OF_NUMBERS[kind]):
        raise CodecError(f"a column of kind {kind!r} has dtype {column.dtype} and shape {column.shape}")
    if kind == SCALAR:
        return column.__getitem__
    if kind not in _OF_NUMBERS:
        raise CodecError(f"a column has the kind {kind!r}, which means nothing to this version")
    return column.tolist().__getitem__  # type: ignore[no-any-return]


def _row(tree: dict[str, Any], row: int, leaves: Iterator[Callable[[int], Any]]) -> dict[str, Any]:
    return {key: _row(node, row, leaves) if type(node) is dict else next(leaves)(row) for key, node in tree.items()}
