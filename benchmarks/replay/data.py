"""What is stored: the same transitions for floors, peers and ours, as arrays, as dicts, and as whole columns."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from itertools import cycle
from typing import Any, Generic, TypeVar

import numpy as np

BATCH = 256
INSERTED_AT_ONCE = 50
EPISODE_STEPS = 200
ACTIONS = 8
SCALARS = {"act": ((ACTIONS,), "f4"), "reward": ((), "f4"), "done": ((), "?")}
ROW_SETS = 512  # different batches of rows, so that rows are read from memory and not from a cache

Spec = dict[str, tuple[tuple[int, ...], str]]
Columns = dict[str, np.ndarray]
T = TypeVar("T")


@dataclass(frozen=True)
class Kind:
    """A kind of transitions.

    Attributes:
        name: in the names of cases.
        rows: capacity of every buffer of this kind; all are full before they are measured.
        observation: shape and dtype of each part of an observation; one part without a name: no dict.
        episodes: different ones that exist; they are stored again and again.
    """

    name: str
    rows: int
    observation: Spec
    episodes: int

    @property
    def spec(self) -> Spec:
        """Return shape and dtype of each field of a transition: obs, act, reward, done, next_obs."""
        before = {f"obs{part}": spec for part, spec in self.observation.items()}
        return {**before, **SCALARS, **{f"next_{name}": spec for name, spec in before.items()}}


STATE = Kind("state", 1_000_000, {"": ((64,), "f4")}, 20)
IMAGE = Kind("image", 50_000, {"": ((84, 84, 4), "u1")}, 1)
CAMERAS = Kind("cameras", 10_000, {"_front": ((128, 128, 3), "u1"), "_wrist": ((128, 128, 3), "u1")}, 1)


def spec_bytes(spec: Spec) -> int:
    """Return the bytes of one row."""
    return sum(int(np.prod(shape)) * np.dtype(dtype).itemsize for shape, dtype in spec.values())


def piece(kind: Kind) -> Columns:
    """Return whole episodes as stacked arrays; each next observation is the observation of the step after it.

    Every other episode ends by termination, the others are cut off; `mask` is 0 at the first kind of end.
    """
    rng = np.random.default_rng(0)
    count = kind.episodes * EPISODE_STEPS
    arrays: Columns = {}
    for part, (shape, dtype) in kind.observation.items():
        seen = rng.integers(0, 255, (kind.episodes, EPISODE_STEPS + 1, *shape)).astype(dtype)
        arrays[f"obs{part}"] = seen[:, :-1].reshape(count, *shape)
        arrays[f"next_obs{part}"] = seen[:, 1:].reshape(count, *shape)
    arrays["act"] = rng.uniform(-1, 1, (count, ACTIONS)).astype("f4")
    arrays["reward"] = rng.standard_normal(count).astype("f4")
    step, episode = np.arange(count) % EPISODE_STEPS, np.arange(count) // EPISODE_STEPS
    arrays["done"] = step == EPISODE_STEPS - 1
    arrays["mask"] = np.where(arrays["done"] & (episode % 2 == 0), 0, 1).astype("f4")
    return arrays


def pieces(kind: Kind) -> list[Columns]:
    """Return stacked arrays which, inserted one after the other, fill a buffer of this kind exactly."""
    whole = piece(kind)
    count = len(whole["done"])
    times, rest = divmod(kind.rows, count)
    return [whole] * times + ([{name: array[:rest] for name, array in whole.items()}] if rest else [])


def sliced(whole: Columns, size: int) -> list[Columns]:
    """Cut stacked arrays into consecutive stacked arrays of `size` steps."""
    return [{name: array[at : at + size] for name, array in whole.items()} for at in range(0, len(whole["done"]), size)]


def our_stacked(arrays: Columns) -> dict[str, Any]:
    """Return stacked arrays under the names that `ReplayBuffer` gives them."""
    named = {"actions": "act", "rewards": "reward", "masks": "mask", "dones": "done"}
    tree: dict[str, Any] = {ours: arrays[theirs] for ours, theirs in named.items()}
    for ours, theirs in (("observations", "obs"), ("next_observations", "next_obs")):
        parts = {name.removeprefix(theirs): array for name, array in arrays.items() if name.startswith(theirs)}
        tree[ours] = parts[""] if "" in parts else {part.lstrip("_"): array for part, array in parts.items()}
    return tree


def our_transitions(arrays: Columns) -> list[dict[str, Any]]:
    """Return what an actor would insert: one dict for each step, numbers as Python's own."""
    tree = our_stacked(arrays)
    scalars = {name: tree[name].tolist() for name in ("rewards", "masks", "dones")}

    def item(value: Any, step: int) -> Any:
        return {key: child[step] for key, child in value.items()} if isinstance(value, dict) else value[step]

    return [
        {
            **{name: item(tree[name], step) for name in ("observations", "actions", "next_observations")},
            **{name: values[step] for name, values in scalars.items()},
        }
        for step in range(len(arrays["done"]))
    ]


def spaces(kind: Kind) -> tuple[Any, Any]:
    """Return what a buffer must know of the spaces; gymnasium is not needed."""

    class Space:
        def __init__(self, shape: tuple[int, ...], dtype: str) -> None:
            self.shape, self.dtype = shape, np.dtype(dtype)

    class Dict:
        def __init__(self, spaces: dict[str, Space]) -> None:
            self.spaces = spaces

    parts = {part.lstrip("_"): Space(*spec) for part, spec in kind.observation.items()}
    return parts.get("") or Dict(parts), Space((ACTIONS,), "f4")


def column(rows: int, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Return an array on shared memory, as a store's columns are, with every page written."""
    memory = mmap.mmap(-1, rows * int(np.prod(shape)) * np.dtype(dtype).itemsize)
    array = np.frombuffer(memory, dtype).reshape(rows, *shape)
    array[:] = 1
    return array


@contextmanager
def columns(kind: Kind) -> Iterator[Columns]:
    """Make plain columns of a kind; those of images take half the memory: the next image of a row is the next row's."""
    made = {name: column(kind.rows, *spec) for name, spec in kind.spec.items() if kind is STATE or name in SCALARS}
    for part, spec in kind.observation.items() if kind is not STATE else ():
        frames = column(kind.rows + 1, *spec)
        made[f"obs{part}"], made[f"next_obs{part}"] = frames[:-1], frames[1:]
    yield made


class Shared(Generic[T]):
    """Something large that several open cases use: the first one makes it, and it goes with the last."""

    def __init__(self, make: Callable[[], AbstractContextManager[T]]) -> None:
        """Make nothing yet."""
        self._make, self._users, self._stack = make, 0, ExitStack()
        self._made: list[T] = []

    @contextmanager
    def used(self) -> Iterator[T]:
        """Use it until the block ends."""
        if not self._made:
            self._made.append(self._stack.enter_context(self._make()))
        self._users += 1
        try:
            yield self._made[0]
        finally:
            self._users -= 1
            if self._users == 0:
                self._made.clear()
                self._stack.close()


def row_sets(rows: int, window: int) -> list[np.ndarray]:
    """Draw batches of rows, `(256,)`, or windows of consecutive ones, `(256, window)`."""
    rng = np.random.default_rng(0)
    last = [rng.integers(window - 1, rows, BATCH) for _ in range(ROW_SETS // window + 1)]
    return last if window == 1 else [rows[:, None] + np.arange(1 - window, 1)[None, :] for rows in last]


def turns(things: list[T]) -> Callable[[], T]:
    """Return a function that gives one after the other, for ever, and takes next to no time itself."""
    return cycle(things).__next__
