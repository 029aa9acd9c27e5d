"""An RLDS episode that is not over: transitions in, one tf.train.Example out.

Of T transitions T + 1 steps are made. Step t has the observation, action, reward and discount of transition t; the last one has
the observation that followed, and zeros for all else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from edgeml_ipc.data.columns import Array
from edgeml_ipc.datasets.rlds_features import DISCOUNT, MARKS, Feature
from edgeml_ipc.datasets.tf_example import INTS, example, packed_ints

MOST_BYTES: Final = 1 << 29  # of an episode; protobuf refuses messages of 2 GiB


class OpenEpisode:
    """Steps, encoded as they come.

    Attributes:
        transitions: how many came. nbytes: that they take.
    """

    def __init__(self, features: Sequence[Feature]) -> None:
        self._features = features
        self._lists = [bytearray() for _ in features]
        self.transitions = self.nbytes = 0

    def extend(self, values: Mapping[str, Array]) -> None:
        """Add transitions: for each field that a feature has for its source `(n, *shape)`."""
        self.transitions += len(next(iter(values.values())))
        for feature, encoded in zip(self._features, self._lists, strict=True):
            found = values.get(feature.source)
            if found is None:
                assert feature.name == DISCOUNT
                found = np.ones(self.transitions - len(encoded) // 4, np.float32)
            encoded += feature.encode(found)
        self.nbytes = sum(map(len, self._lists))

    def finish(self, following: Mapping[str, Array], terminal: bool) -> bytes:
        """Return the Example of the whole episode.

        Args:
            following: the observation after the last transition, `(1, *shape)` for each field.
            terminal: whether the episode ended for good, or was cut off.
        """
        for feature, encoded in zip(self._features, self._lists, strict=True):
            last = following[feature.source] if feature.is_observation else np.zeros((1, *feature.shape), feature.dtype)
            encoded += feature.encode(last)
        steps = self.transitions + 1
        marks = np.zeros((len(MARKS), steps), bool)
        marks[0, 0] = marks[1, -1] = True
        marks[2, -1] = terminal
        lists = {f"steps/{each.name}": (each.kind, encoded) for each, encoded in zip(self._features, self._lists, strict=True)}
        lists |= {f"steps/{name}": (INTS, bytearray(packed_ints(mark))) for name, mark in zip(MARKS, marks, strict=True)}
        return example(lists)
