"""What a named sample config is made of, and the rows that it picks for one batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from threading import Lock
from typing import Any, Final

import numpy as np

from edgeml_ipc.data.anchors import Anchors, AnchorSource, Windowing
from edgeml_ipc.data.batches import UniformRows
from edgeml_ipc.data.draws import Mask
from edgeml_ipc.data.gather import Rows
from edgeml_ipc.data.reading import Reader
from edgeml_ipc.data.runs import View
from edgeml_ipc.data.sampler import ANCHOR, Pick, Sampler

ANCHORS: Final = (0, ANCHOR)  # the set of rows that are the anchors, whatever the sampler
Transform = Callable[[dict[str, Any], dict[str, Any]], tuple[dict[str, Any], dict[str, Any]]]
Path = tuple[str, ...]


@dataclass(frozen=True)
class SampleConfig:
    """What a batch is made of.

    Attributes:
        samplers: by field of the batch.
        windowing: what must be held around an anchor.
        transform: makes (data, mask) of (data, mask); None: they stay as they are.
        source: of the anchors; `rng` draws them. `lock` is held by who uses either.
        uniform: draws all that a batch is made of, where that is rows alone; else None.
        reader: of the stored leaves.
        shares: for each sampler, the number of the first that picks the same rows: its own, or an earlier one's.
        sets: of rows that the leaves follow: numbers of a sampler and of its pick.
        reads: of each sampler, for each stored field that it reads, the paths of its leaves, below the field; of one that
            takes a field that is one leaf as it is, None.
    """

    samplers: Mapping[str, Sampler]
    windowing: Windowing
    transform: Transform | None
    source: AnchorSource
    rng: np.random.Generator
    lock: Lock
    uniform: UniformRows | None
    reader: Reader
    shares: list[int]
    sets: list[tuple[int, int]]
    reads: list[list[list[Path]] | None]

    @cached_property
    def one_row(self) -> bool:
        """Whether all that is read of an element is its anchor's row."""
        return self.sets == [ANCHORS]


class PickedRows:
    """The rows of a batch.

    Attributes:
        anchors: of the elements.
        picks: of each sampler; empty where all fields are the anchors' own rows. Samplers that choose the same rows share them.
    """

    def __init__(self, config: SampleConfig, view: View, anchors: Anchors, required: tuple[int, int]) -> None:
        """Pick the rows. `required`: the first and the last step, from each anchor, that had to be there."""
        self._view, self.anchors, self._required = view, anchors, required
        self.picks: list[list[Pick]] = []
        if config.one_row:
            return
        for number, sampler in enumerate(config.samplers.values()):
            shared = config.shares[number]
            if shared < number:
                self.picks.append(self.picks[shared])
                continue
            made = sampler.picks(view.steps, anchors.rows, config.rng)
            self.picks.append([pick._replace(rows=np.ascontiguousarray(pick.rows)) for pick in made])

    def rows(self, config: SampleConfig) -> list[Rows]:
        """Return the rows of each set."""
        return [self.anchors.rows if key == ANCHORS else self.picks[key[0]][key[1]].rows for key in config.sets]

    def intact(self, config: SampleConfig) -> Mask:
        """Tell, after they were copied, which elements are whole and of one episode: of those that were drawn, not replaced."""
        if config.one_row:
            whole = np.empty(len(self.anchors.rows), np.bool_)
            self._view.table.intact(self.anchors.rows, self.anchors.stamps, whole)
            return whole
        first, *others = self.rows(config)
        whole = self._view.steps.intact(self.anchors.rows, first, *self._required)  # what is required is looked at once
        for rows in others:
            whole &= self._view.steps.intact(self.anchors.rows, rows)
        return whole

    def replace(self, config: SampleConfig, places: Rows, by: PickedRows) -> None:
        """Take the elements `places` from another."""
        for mine, new in zip(self._arrays(config), by._arrays(config), strict=True):
            mine[places] = new

    def _arrays(self, config: SampleConfig) -> list[Any]:
        each: list[Any] = [*self.anchors]
        own = (picks for number, picks in enumerate(self.picks) if config.shares[number] == number)
        each += [array for picks in own for pick in picks for array in pick]
        return [array for array in each if array is not None]
