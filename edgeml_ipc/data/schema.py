"""Schema: which fields an item has, and how each is stored.

    ROW     one value per row, in its row                                   (capacity, *shape)
    FRAME   one value per frame; an observation, of which each is stored once  (frames, *shape)
    STACK   items of `stack` frames along one axis, each frame stored once     (frames, *shape without that axis)

For each field `observations...` that is stored in frames there is a field `next_observations...` that can be given and read,
and that takes no memory of its own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from edgeml_ipc.data.columns import DataShape, dtype_of

ROW: Final = 0
FRAME: Final = 1
STACK: Final = 2
OBSERVATIONS: Final = "observations"
NEXT: Final = "next_"
MAX_STACK: Final = 64
MAX_COLUMN_BYTES: Final = 1 << 46
_MAX_DIMS: Final = 31


@dataclass(frozen=True)
class Stored:
    """One column.

    Attributes:
        field: the item that is given and read.
        kind: ROW, FRAME or STACK.
        axis: of the item, along which frames are stacked; 0 for the other kinds.
    """

    field: DataShape
    kind: int = ROW
    axis: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of what one row or frame of the column holds."""
        shape = self.field.shape
        return shape[: self.axis] + shape[self.axis + 1 :] if self.kind == STACK else shape

    @property
    def nbytes(self) -> int:
        """Bytes of one row or frame of the column."""
        return math.prod(self.shape) * dtype_of(self.field.dtype).itemsize

    @property
    def item_bytes(self) -> int:
        """Bytes of the item."""
        return math.prod(self.field.shape) * dtype_of(self.field.dtype).itemsize

    @property
    def run_bytes(self) -> int:
        """Bytes of one frame that lie together in a stacked item."""
        return math.prod(self.field.shape[self.axis + 1 :]) * dtype_of(self.field.dtype).itemsize if self.kind == STACK else 1


@dataclass(frozen=True)
class Schema:
    """All columns of a buffer.

    Attributes:
        face: name of the class whose buffer it is.
        columns: in the order in which they are stored.
        stack: frames in an observation.
    """

    face: str
    columns: tuple[Stored, ...]
    stack: int = 1

    @property
    def has_frames(self) -> bool:
        """Whether observations are stored once, in frames."""
        return any(column.kind != ROW for column in self.columns)

    @property
    def fields(self) -> list[DataShape]:
        """All fields of an item, those that are derived too."""
        return [column.field for column in self.columns] + [
            replace(column.field, name=NEXT + column.field.name) for column in self.columns if column.kind != ROW
        ]

    def plain(self) -> Schema:
        """Return the same fields, each in a column of its own."""
        return Schema(self.face, tuple(Stored(field) for field in self.fields))

    def encode(self) -> bytes:
        """Return the schema as it is written into a segment."""
        columns = [
            [column.field.name, list(column.field.shape), column.field.dtype, column.kind, column.axis]
            for column in self.columns
        ]
        return json.dumps({"face": self.face, "stack": self.stack, "columns": columns}).encode()

    @classmethod
    def decode(cls, data: bytes) -> Schema:
        """Return the schema that a segment has. Raises ValueError, TypeError, KeyError: it has none."""
        content = json.loads(data)
        if not isinstance(content, dict):
            raise ValueError(f"the schema is {type(content).__name__}")
        face, stack = content["face"], content["stack"]
        if type(stack) is not int or not 1 <= stack <= MAX_STACK or not isinstance(face, str):
            raise ValueError(f"a stack of {stack!r} frames of {face!r}")
        schema = cls(face, tuple(_column_in(entry, stack) for entry in content["columns"]), stack)
        names = [field.name for field in schema.fields]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"the fields {names} are not a set of names")
        return schema

    def spec(self) -> tuple[Any, ...]:
        """Return what `_rows.Stream` must know of an item: see `_rows.pyi`."""
        marks = {name: number for number, name in enumerate(self._names()) if name in ("dones", "end_of_trajectory", "masks")}
        tree: dict[str, Any] = {}
        for number, name in enumerate(self._names()):
            if name not in ("dones", "end_of_trajectory"):
                *parents, last = name.split(".")
                node = tree
                for key in parents:
                    node = node.setdefault(key, {})
                node[last] = number
        leaves = tuple(
            (_kind_of(column.field.dtype), dtype_of(column.field.dtype).itemsize, column.field.shape) for column in self.columns
        )
        following = {NEXT + OBSERVATIONS: tree[OBSERVATIONS]} if self.has_frames else {}
        places = (marks.get(name, -1) for name in ("dones", "end_of_trajectory", "masks"))
        return _nodes(tree), _nodes(following), leaves, *places

    def _names(self) -> list[str]:
        return [column.field.name for column in self.columns]


def stored_once(fields: Sequence[DataShape], n_stack: int, stack_axis: int) -> list[Stored]:
    """Choose how observations are stored: stacks where an item has `n_stack` frames along the axis, else whole.

    Raises:
        ValueError: no observation has that many frames along that axis, or `n_stack` is out of range.
    """
    if not 1 <= n_stack <= MAX_STACK:
        raise ValueError(f"n_stack must be from 1 to {MAX_STACK} frames, got {n_stack}")
    columns = []
    for field in fields:
        dims = len(field.shape)
        axis = stack_axis + dims if stack_axis < 0 else stack_axis
        is_stack = n_stack > 1 and 0 <= axis < dims and field.shape[axis] == n_stack
        columns.append(Stored(field, STACK, axis) if is_stack else Stored(field, FRAME))
    if n_stack > 1 and not any(column.kind == STACK for column in columns):
        shapes = {field.name: field.shape for field in fields}
        raise ValueError(f"n_stack is {n_stack}, but no observation has so many frames along axis {stack_axis}: {shapes}")
    return columns


def _column_in(entry: Any, stack: int) -> Stored:
    name, shape, dtype, kind, axis = entry
    if not isinstance(name, str) or not all(type(size) is int and 0 <= size < MAX_COLUMN_BYTES for size in shape):
        raise ValueError(f"the column {name!r} of shape {shape!r} is not one")
    if kind not in (ROW, FRAME, STACK) or type(axis) is not int or len(shape) > _MAX_DIMS:
        raise ValueError(f"the column {name!r} is of kind {kind!r}, along axis {axis!r}")
    if kind == STACK and not (0 <= axis < len(shape) and shape[axis] == stack):
        raise ValueError(f"the column {name!r} of shape {shape!r} has no {stack} frames along axis {axis}")
    if kind != ROW and name.split(".")[0] != OBSERVATIONS:
        raise ValueError(f"the column {name!r} is in frames")
    return Stored(DataShape(name, tuple(shape), dtype_of(dtype).name), kind, axis)


def _kind_of(dtype: str) -> str:
    """Return numpy's letter for plain numbers of this machine's byte order, "?" for all else."""
    found = dtype_of(dtype)
    return found.kind if found.kind in "fiub" and found.isnative and np.dtype(found.str) == found else "?"


def _nodes(tree: dict[str, Any]) -> tuple[Any, ...]:
    return tuple((key, _nodes(child) if isinstance(child, dict) else child) for key, child in tree.items())
