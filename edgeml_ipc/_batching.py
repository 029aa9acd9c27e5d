"""Requests of many clients gathered into one call: trees stacked leaf by leaf, results split row by row."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from time import monotonic
from typing import Any

import numpy as np

from edgeml_ipc._ticket import Ticket


def _signature(tree: Any) -> Hashable:
    """Return what two trees must share to be stacked: structure, and shape and dtype of each leaf."""
    if isinstance(tree, Mapping):
        return (type(tree), frozenset((key, _signature(value)) for key, value in tree.items()))
    if isinstance(tree, list | tuple):
        return (type(tree), tuple(_signature(item) for item in tree))
    leaf = np.asarray(tree)
    if leaf.dtype == object:
        raise TypeError(f"a batched interface takes trees of arrays and numbers, got a {type(tree).__name__}")
    return (leaf.shape, leaf.dtype)


def stack(trees: list[Any]) -> Any:
    """Stack trees of one signature along a new leading axis."""
    first = trees[0]
    if isinstance(first, Mapping):
        return _like(first, {key: stack([tree[key] for tree in trees]) for key in first})
    if isinstance(first, list | tuple):
        return _like(first, [stack([tree[i] for tree in trees]) for i in range(len(first))])
    return np.stack([np.asarray(tree) for tree in trees])


def rows(tree: Any, count: int) -> list[Any]:
    """Split a tree of leading size `count` into `count` trees.

    Raises:
        ValueError: a leaf has another leading size.
    """
    if isinstance(tree, Mapping):
        columns = {key: rows(value, count) for key, value in tree.items()}
        return [_like(tree, {key: column[i] for key, column in columns.items()}) for i in range(count)]
    if isinstance(tree, tuple) or (isinstance(tree, list) and not _is_leaf_list(tree, count)):
        parts = [rows(value, count) for value in tree]
        return [_like(tree, [part[i] for part in parts]) for i in range(count)]
    if isinstance(tree, list):
        return tree
    leaf = np.asarray(tree)
    if leaf.ndim == 0 or leaf.shape[0] != count:
        raise ValueError(f"a batched interface must return leaves of leading size {count}, one has shape {leaf.shape}")
    return list(leaf)


def _is_leaf_list(tree: list[Any], count: int) -> bool:
    """A list of plain values, one for each row, is a leaf: labels, for example."""
    return len(tree) == count and not any(isinstance(item, np.ndarray | list | tuple | dict) for item in tree)


def _like(example: Any, items: Any) -> Any:
    """Build a container of the example's type."""
    if isinstance(example, tuple) and hasattr(example, "_fields"):
        return type(example)(*items)
    return type(example)(items)


class Batcher:
    """The requests of one interface that wait to be answered together. For the server's loop only.

    Args:
        function: stacked tree of leading size `batch` -> tree of leading size `batch`.
        max_batch_size: rows in one call. max_wait_ms: how long the first request of a batch waits for others.
    """

    def __init__(self, function: Callable[[Any], Any], max_batch_size: int, max_wait_ms: float) -> None:
        if max_batch_size < 1:
            raise ValueError(f"max_batch_size must be at least 1, got {max_batch_size}")
        if max_wait_ms < 0:
            raise ValueError(f"max_wait_ms must be at least 0, got {max_wait_ms}")
        self._function = function
        self._max_batch_size = max_batch_size
        self._max_wait_seconds = max_wait_ms / 1000
        self._groups: dict[Hashable, list[tuple[Ticket, Any]]] = {}
        self._due: dict[Hashable, float] = {}
        self.batches = 0
        self.rows = 0

    def add(self, ticket: Ticket, payload: Any) -> None:
        """Take a request; a batch that is now full is run."""
        key = _signature(payload)
        group = self._groups.setdefault(key, [])
        group.append((ticket, payload))
        if len(group) == 1:
            self._due[key] = monotonic() + self._max_wait_seconds
        if len(group) >= self._max_batch_size:
            self._run(key)

    def run_due(self) -> float:
        """Run the batches whose time has come; return the seconds until the next, infinite if there is none."""
        now = monotonic()
        self._run_those([key for key, due in self._due.items() if due <= now])
        return min((due - now for due in self._due.values()), default=math.inf)

    def run_all(self) -> None:
        """Run what waits, due or not."""
        self._run_those(list(self._due))

    def _run_those(self, keys: list[Hashable]) -> None:
        for key in keys:
            if key in self._due:  # the function of another batch may have had this one run
                self._run(key)

    def _run(self, key: Hashable) -> None:
        group = self._groups.pop(key)
        del self._due[key]
        self.batches += 1
        self.rows += len(group)
        try:
            results = rows(self._function(stack([payload for _, payload in group])), len(group))
        except BaseException as error:  # a user's function: what it raises is carried to each caller
            for ticket, _ in group:
                ticket.fail(error)
            if group[0][0].ends_server(error):
                raise
            return
        for (ticket, _), result in zip(group, results, strict=True):
            ticket.reply(result)
