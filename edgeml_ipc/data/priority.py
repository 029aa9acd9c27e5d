"""Prioritized sampling: a sum tree over the weights of rows, and importance weights.

Source: Schaul, Quan, Antonoglou, Silver, *Prioritized Experience Replay*, ICLR 2016 (arXiv:1511.05952), section 3.3
(proportional variant), section 3.4 (importance sampling) and appendix B.2.1 (stratified draws).
"""

from __future__ import annotations

from threading import Lock
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from edgeml_ipc.data.chunks import native
from edgeml_ipc.data.gather import Array, Rows
from edgeml_ipc.errors import BufferEmpty

Weights = npt.NDArray[np.float64]
Singles = npt.NDArray[np.float32]

_KERNELS: Final[Any] = native()
COMPILED: Final = _KERNELS is not None
MAX_WEIGHT: Final = 1e280  # times any number of rows, this is finite


class Tree(Protocol):
    """What the compiled tree and the numpy one have in common; rows and values were checked by `SumTree`."""

    @property
    def total(self) -> float:
        """The sum of all weights."""

    @property
    def least(self) -> float:
        """The least positive weight, infinity if there is none."""

    def set(self, rows: Rows, weights: Weights, /) -> None:
        """Set weights; of a row that is named twice the last one counts."""

    def update(
        self, handles: Rows, errors: Weights, stamps: Rows, stride_bits: int, epsilon: float, alpha: float, /
    ) -> tuple[int, float]:
        """Set the weights (|error| + epsilon)^alpha of the rows that are of the generation in their handle.

        Args:
            handles: generation * capacity + row. stamps: `(capacity,)`, of each row, below 0 if it is not held; the
                generation is what is left without the lowest `stride_bits`.
        Returns:
            how many those are, and the greatest of the weights set.
        """

    def fill(self, begin: int, end: int, weight: float, /) -> None:
        """Set the rows from `begin` up to `end` to one weight."""

    def get(self, rows: Rows, out: Weights, /) -> None:
        """Write the weights of rows into `out`."""

    def find(self, parts: Weights, stratified: bool, rows: Rows, weights: Weights, /) -> bool:
        """Write the rows at which the running sum of weights passes some targets, and their weights.

        Args:
            parts: `(n,)`, in [0, 1): of the total. stratified: of the total's n-th parts, one in each.
        Returns:
            False: all weights are 0; nothing was written.
        """

    def hand_out(
        self, rows: Rows, stamps: Rows, weights: Weights, stride_bits: int, beta: float, handles: Rows, importance: Singles, /
    ) -> None:
        """Write what a batch has of rows that were drawn: handles, as `update` takes them, and `importance_weights`.

        Args:
            rows, stamps, weights, and the two that are written: `(n,)`.
        """


