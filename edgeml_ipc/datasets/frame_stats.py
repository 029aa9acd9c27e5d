"""Statistics of frames, gathered episode by episode."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


class FrameStats:
    """Least, greatest, mean and standard deviation of each element.

    Source: T. Chan, G. Golub, R. LeVeque, Algorithms for computing the sample variance (1983), for `merge`.

    Example:
        >>> stats = FrameStats()
        >>> stats.add(np.array([[1.0], [3.0]]))
        >>> stats.values()["mean"], stats.values()["std"]
        (array([2.]), array([1.]))
    """

    def __init__(self) -> None:
        """Begin with nothing."""
        self.count = 0
        self._min: Floats = np.array(np.inf)
        self._max: Floats = np.array(-np.inf)
        self._mean: Floats = np.array(0.0)
        self._squares: Floats = np.array(0.0)  # summed squares of the distances from the mean

    def add(self, values: Floats) -> None:
        """Take in samples `(n, *shape)`, with n of at least 1."""
        other = FrameStats()
        other.count, other._min, other._max = len(values), values.min(axis=0), values.max(axis=0)
        other._mean = values.mean(axis=0)
        other._squares = np.square(values - other._mean).sum(axis=0)
        self.merge(other)

    def merge(self, other: FrameStats) -> None:
        """Take in the samples of another."""
        total = self.count + other.count
        apart = other._mean - self._mean
        self._min, self._max = np.minimum(self._min, other._min), np.maximum(self._max, other._max)
        self._squares = self._squares + other._squares + np.square(apart) * (self.count * other.count / total)
        self._mean = self._mean + apart * (other.count / total)
        self.count = total

    def values(self) -> dict[str, Floats]:
        """Return min, max, mean and std, each `(*shape)`."""
        return {"min": self._min, "max": self._max, "mean": self._mean, "std": np.sqrt(self._squares / self.count)}
