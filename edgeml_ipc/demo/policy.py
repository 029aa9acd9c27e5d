"""The actor's side of the policy: plain numpy, so that an actor process starts in a second and needs no compiler."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt


class Policy:
    """A tanh-Gaussian policy over the parameters that the learner publishes.

    Example:
        >>> layer = {"kernel": np.zeros((3, 2), np.float32), "bias": np.zeros(2, np.float32)}
        >>> Policy({"Dense_0": layer}).mode(np.ones(3, np.float32))
        array([0.], dtype=float32)
    """

    def __init__(self, params: Mapping[str, Any]) -> None:
        """Take the layers `Dense_0`, `Dense_1`, ... in that order; the arrays are not copied."""
        layers = [params[f"Dense_{i}"] for i in range(len(params))]
        self._layers = [(np.asarray(layer["kernel"]), np.asarray(layer["bias"])) for layer in layers]

    def mode(self, observation: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return the most likely action, in -1..1."""
        mean, _ = self._distribution(observation)
        return np.tanh(mean)

    def sample(self, observation: npt.NDArray[np.float32], rng: np.random.Generator) -> npt.NDArray[np.float32]:
        """Draw an action, in -1..1."""
        mean, log_std = self._distribution(observation)
        noise = rng.standard_normal(mean.shape, dtype=np.float32)
        return np.tanh(mean + np.exp(np.clip(log_std, -10.0, 2.0)) * noise)

    def _distribution(self, observation: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        x = observation
        for kernel, bias in self._layers[:-1]:
            x = np.maximum(x @ kernel + bias, 0)
        kernel, bias = self._layers[-1]
        mean, log_std = np.split(x @ kernel + bias, 2, axis=-1)
        return mean, log_std
