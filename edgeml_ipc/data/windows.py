"""Windows: batches of several steps of an episode, as named configs of samplers ask for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from threading import Lock
from typing import Any, Final

import numpy as np

from edgeml_ipc.data.batches import ATTEMPTS, check_not_empty, gathered, overtaken, patched
from edgeml_ipc.data.columns import Array
from edgeml_ipc.data.draws import Mask, check_window, draw_anchors
from edgeml_ipc.data.gather import Batch, Gather, Rows
from edgeml_ipc.data.sampler import PrioritySampler, Sampler
from edgeml_ipc.data.steps import ChunkMap, ChunkSteps
from edgeml_ipc.data.storage import Storage
from edgeml_ipc.errors import BufferEmpty

_REFUSALS: Final = 20  # snapshots in which no window fits, where rows were overwritten while it was looked for
Transform = Callable[[dict[str, Any], dict[str, Any]], tuple[dict[str, Any], dict[str, Any]]]


@dataclass(frozen=True)
class SampleConfig:
    """What a batch is made of.

    Attributes:
        samplers: by field of the batch.
        sample_range: the window [begin, end) around an anchor that must be held.
        transform: makes (data, mask) of (data, mask); None: they stay as they are.
        gather: of the columns, each following the rows of its field's sampler.
        names: of those columns, by field: the path below the field, and which column.
    """

    samplers: Mapping[str, Sampler]
    sample_range: tuple[int, int]
    transform: Transform | None
    gather: Gather
    names: Mapping[str, list[tuple[str, ...]]]


class _Drawn:
    """The cells of a batch: which rows, and what they must still be after they were copied.

    Attributes:
        rows: `(fields, ...)`: for each field `(batch, *time)`, -1 where there is no step.
        masks: of the same shapes.
        cells, stamps, distances: `(batch, 1 + cells of all fields)`: the anchor's row first, and how far each is from it.
    """

    def __init__(self, config: SampleConfig, steps: ChunkSteps, anchors: Rows, rng: np.random.Generator) -> None:
        picks = [sampler.pick(steps, anchors, rng) for sampler in config.samplers.values()]
        self.rows = [np.ascontiguousarray(pick.rows) for pick in picks]
        self.masks = [pick.mask for pick in picks]
        self.cells = np.concatenate([anchors[:, None], *(rows.reshape(len(anchors), -1) for rows in self.rows)], axis=1)
        there = np.where(self.cells >= 0, self.cells, anchors[:, None])
        self.stamps, order = steps.stamps(there), steps.order(there)
        self.distances = order - order[:, :1]
        self.cells = there

    def replace(self, places: Rows, by: _Drawn) -> None:
        """Take the elements `places` from another."""
        for mine, new in zip([*self.rows, *self.masks], [*by.rows, *by.masks], strict=True):
            mine[places] = new
        self.cells[places], self.stamps[places], self.distances[places] = by.cells, by.stamps, by.distances


class Windows:
    """Draws batches by named configs from a storage; the counterpart of `Batches` for whole windows.

    Threads and processes: any thread may call.
    """

    def __init__(self, storage: Storage, seed: int | None, min_length: int) -> None:
        """Begin without configs. `min_length`: episodes of which fewer steps are held are never drawn."""
        self._storage, self._table, self._min_length = storage, storage.table, min_length
        self._position = storage.about.arrays["position"]
        self._map = ChunkMap(storage)
        self._configs: dict[str, SampleConfig] = {}
        self._rng = np.random.default_rng(None if seed is None else [seed, 1])  # not the stream of `Batches`
        self._rng_lock = Lock()

    def register(
        self, name: str, samplers: Mapping[str, Sampler], sample_range: tuple[int, int], transform: Transform | None
    ) -> None:
        """Keep a config; see `ReplayBuffer.register_sample_config`."""
        check_window("sample_range", *sample_range)
        if not samplers:
            raise ValueError("samplers must have at least one field")
        columns: list[Array] = []
        follows: list[int] = []
        names: dict[str, list[tuple[str, ...]]] = {}
        for number, (field, sampler) in enumerate(samplers.items()):
            if isinstance(sampler, PrioritySampler):
                raise ValueError(f"the sampler of {field!r} is a PrioritySampler; a shared buffer draws anchors uniformly")
            found = self._columns_of(field if sampler.source is None else sampler.source)
            names[field] = list(found)
            columns += found.values()
            follows += [number] * len(found)
        gather = Gather(columns, follows)
        self._configs[name] = SampleConfig(dict(samplers), (sample_range[0], sample_range[1]), transform, gather, names)

    def sample(self, name: str, batch_size: int, force_indices: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """Draw a batch; see `ReplayBuffer.sample`."""
        if name not in self._configs:
            raise ValueError(f"no sample config is called {name!r}; registered are {sorted(self._configs)}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        config = self._configs[name]
        forced = None if force_indices is None else self._checked(force_indices, batch_size)
        drawn = self._draw(config, batch_size, forced)
        batch = gathered(config.gather, drawn.rows)
        redrawn = self._redraw(config, batch, drawn, forced)
        self._table.tally(batch_size, redrawn)
        return _handed_out(config, batch, drawn.masks)

    def close(self) -> None:
        """Let go of the columns; batches stay as they are. Idempotent."""
        for config in list(self._configs.values()):
            config.gather.close()

    def _columns_of(self, source: str) -> dict[tuple[str, ...], Array]:
        """Return the columns of a field, by their path below it."""
        depth = len(source.split("."))
        arrays = self._storage.columns.arrays
        found = {
            tuple(column.split("."))[depth:]: array
            for column, array in arrays.items()
            if column == source or column.startswith(f"{source}.")
        }
        if not found:
            raise ValueError(f"there is no stored field {source!r}; the fields are {sorted(arrays)}")
        return found

    def _checked(self, indices: Any, batch_size: int) -> Rows:
        rows = np.asarray(indices)
        if rows.shape != (batch_size,) or rows.dtype.kind not in "iu":
            raise ValueError(f"force_indices must be ({batch_size},) integers, got {rows.dtype} of shape {rows.shape}")
        if rows.size and not (rows.min() >= 0 and rows.max() < self._storage.capacity):
            raise ValueError(f"force_indices must be from 0 to {self._storage.capacity - 1}, got {rows.min()} to {rows.max()}")
        forced = np.ascontiguousarray(rows, np.int64)
        held = self._map.steps().holds(forced)
        if not held.all():
            raise ValueError(f"force_indices names the row {forced[~held][0]}, which holds nothing")
        return forced

    def _draw(self, config: SampleConfig, count: int, forced: Rows | None) -> _Drawn:
        refused = 0
        for _ in range(ATTEMPTS):
            steps = self._map.steps()
            if steps.total == 0:
                check_not_empty(self._table.counts()[0], count, self._storage.capacity)
                continue  # the only row is being overwritten just now
            if forced is not None and not steps.holds(forced).all():
                continue  # as above
            try:
                with self._rng_lock:
                    anchors = forced
                    if anchors is None:
                        anchors = draw_anchors(steps, self._rng, count, config.sample_range, min_length=self._min_length)
                    return _Drawn(config, steps, anchors, self._rng)
            except BufferEmpty:
                refused += 1
                if refused == _REFUSALS or self._all_stand(steps):
                    raise
        raise overtaken(self._storage.capacity)

    def _all_stand(self, steps: ChunkSteps) -> bool:
        """Tell whether nothing was overwritten since `steps` was made."""
        rows = steps.rows()
        return self._table.intact(rows, steps.stamps(rows), np.empty(len(rows), np.bool_)) == 0

    def _redraw(self, config: SampleConfig, batch: Batch, drawn: _Drawn, forced: Rows | None) -> int:
        """Replace windows of which a row was overwritten meanwhile, until there are none; return how many those were."""
        redrawn, places = 0, np.arange(len(drawn.cells))
        for _ in range(ATTEMPTS):
            places = places[~self._intact(drawn, places)]  # the others are good, whatever becomes of their rows
            if not len(places):
                return redrawn
            redrawn += len(places)
            new = self._draw(config, len(places), None if forced is None else forced[places])
            drawn.replace(places, new)
            cells = [np.arange(rows.size).reshape(rows.shape)[places] for rows in drawn.rows]
            patched(config.gather, batch, new.rows, cells)
        raise overtaken(self._storage.capacity)

    def _intact(self, drawn: _Drawn, places: Rows) -> Mask:
        """Tell which of some elements were copied whole, and from one episode."""
        cells = drawn.cells[places]
        position = self._position[cells]
        whole = np.empty(cells.size, np.bool_)
        self._table.intact(cells.ravel(), drawn.stamps[places].ravel(), whole)
        of_one_episode = position - position[:, :1] == drawn.distances[places]
        intact: Mask = (whole.reshape(cells.shape) & of_one_episode).all(axis=1)
        return intact


def check_min_length(steps: int) -> None:
    """Raise `ValueError` unless it is the length of an episode."""
    if steps < 1:
        raise ValueError(f"min_trajectory_length must be at least 1 step, got {steps}")


def _handed_out(config: SampleConfig, batch: Batch, masks: list[Mask]) -> tuple[dict[str, Any], dict[str, Any]]:
    data: dict[str, Any] = {}
    arrays = iter(batch.arrays)
    for field, paths in config.names.items():
        for path in paths:
            *parents, last = (field, *path)
            node = data
            for key in parents:
                node = node.setdefault(key, {})
            node[last] = next(arrays)
    mask = dict(zip(config.samplers, masks, strict=True))
    return (data, mask) if config.transform is None else config.transform(data, mask)
