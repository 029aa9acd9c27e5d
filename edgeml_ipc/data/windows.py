"""Windows: batches of rows and of several steps of an episode, as named configs of samplers ask for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from threading import Lock
from typing import Any, Final

import numpy as np

from edgeml_ipc.data.anchors import Anchors, PriorityAnchors, UniformAnchors, Windowing, source_for
from edgeml_ipc.data.batches import LOOKS, UniformRows, check_not_empty
from edgeml_ipc.data.draws import check_window, required_steps
from edgeml_ipc.data.gather import Rows
from edgeml_ipc.data.patience import Patience, overtaken
from edgeml_ipc.data.reading import Reader, Reading
from edgeml_ipc.data.recent import Recency
from edgeml_ipc.data.runs import View
from edgeml_ipc.data.sample_config import ANCHORS, Path, PickedRows, SampleConfig, Transform
from edgeml_ipc.data.sampler import (
    ANCHOR,
    FutureSampler,
    LatestSampler,
    Pick,
    PrioritySampler,
    Sampler,
    SequenceSampler,
    TrajectorySampler,
)
from edgeml_ipc.data.steps import ChunkMap
from edgeml_ipc.data.storage import Storage
from edgeml_ipc.errors import BufferEmpty

_REFUSALS: Final = 20  # snapshots in which no window fits, where rows were overwritten while it was looked for
_NOWHERE: Final = np.empty(0, np.int64)
_PLAIN: Final = (LatestSampler, SequenceSampler, TrajectorySampler)  # they hand on the rows of one field


class Windows:
    """Draws batches by named configs from a storage; the counterpart of `Batches` for whole windows.

    Threads and processes: any thread may call.
    """

    def __init__(self, storage: Storage, seed: int | None, min_length: int) -> None:
        """Begin without configs. `min_length`: episodes of which fewer steps are held are never drawn."""
        self._storage, self._table, self._min_length = storage, storage.table, min_length
        self._map = ChunkMap(storage)
        self._configs: dict[str, SampleConfig] = {}
        self._seed = seed
        self._states: dict[str, dict[str, Any]] = {}  # of generators of a buffer that was loaded, by config
        self._lock = Lock()  # of the counters
        self._updated = self._stale = 0  # priorities

    def register(
        self,
        name: str,
        samplers: Mapping[str, Sampler],
        sample_range: tuple[int, int],
        transform: Transform | None,
        recency: Recency,
    ) -> None:
        """Keep a config; see `ReplayBuffer.register_sample_config`."""
        check_window("sample_range", *sample_range)
        if not samplers:
            raise ValueError("samplers must have at least one field")
        _check_names(samplers)
        leaves: list[str] = []
        follows: list[int] = []
        sets: dict[tuple[int, int], int] = {}
        reads: list[list[list[Path]] | None] = []
        shares = _shared(samplers)
        for number, (field, sampler) in enumerate(samplers.items()):
            paths: list[list[Path]] = []
            for source, pick in sampler.reads(field):
                found = self._leaves_of(source)
                paths.append(list(found))
                key = ANCHORS if pick == ANCHOR else (shares[number], pick)
                leaves += found.values()
                follows += [sets.setdefault(key, len(sets))] * len(found)
            reads.append(None if type(sampler) in _PLAIN and paths == [[()]] else paths)
        if not leaves:
            raise ValueError(f"the samplers of {sorted(samplers)} read no stored field; at least one must")
        windowing, anchors = Windowing(sample_range, self._min_length), source_for(samplers, recency, self._storage)
        # Of its own: what other configs draw makes no difference.
        rng = np.random.default_rng(None if self._seed is None else [self._seed, 1, *name.encode()])
        lock = Lock()
        rows_alone = (
            type(anchors) is UniformAnchors
            and windowing.is_one_row()
            and all(type(s) is LatestSampler for s in samplers.values())
        )
        uniform = UniformRows(self._storage, rng, lock) if rows_alone else None
        reader = Reader(self._storage, leaves, follows)
        self._configs[name] = SampleConfig(
            dict(samplers), windowing, transform, anchors, rng, lock, uniform, reader, shares, list(sets), reads
        )
        self._resume(name, self._configs[name])

    def sample(self, name: str, batch_size: int, force_indices: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """Draw a batch; see `ReplayBuffer.sample`."""
        config = self._config(name)
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        forced = None if force_indices is None else self._checked(force_indices, batch_size)
        if config.uniform is not None and forced is None:
            arrays, redrawn = config.uniform.copy(config.reader, batch_size)
            drawn = None
        else:
            drawn = self._draw(config, batch_size, forced)
            arrays, redrawn = self._copied(config, drawn, forced)
        self._table.tally(batch_size, redrawn)
        data, mask = _handed_out(config, arrays, batch_size, drawn)
        return (data, mask) if config.transform is None else config.transform(data, mask)

    def update_priorities(self, name: str, indices: Any, errors: Any) -> int:
        """Set priorities; see `ReplayBuffer.update_priorities`."""
        config = self._config(name)
        if not isinstance(config.source, PriorityAnchors):
            raise ValueError(f"the sample config {name!r} has no PrioritySampler")
        with config.lock:
            config.source.tracker.follow(View(self._map))
            updated = config.source.tracker.update(indices, errors)
        with self._lock:
            self._updated += updated
            self._stale += len(indices) - updated
        return updated

    def stats(self) -> dict[str, int]:
        """Return counters of this process: priorities that were set, and that came too late for their rows."""
        with self._lock:
            return {"priorities_updated": self._updated, "priorities_stale": self._stale}

    def on_host(self, name: str) -> set[Path]:
        """Return the paths in the data of a config's batches of what must not go to a device: handles need all 64 bits."""
        samplers = self._config(name).samplers
        return {(field, "indices") for field, sampler in samplers.items() if isinstance(sampler, PrioritySampler)}

    def generator_states(self) -> dict[str, dict[str, Any]]:
        """Return the state of each config's random generator, as numpy gives it; also of those yet to be registered again."""
        states = dict(self._states)
        for name, config in list(self._configs.items()):
            with config.lock:
                states[name] = dict(config.rng.bit_generator.state)
        return states

    def set_generator_states(self, states: Mapping[str, dict[str, Any]]) -> None:
        """Go on drawing from what `generator_states` returned, in configs that are registered or yet will be."""
        self._states = dict(states)
        for name, config in list(self._configs.items()):
            self._resume(name, config)

    def _resume(self, name: str, config: SampleConfig) -> None:
        state = self._states.pop(name, None)
        if state is not None:
            with config.lock:
                config.rng.bit_generator.state = state

    def missing(self) -> str:
        """Say what there is, for a message of one who waited for more."""
        steps = self._map.steps()
        rows = steps.rows()
        longest = int((steps.before(rows) + steps.after(rows)).max()) + 1 if len(rows) else 0
        inserted = self._table.counts()[0]
        return (
            f"{inserted} rows were inserted, {len(rows)} are held, the longest episode has {longest} steps, and no window fits"
        )

    def close(self) -> None:
        """Let go of the columns; batches stay as they are. Idempotent."""
        for config in list(self._configs.values()):
            config.reader.close()

    def _config(self, name: str) -> SampleConfig:
        if name not in self._configs:
            raise ValueError(f"no sample config is called {name!r}; registered are {sorted(self._configs)}")
        return self._configs[name]

    def _leaves_of(self, source: str) -> dict[tuple[str, ...], str]:
        """Return the leaves of a field, by their path below it."""
        depth = len(source.split("."))
        leaves = self._storage.columns.shapes
        found = {tuple(leaf.split("."))[depth:]: leaf for leaf in leaves if leaf == source or leaf.startswith(f"{source}.")}
        if not found:
            raise ValueError(f"there is no stored field {source!r}; the fields are {sorted(leaves)}")
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

    def _draw(self, config: SampleConfig, count: int, forced: Rows | None) -> PickedRows:
        refused = 0
        for _ in range(LOOKS):
            with config.lock:
                view = View(self._map)
                if view.total == 0:
                    check_not_empty(self._table.counts()[0], count, self._storage.capacity)
                    continue  # the only row is being overwritten just now
                if forced is not None and not view.steps.holds(forced).all():
                    continue  # as above
                try:
                    if forced is not None:
                        return PickedRows(config, view, config.source.given(view, forced.copy()), (0, 0))
                    anchors = config.source.draw(view, config.rng, count, config.windowing)
                    return PickedRows(config, view, anchors, required_steps(config.windowing.sample_range))
                except BufferEmpty:
                    refused += 1
                    if refused == _REFUSALS or self._all_stand(view):
                        raise
        raise overtaken(self._storage.capacity)

    def _all_stand(self, view: View) -> bool:
        """Tell whether nothing was overwritten since `view` was made."""
        rows = view.steps.rows()
        return self._table.intact(rows, view.steps.stamps(rows), np.empty(len(rows), np.bool_)) == 0

    def _copied(self, config: SampleConfig, drawn: PickedRows, forced: Rows | None) -> tuple[list[Any], int]:
        """Copy what was drawn, and draw anew what was overwritten meanwhile; return how much that was."""
        if config.one_row:
            reading, lost = config.reader.take(drawn.anchors.rows, drawn.anchors.stamps)
            places = np.array(lost, np.int64) if lost else _NOWHERE
        else:
            reading = config.reader.read(drawn.rows(config))
            places = (~drawn.intact(config)).nonzero()[0]
        return reading.arrays, self._redraw(config, reading, drawn, forced, places) if len(places) else 0

    def _redraw(self, config: SampleConfig, reading: Reading, drawn: PickedRows, forced: Rows | None, places: Rows) -> int:
        """Replace the windows at `places`, of which a row was overwritten meanwhile; return how many had to be drawn."""
        redrawn = 0
        with Patience(self._table) as patience:
            for _ in patience:
                if not len(places):
                    return redrawn
                redrawn += len(places)
                new = self._draw(config, len(places), None if forced is None else forced[places])
                drawn.replace(config, places, new)
                cells = [np.arange(rows.size).reshape(rows.shape)[places] for rows in drawn.rows(config)]
                config.reader.patch(reading, new.rows(config), cells)
                places = places[~new.intact(config)]  # the others are good, whatever becomes of their rows
        raise overtaken(self._storage.capacity)