class NumpyTree:
    """The tree as a plain array and its running sums: what the compiled tree does, readably, in O(capacity) per draw."""

    def __init__(self, capacity: int) -> None:
        """Hold `capacity` weights of 0."""
        self._weights = np.zeros(capacity)

    @property
    def total(self) -> float:
        """The sum of all weights."""
        return float(self._weights.sum())

    @property
    def least(self) -> float:
        """The least positive weight, infinity if there is none."""
        return float(np.min(self._weights, initial=np.inf, where=self._weights > 0))

    def set(self, rows: Rows, weights: Weights, /) -> None:
        """Set weights; of a row that is named twice the last one counts."""
        if rows.size and not (rows.min() >= 0 and rows.max() < len(self._weights)):
            raise IndexError(f"rows must be from 0 to {len(self._weights) - 1}, got {rows.min()} to {rows.max()}")
        if not np.all((weights >= 0) & (weights <= MAX_WEIGHT)):
            raise ValueError(f"weights must be from 0 to {MAX_WEIGHT}, got {weights.min()} to {weights.max()}")
        self._weights[rows] = weights

    def update(
        self, handles: Rows, errors: Weights, stamps: Rows, stride_bits: int, epsilon: float, alpha: float, /
    ) -> tuple[int, float]:
        """Set the weights of the rows that are of the generation in their handle; see `Tree`."""
        if handles.size and handles.min() < 0:
            bad = int(np.flatnonzero(handles < 0)[0])
            raise IndexError(f"indices[{bad}] is {handles[bad]}; it must be at least 0")
        check_finite(errors)
        generation, rows = np.divmod(handles, len(self._weights))
        held = stamps[rows] >> stride_bits == generation
        weights = (np.abs(errors) + epsilon) ** alpha
        self.set(rows[held], weights[held])
        return int(np.count_nonzero(held)), float(weights[held].max(initial=0.0))

    def fill(self, begin: int, end: int, weight: float, /) -> None:
        """Set the rows from `begin` up to `end` to one weight."""
        if not 0 <= begin <= end <= len(self._weights):
            raise IndexError(f"rows {begin} to {end}; the tree has rows 0 to {len(self._weights)}")
        if not 0 <= weight <= MAX_WEIGHT:
            raise ValueError(f"a weight must be from 0 to {MAX_WEIGHT}, got {weight}")
        self._weights[begin:end] = weight

    def get(self, rows: Rows, out: Weights, /) -> None:
        """Write the weights of rows into `out`."""
        if rows.size and not (rows.min() >= 0 and rows.max() < len(self._weights)):
            raise IndexError(f"rows must be from 0 to {len(self._weights) - 1}, got {rows.min()} to {rows.max()}")
        out[...] = self._weights[rows]

    def find(self, parts: Weights, stratified: bool, rows: Rows, weights: Weights, /) -> bool:
        """Write the rows at which the running sum of weights passes some targets, and their weights; see `Tree`."""
        sums = np.cumsum(self._weights)
        if not sums[-1] > 0:
            return False
        targets = (parts + np.arange(len(parts))) * (sums[-1] / len(parts)) if stratified else parts * sums[-1]
        last = np.flatnonzero(self._weights)[-1]  # a target may lie past all sums by rounding
        rows[...] = np.minimum(np.searchsorted(sums, targets, side="right"), last)
        weights[...] = self._weights[rows]
        return True

    def hand_out(
        self, rows: Rows, stamps: Rows, weights: Weights, stride_bits: int, beta: float, handles: Rows, importance: Singles, /
    ) -> None:
        """Write the handles and the importance of rows that were drawn; see `Tree`."""
        handles[...] = (stamps >> stride_bits) * len(self._weights) + rows
        importance[...] = importance_weights(weights, self.least, beta)


