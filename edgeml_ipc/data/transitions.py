"""Transitions: the fields that they have, and what follows from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edgeml_ipc.data.columns import DataShape, shapes_of_space

UNKNOWN_VERSION: Final = -1
_RESERVED_NAMES: Final = frozenset({"about", "policy_version", "end_of_trajectory"})


def transition_shapes(observation_space: Any, action_space: Any, extra_columns: Sequence[DataShape]) -> list[DataShape]:
    """List the fields of a transition between these spaces.

    Raises:
        TypeError: a space that has no fixed shape. ValueError: two fields of one name, or a name that has a meaning already.
    """
    shapes = [
        *shapes_of_space("observations", observation_space),
        *shapes_of_space("next_observations", observation_space),
        *shapes_of_space("actions", action_space),
        DataShape("rewards"),
        DataShape("masks"),
        DataShape("dones", dtype="bool"),
        *extra_columns,
    ]
    names = [shape.name for shape in shapes]
    if len(set(names)) != len(names):
        raise ValueError(f"field names must differ, got {names}")
    if taken := _RESERVED_NAMES & {name.split(".")[0] for name in names}:
        raise ValueError(f"extra_columns cannot be called {sorted(taken)}: these names have a meaning of their own")
    return shapes


def completed(data: Mapping[str, Any], ended: bool) -> tuple[dict[str, Any], Any]:
    """Return a shallow copy of one or many transitions in which `dones` is set, and the policy version."""
    if not isinstance(data, Mapping):
        raise TypeError(f"a transition must be a dict, got {type(data).__name__}")
    tree = dict(data)
    version = tree.pop("policy_version", UNKNOWN_VERSION)
    given = [tree.pop(key) for key in ("dones", "end_of_trajectory") if key in tree]
    if not given and "masks" in tree:
        given = [np.asarray(tree["masks"]) == 0]
    if len(given) == 1 and type(given[0]) is bool:
        tree["dones"] = given[0] or ended
        return tree, version
    for flag in given:
        tree["dones"] = np.logical_or(tree.get("dones", ended), np.asarray(flag))
    return tree, version


def positions_of(ended: npt.NDArray[np.bool_], first: int) -> npt.NDArray[np.int64]:
    """Return each row's position in its episode, if the first row has position `first` in one that goes on."""
    count = len(ended)
    starts = np.full(count, -first, np.int64)
    begins = np.flatnonzero(ended[: count - 1]) + 1
    starts[begins] = begins
    positions: npt.NDArray[np.int64] = np.arange(count) - np.maximum.accumulate(starts)
    return positions
