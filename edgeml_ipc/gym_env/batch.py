"""A batch of environments in shared memory: a column for each array, a row for each environment.

    | observations, leaf by leaf | actions, leaf by leaf | rewards f8 | terminated ? | truncated ? |    64-byte aligned columns

The parent writes actions, a worker writes the other columns' rows of its own environments, and a message that follows says that
they are written: it carries the memory ordering. Nobody reads a row while its writer may be at it. A worker that dies
leaves a torn row, and the parent does not read it: it is told of the death instead of the message.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from gymnasium import Space, spaces

_ALIGNMENT: Final = 64
_FIXED: Final = (spaces.Box, spaces.Discrete, spaces.MultiBinary, spaces.MultiDiscrete)

Arrays = Any  # an array of shape (num_envs, *shape), or a dict or tuple of such trees


class Batch:
    """The columns of a batch; all processes lay them out alike from the same spaces.

    Args:
        memory: a segment's, of `nbytes`; None only computes `nbytes`.
    Raises:
        TypeError: a space holds values of no fixed shape.
    Attributes:
        observations, actions: trees of arrays `(num_envs, *shape)`, views on the memory.
        rewards: (num_envs,) float64. terminated, truncated: (num_envs,) bool.
        nbytes: that the columns take.
    """

    def __init__(
        self, memory: mmap.mmap | None, observation_space: Space[Any], action_space: Space[Any], num_envs: int
    ) -> None:
        self._memory = memory
        self._num_envs = num_envs
        self.nbytes = 0
        self.observations = self._columns(observation_space, "observation_space")
        self.actions = self._columns(action_space, "action_space")
        self.rewards = self._column(np.dtype(np.float64), ())
        self.terminated = self._column(np.dtype(np.bool_), ())
        self.truncated = self._column(np.dtype(np.bool_), ())

    def _columns(self, space: Space[Any], where: str) -> Arrays:
        if isinstance(space, spaces.Dict):
            return {key: self._columns(inner, f"{where}[{key!r}]") for key, inner in space.spaces.items()}
        if isinstance(space, spaces.Tuple):
            return tuple(self._columns(inner, f"{where}[{i}]") for i, inner in enumerate(space.spaces))
        if isinstance(space, _FIXED) and space.shape is not None:
            return self._column(np.dtype(space.dtype), space.shape)
        raise TypeError(
            f"{where} is a {type(space).__name__}, whose values have no fixed shape and cannot lie in shared memory; "
            "gymnasium.vector.AsyncVectorEnv(shared_memory=False) takes it"
        )

    def _column(self, dtype: np.dtype[Any], shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
        begin = -(-self.nbytes // _ALIGNMENT) * _ALIGNMENT
        whole = (self._num_envs, *shape)
        self.nbytes = begin + math.prod(whole) * dtype.itemsize
        if self._memory is None:
            return np.broadcast_to(np.zeros((), dtype), whole)
        return np.ndarray(whole, dtype, self._memory, begin)


def row_writer(space: Space[Any], arrays: Arrays) -> Callable[[int, Any], None]:
    """Return `write(row, value)`, which puts a value of the space into the columns."""
    if isinstance(space, spaces.Dict | spaces.Tuple):
        inner = dict(space.spaces.items()) if isinstance(space, spaces.Dict) else dict(enumerate(space.spaces))
        writers = [(key, row_writer(part, arrays[key])) for key, part in inner.items()]

        def write_all(row: int, value: Any) -> None:
            for key, write in writers:
                write(row, value[key])

        return write_all
    shape = space.shape

    def write_one(row: int, value: Any) -> None:
        given = np.asarray(value)
        if given.shape != shape:
            raise ValueError(f"the observation has shape {given.shape}, its space has {shape}")
        arrays[row] = given

    return write_one


def row_reader(space: Space[Any], arrays: Arrays) -> Callable[[int], Any]:
    """Return `read(row)`, which gives a value of the space, copied out of the columns."""
    if isinstance(space, spaces.Dict):
        named = {key: row_reader(part, arrays[key]) for key, part in space.spaces.items()}
        return lambda row: {key: read(row) for key, read in named.items()}
    if isinstance(space, spaces.Tuple):
        listed = [row_reader(part, arrays[i]) for i, part in enumerate(space.spaces)]
        return lambda row: tuple(read(row) for read in listed)
    if isinstance(space, spaces.Discrete):
        return lambda row: arrays[row]  # a numpy scalar
    return lambda row: arrays[row, ...].copy()


def write_batch(arrays: Arrays, values: Any, where: str = "actions") -> None:
    """Put the values of all environments into columns.

    Raises:
        ValueError: they are not a batch of that shape. TypeError, KeyError: nor of that structure.
    """
    if isinstance(arrays, dict):
        for key, column in arrays.items():
            write_batch(column, values[key], f"{where}[{key!r}]")
    elif isinstance(arrays, tuple):
        for i, column in enumerate(arrays):
            write_batch(column, values[i], f"{where}[{i}]")
    else:
        given = np.asarray(values)
        if given.shape != arrays.shape:
            raise ValueError(f"{where} must have shape {arrays.shape}, got {given.shape}")
        np.copyto(arrays, given, casting="unsafe")  # as gymnasium does: float64 actions for a float32 space are usual


def copied(arrays: Arrays) -> Arrays:
    """Return a tree of copies."""
    if isinstance(arrays, dict):
        return {key: copied(column) for key, column in arrays.items()}
    if isinstance(arrays, tuple):
        return tuple(copied(column) for column in arrays)
    return arrays.copy()