def check_min_length(steps: int) -> None:
    """Raise `ValueError` unless it is the length of an episode."""
    if steps < 1:
        raise ValueError(f"min_trajectory_length must be at least 1 step, got {steps}")


def _check_names(samplers: Mapping[str, Sampler]) -> None:
    """Raise `ValueError` if two samplers would fill the same place."""
    for field, sampler in samplers.items():
        if isinstance(sampler, FutureSampler) and f"{field}_offset" in samplers:
            raise ValueError(f"the field {field!r} comes with {field}_offset; another field cannot be called so")


def _shared(samplers: Mapping[str, Sampler]) -> list[int]:
    """Return, for each sampler, the number of the first that picks the same rows."""
    first: dict[tuple[Any, ...], int] = {}
    shares = []
    for number, sampler in enumerate(samplers.values()):
        same = sampler.same_rows()
        shares.append(number if same is None else first.setdefault((type(sampler), *same), number))
    return shares


def _handed_out(
    config: SampleConfig, arrays: list[Any], count: int, drawn: PickedRows | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    data: dict[str, Any] = {}
    mask: dict[str, Any] = {}
    each = iter(arrays)
    whole = np.ones((len(config.samplers), count), np.bool_)  # each field's mask is its own
    for number, (field, sampler) in enumerate(config.samplers.items()):
        reads, is_own = config.reads[number], config.shares[number] == number
        if type(sampler) is LatestSampler:
            data[field] = next(each) if reads is None else _nested(reads[0], each)
            mask[field] = whole[number]
            continue
        assert drawn is not None
        if isinstance(sampler, PrioritySampler):
            data[field], mask[field] = _prioritized(config, sampler, drawn.anchors), whole[number]
        elif reads is None:  # what `value` would say, sooner
            there = drawn.picks[number][0].mask
            data[field], mask[field] = next(each), there if is_own else there.copy()
        else:
            stored = [_nested(paths, each) for paths in reads]
            picks = drawn.picks[number] if drawn.picks else []
            if not is_own:
                picks = [Pick(rows, there.copy(), offset) for rows, there, offset in picks]
            made, theirs = sampler.value(field, stored, [*picks, Pick(drawn.anchors.rows, whole[number])])
            data.update(made)
            mask.update(theirs)
    return data, mask


def _prioritized(config: SampleConfig, sampler: PrioritySampler, anchors: Anchors) -> dict[str, Any]:
    assert isinstance(config.source, PriorityAnchors)
    assert anchors.weights is not None
    indices, importance = config.source.tracker.hand_out(anchors.rows, anchors.stamps, anchors.weights, sampler.beta)
    return {"indices": indices, "importance": importance}


def _nested(paths: list[Path], leaves: Iterator[Any]) -> Any:
    """Return leaves as the dict that their paths describe, or the only leaf that there is, if it has no path."""
    if paths == [()]:
        return next(leaves)
    tree: dict[str, Any] = {}
    for *parents, last in paths:
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = next(leaves)
    return tree
