"""Transitions: the fields that they have, and what follows from them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from edgeml_ipc.data.columns import Array, Columns, DataShape, as_bytes, shapes_of_space
from edgeml_ipc.data.schema import NEXT, OBSERVATIONS, ROW, Schema, Stored, stored_once

UNKNOWN_VERSION: Final = -1
_ENDS: Final = ("dones", "end_of_trajectory")
_RESERVED_NAMES: Final = frozenset({"about", "policy_version", "end_of_trajectory"})
_VERSION_RANGE: Final = np.iinfo(np.int32)


def transition_schema(
    observation_space: Any,
    action_space: Any,
    extra_columns: Sequence[DataShape],
    *,
    n_stack: int = 1,
    stack_axis: int = -1,
    store_next_observations: bool = False,
) -> Schema:
    """Return the schema of a transition between these spaces.

    Raises:
        TypeError: a space that has no fixed shape. ValueError: two fields of one name, a name that has a meaning already, or
            no observation that is a stack.
    """
    observations = shapes_of_space(OBSERVATIONS, observation_space)
    others = [
        *shapes_of_space("actions", action_space),
        DataShape("rewards"),
        DataShape("masks"),
        DataShape("dones", dtype="bool"),
        *extra_columns,
    ]
    following = [replace(shape, name=NEXT + shape.name) for shape in observations]
    names = [shape.name for shape in (*observations, *following, *others)]
    if len(set(names)) != len(names):
        raise ValueError(f"field names must differ, got {names}")
    if taken := _RESERVED_NAMES & {name.split(".")[0] for name in names}:
        raise ValueError(f"extra_columns cannot be called {sorted(taken)}: these names have a meaning of their own")
    if store_next_observations:
        if n_stack != 1:
            raise ValueError(f"n_stack is {n_stack}: frames are stored once only where next_observations are derived")
        return Schema("ReplayBuffer", tuple(Stored(shape) for shape in (*observations, *following, *others)))
    columns = (*stored_once(observations, n_stack, stack_axis), *(Stored(shape) for shape in others))
    return Schema("ReplayBuffer", columns, n_stack)


class Prepared(NamedTuple):
    """Items whose fields were made to fit: the arguments of `RowStream.append`."""

    rows: int
    values: tuple[Array, ...]
    nexts: tuple[Array, ...] | None
    ended: npt.NDArray[np.uint8]
    terminal: npt.NDArray[np.uint8]
    versions: npt.NDArray[np.int32]


class Preparation:
    """Turns items of any kind that numpy understands into the bytes that are stored, or says what is wrong with them.

    Threads: any.
    """

    def __init__(self, schema: Schema, columns: Columns) -> None:
        """Prepare for the fields of `schema`."""
        self._columns, self._has_frames = columns, schema.has_frames
        self._names = [column.field.name for column in schema.columns]
        self._following = {
            NEXT + column.field.name: number for number, column in enumerate(schema.columns) if column.kind != ROW
        }

    def one(self, data: Mapping[str, Any], ended: bool) -> Prepared:
        """Prepare one item. Raises ValueError, TypeError: it does not fit."""
        return self._prepared(data, None, ended)

    def stacked(self, data: Mapping[str, Any]) -> Prepared:
        """Prepare items that come as one dict of stacked arrays. Raises ValueError, TypeError: they do not fit."""
        return self._prepared(data, rows_of(data), False)

    def listed(self, batch: Iterable[Mapping[str, Any]]) -> list[Prepared]:
        """Prepare a list of items: one batch, and the last by itself if the observation that follows it alone is missing."""
        items = [self.one(data, False) for data in batch]
        if not items:
            return []
        with_next = [item.nexts is not None for item in items]
        if not any(with_next):
            return [_joined(items)]
        items = [
            item if item.nexts is not None or i + 1 == len(items) else item._replace(nexts=self._next_of(item, items[i + 1]))
            for i, item in enumerate(items)
        ]
        return [_joined(items)] if with_next[-1] else [_joined(items[:-1]), items[-1]]

    def _next_of(self, item: Prepared, after: Prepared) -> tuple[Array, ...]:
        if item.ended[0]:
            raise ValueError("'next_observations' is missing; it is needed where an episode ends")
        return tuple(after.values)

    def _prepared(self, data: Mapping[str, Any], rows: int | None, ended: bool) -> Prepared:
        if not isinstance(data, Mapping):
            raise TypeError(f"an item must be a dict, got {type(data).__name__}")
        tree, count = dict(data), 1 if rows is None else rows
        versions = _versions(tree.pop("policy_version", UNKNOWN_VERSION), count)
        flags = [_flags(key, tree.pop(key), rows) for key in _ENDS if key in tree]
        for name in _ENDS:
            if name in self._names:
                tree[name] = np.zeros(() if rows is None else rows, bool)
        has_next = not self._has_frames or NEXT + OBSERVATIONS in tree
        names = self._names + (list(self._following) if has_next else [])
        arrays = dict(zip(names, self._columns.check(tree, rows, names), strict=True))
        alive = arrays["masks"].reshape(count, -1).all(axis=1) if "masks" in arrays else np.ones(count, bool)
        closed = np.logical_or.reduce(flags) if flags else ~alive
        closed = np.ascontiguousarray(np.broadcast_to(closed | ended, (count,)))
        for name in _ENDS:
            if name in arrays:
                arrays[name] = closed.astype(arrays[name].dtype)
        if self._has_frames and not has_next and closed.any():
            raise ValueError("'next_observations' is missing; it is needed where an episode ends")
        nexts: list[Array] = [np.empty(0, np.uint8)] * len(self._names)
        for name, number in self._following.items():
            nexts[number] = as_bytes(arrays[name]) if has_next else nexts[number]
        values = tuple(as_bytes(arrays[name]) for name in self._names)
        with_next = tuple(nexts) if self._has_frames and has_next else None
        return Prepared(count, values, with_next, as_bytes(closed), as_bytes(np.logical_not(alive)), versions)


def rows_of(data: Mapping[str, Any]) -> int:
    """Return how many items a dict of stacked arrays has, by its first field that is no dict."""
    for value in data.values():
        if isinstance(value, Mapping):
            return rows_of(value)
        shape = np.shape(value)
        if shape:
            return int(shape[0])
    raise ValueError(f"a batch is a dict of arrays with a leading axis, got {sorted(map(str, data))} without one")


def _versions(given: Any, rows: int) -> npt.NDArray[np.int32]:
    versions = np.asarray(given)
    if versions.dtype.kind not in "iu" or versions.shape not in ((), (rows,)):
        raise ValueError(
            f"policy_version must be an integer, or {rows} of them, got {versions.dtype} of shape {versions.shape}"
        )
    if versions.size and not (versions.min() >= _VERSION_RANGE.min and versions.max() <= _VERSION_RANGE.max):
        raise ValueError(f"policy_version must fit in 32 bits, got {versions.min()} to {versions.max()}")
    return np.ascontiguousarray(np.broadcast_to(versions, (rows,)), np.int32)


def _flags(name: str, given: Any, rows: int | None) -> npt.NDArray[np.bool_]:
    flags = np.asarray(given)
    wanted = () if rows is None else (rows,)
    if flags.shape != wanted:
        raise ValueError(f"{name!r} has shape {flags.shape}; {wanted} is required")
    if flags.dtype.kind not in "biuf":
        raise TypeError(f"{name!r} has dtype {flags.dtype}; a bool is required")
    return np.atleast_1d(flags.astype(bool))


def _joined(items: Sequence[Prepared]) -> Prepared:
    """Make one batch of batches."""

    def joined(parts: Sequence[Array]) -> Array:
        return np.concatenate(parts)

    nexts = None
    if items[0].nexts is not None:
        nexts = tuple(joined([item.nexts[i] for item in items if item.nexts]) for i in range(len(items[0].nexts)))
    return Prepared(
        sum(item.rows for item in items),
        tuple(joined([item.values[i] for item in items]) for i in range(len(items[0].values))),
        nexts,
        joined([item.ended for item in items]),
        joined([item.terminal for item in items]),
        joined([item.versions for item in items]),
    )