class SumTree:
    """Weights of rows, from which rows are drawn in proportion.

    Sums are computed anew along every path that a change touches, never corrected by differences, so they stay as exact as a
    tree that was just built, however many changes there were. A row of weight 0 is never drawn.

    Threads and processes: any thread may call, each call is one atomic step; batches let other threads run. Private to its
    process.

    Example:
        >>> tree = SumTree(4)
        >>> tree.set([0, 2], [1.0, 3.0])
        >>> tree.total
        4.0
        >>> rows, weights = tree.sample(np.random.default_rng(0), 4)
        >>> rows.tolist(), weights.tolist()
        ([0, 2, 2, 2], [1.0, 3.0, 3.0, 3.0])
    """

    def __init__(self, capacity: int, *, compiled: bool = COMPILED) -> None:
        """Hold `capacity` weights of 0.

        Raises:
            ValueError: `capacity` is below 1.
        """
        if capacity < 1:
            raise ValueError(f"capacity must be at least 1 row, got {capacity}")
        self.capacity = capacity
        self._tree: Tree = _KERNELS.SumTree(capacity) if compiled else NumpyTree(capacity)
        self._lock = Lock()

    @property
    def total(self) -> float:
        """The sum of all weights."""
        with self._lock:
            return self._tree.total

    @property
    def least(self) -> float:
        """The least positive weight, infinity if all are 0."""
        with self._lock:
            return self._tree.least

    def set(self, rows: Any, weights: Any) -> None:
        """Set the weights of rows; of a row that is named twice the last one counts.

        Args:
            rows: integers `(n,)`. weights: `(n,)` or one number, finite and not negative.
        Raises:
            IndexError: a row that the tree does not have. ValueError: a weight out of range. Nothing was changed.
        """
        at = np.ascontiguousarray(rows, np.int64).ravel()
        given = np.asarray(weights, np.float64)
        values = np.full(at.shape, given) if given.ndim == 0 else np.ascontiguousarray(given.ravel())
        if values.shape != at.shape:
            raise ValueError(f"got {at.size} rows and {values.size} weights")
        with self._lock:
            self._tree.set(at, values)

    def update(
        self, handles: Rows, errors: Weights, stamps: Rows, stride_bits: int, epsilon: float, alpha: float
    ) -> tuple[int, float]:
        """Set the weights (|error| + epsilon)^alpha of the rows that are of the generation in their handle; see `Tree`.

        Raises:
            IndexError: a handle below 0. ValueError: an error that is not finite. Nothing was changed.
        """
        with self._lock:
            return self._tree.update(handles, errors, stamps, stride_bits, epsilon, alpha)

    def fill(self, begin: int, end: int, weight: float) -> None:
        """Set the weights of the rows from `begin` up to `end` to one value; raises as `set` does."""
        with self._lock:
            self._tree.fill(begin, end, weight)

    def get(self, rows: Any) -> Weights:
        """Return copies of the weights of rows."""
        at = np.ascontiguousarray(rows, np.int64).ravel()
        out = np.empty(at.shape)
        with self._lock:
            self._tree.get(at, out)
        return out

    def sample(self, rng: np.random.Generator, count: int, *, stratified: bool = True) -> tuple[Rows, Weights]:
        """Draw rows, with replacement, each with probability weight / total.

        Args:
            count: how many, at least 1.
            stratified: one draw from each of `count` equal parts of the total, which lowers the variance and leaves the
                expected frequencies as they are; the rows then come in ascending order. False: independent draws.
        Returns:
            (rows, weights), each `(count,)`, new arrays.
        Raises:
            BufferEmpty: all weights are 0. ValueError: `count` is below 1.
        """
        if count < 1:
            raise ValueError(f"count must be at least 1 row, got {count}")
        parts, rows, weights = rng.random(count), np.empty(count, np.int64), np.empty(count)
        with self._lock:
            found = self._tree.find(parts, stratified, rows, weights)
        if not found:
            raise BufferEmpty(f"cannot draw {count} rows: all {self.capacity} weights are 0")
        return rows, weights

    def hand_out(self, rows: Rows, stamps: Rows, weights: Weights, stride_bits: int, beta: float) -> tuple[Rows, Singles]:
        """Return the handles and the importance of rows that were drawn, new arrays; see `Tree`."""
        handles, importance = np.empty(len(rows), np.int64), np.empty(len(rows), np.float32)
        with self._lock:
            self._tree.hand_out(rows, stamps, weights, stride_bits, beta, handles, importance)
        return handles, importance


class Drawn(NamedTuple):
    """Rows drawn by priority.

    Attributes:
        rows: `(n,)` int64.
        importance: `(n,)` float32 in (0, 1]: what each row's loss is to be multiplied with.
    """

    rows: Rows
    importance: Singles


class Priorities:
    """Proportional prioritization: P(i) = p_i^alpha / sum_k p_k^alpha, with p_i = |error_i| + epsilon.

    New rows get the greatest priority seen so far, so that each is drawn soon at least once. Importance weights are
    (N P(i))^-beta, divided by the greatest that any of the N rows with a priority could have, as in Algorithm 1 of the paper.

    Threads and processes: as `SumTree`.

    Example:
        >>> priorities = Priorities(capacity=100)
        >>> priorities.added(0, 10)
        >>> drawn = priorities.sample(np.random.default_rng(0), 4)
        >>> drawn.importance.tolist()
        [1.0, 1.0, 1.0, 1.0]
        >>> priorities.update(drawn.rows, np.array([0.5, 2.0, 0.1, 0.0]))
    """

    def __init__(
        self, capacity: int, *, alpha: float = 0.6, beta: float = 0.4, epsilon: float = 1e-6, compiled: bool = COMPILED
    ) -> None:
        """Hold `capacity` rows, none of which can be drawn yet.

        Args:
            alpha: 0 draws uniformly, 1 in proportion to the error.
            beta: default for `sample`: 0 corrects nothing, 1 all of the bias.
            epsilon: added to each error, in units of it, so that no row starves.
        Raises:
            ValueError: an argument is out of range.
        """
        for name, value in (("alpha", alpha), ("beta", beta), ("epsilon", epsilon)):
            if not 0 <= value < np.inf or (name == "epsilon" and value == 0):
                raise ValueError(f"{name} must be finite and {'above' if name == 'epsilon' else 'at least'} 0, got {value}")
        self.tree = SumTree(capacity, compiled=compiled)
        self.alpha, self.beta, self.epsilon = alpha, beta, epsilon
        self._greatest = 1.0  # weight, that is priority^alpha
        self._count = 0  # rows of positive weight
        self._lock = Lock()  # of the two numbers above, and of steps that read the tree and then write it

    def __len__(self) -> int:
        """Return how many rows have a priority."""
        return self._count

    def added(self, begin: int, end: int) -> None:
        """Give the rows from `begin` up to `end`, newly committed, the greatest priority seen so far."""
        with self._lock:
            self._fill(begin, end, self._greatest)

    def removed(self, begin: int, end: int) -> None:
        """Take the rows from `begin` up to `end` out: they are not drawn until they are added again."""
        with self._lock:
            self._fill(begin, end, 0.0)

    def update(self, rows: Any, errors: Any) -> None:
        """Set priorities from errors (temporal-difference errors, say); rows that were removed meanwhile stay so.

        Args:
            rows: integers `(n,)`; errors: `(n,)`, of either sign.
        Raises:
            IndexError: a row that there is not. ValueError: an error that is not finite. Nothing was changed.
        """
        at = np.ascontiguousarray(rows, np.int64).ravel()
        given = np.asarray(errors, np.float64).ravel()
        if given.shape != at.shape:
            raise ValueError(f"got {at.size} rows and {given.size} errors")
        check_finite(given)
        weights = (np.abs(given) + self.epsilon) ** self.alpha
        with self._lock:
            here = self.tree.get(at) > 0
            self.tree.set(at[here], weights[here])
            self._greatest = max(self._greatest, float(weights.max(initial=0.0)))

    def update_held(self, handles: Rows, errors: Weights, stamps: Rows, stride_bits: int) -> int:
        """Set priorities of the rows that are of the generation in their handle, and return how many; see `Tree.update`."""
        with self._lock:
            held, greatest = self.tree.update(handles, errors, stamps, stride_bits, self.epsilon, self.alpha)
            self._greatest = max(self._greatest, greatest)
        return held

    def sample(self, rng: np.random.Generator, count: int, *, beta: float | None = None, stratified: bool = True) -> Drawn:
        """Draw rows by priority; arguments and errors as `SumTree.sample`.

        Args:
            beta: of this draw, for schedules that raise it to 1; None: the default.
        """
        rows, weights = self.tree.sample(rng, count, stratified=stratified)
        return Drawn(rows, importance_weights(weights, self.tree.least, self.beta if beta is None else beta))

    def _fill(self, begin: int, end: int, weight: float) -> None:
        before = np.count_nonzero(self.tree.get(np.arange(begin, end)))
        self.tree.fill(begin, end, weight)
        self._count += (end - begin if weight > 0 else 0) - int(before)


def check_finite(errors: Weights) -> None:
    """Raise `ValueError` unless all errors are finite."""
    finite = np.isfinite(errors)
    if not finite.all():
        bad = int(np.flatnonzero(~finite)[0])
        raise ValueError(f"errors[{bad}] is {errors[bad]}; it must be finite")


def importance_weights(weights: Weights, least: float, beta: float) -> Singles:
    """Return (N P(i))^-beta over its greatest value: (weight / least weight)^-beta, since N and the total cancel out.

    Args:
        weights: of the drawn rows, all positive. least: the least positive weight of all rows.
    """
    result: Array = (least / weights) ** beta
    return np.minimum(result, 1.0, out=result).astype(np.float32)
