"""Tests of edgeml_ipc.compat.data.jaxrl_data_store."""

from __future__ import annotations

import sys
from typing import Any

import jax
import numpy as np
import pytest
from flax.core import FrozenDict
from gymnasium import spaces

import edgeml_ipc
from edgeml_ipc.compat import DataStoreBase
from edgeml_ipc.compat.data.jaxrl_data_store import ReplayBufferDataStore, make_default_trajectory_buffer

BOX = spaces.Box(-np.inf, np.inf, (3,), np.float32)
DICT = spaces.Dict({"state": BOX, "image": spaces.Box(0, 255, (8, 8, 3), np.uint8)})


def transition(value: int, **more: Any) -> dict[str, Any]:
    seen, then = np.full(3, value, np.float32), np.full(3, value + 1, np.float32)
    item = {"observations": seen, "next_observations": then, "actions": seen, "rewards": value, "masks": 1.0}
    return {**item, "dones": False, **more}


def in_dict(value: int) -> dict[str, Any]:
    image = np.full((8, 8, 3), value, np.uint8)
    item = transition(value)
    return item | {name: {"state": item[name], "image": image} for name in ("observations", "next_observations")}


def test_batches_are_frozen_dicts() -> None:
    store = ReplayBufferDataStore(BOX, BOX, capacity=100)
    assert isinstance(store, DataStoreBase)
    for value in range(20):
        store.insert(transition(value))
    batch = store.sample(64)
    assert isinstance(batch, FrozenDict)
    assert set(batch) == {"observations", "next_observations", "actions", "rewards", "masks", "dones"}
    assert batch["observations"].shape == (64, 3)
    np.testing.assert_array_equal(batch["next_observations"], batch["observations"] + 1)
    assert set(store.sample(10, keys=["rewards", "masks"])) == {"rewards", "masks"}
    assert store.sample(3, indx=np.array([4, 0, 19]))["rewards"].tolist() == [4, 0, 19]
    assert (len(store), store._insert_seq_id, store.latest_data_id()) == (20, 20, 19)


def test_dict_observations_can_be_replaced_as_augmentations_do() -> None:
    store = ReplayBufferDataStore(DICT, BOX, 100)
    for value in range(5):
        store.insert(in_dict(value))
    batch = store.sample(16)
    changed = batch["observations"].copy(add_or_replace={"image": batch["observations"]["image"] * 0})
    assert changed["image"].max() == 0
    assert store.sample(5, indx=np.arange(5))["observations"]["image"][:, 0, 0, 0].tolist() == list(range(5))


def test_an_iterator_keeps_batches_on_a_device() -> None:
    store = ReplayBufferDataStore(BOX, BOX, 100)
    for value in range(20):
        store.insert(transition(value))
    batches = store.get_iterator(queue_size=2, sample_args={"batch_size": 8}, device=jax.devices("cpu")[0])
    for _ in range(3):
        batch = next(batches)
        assert isinstance(batch, FrozenDict)
        assert isinstance(batch["observations"], jax.Array)
        assert batch["observations"].shape == (8, 3)
    batches.close()


def test_without_flax_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    store = ReplayBufferDataStore(BOX, BOX, 100)
    store.insert(transition(0))
    monkeypatch.setitem(sys.modules, "flax.core", None)
    with pytest.raises(ImportError, match=r"pip install 'edgeml_ipc\[rl\]'"):
        store.sample(1)


@pytest.mark.parametrize("space", [BOX, DICT], ids=["box", "dict"])
def test_the_default_trajectory_buffer(space: spaces.Space[Any]) -> None:
    buffer = make_default_trajectory_buffer(space, BOX, 100, device=jax.devices("cpu")[0])
    ours = edgeml_ipc.make_default_trajectory_buffer(space, BOX, 100)
    assert buffer.data_shapes == ours.data_shapes
    for value in range(12):
        item = transition(value) if space is BOX else in_dict(value)
        del item["dones"]
        buffer.insert({**item, "end_of_trajectory": value % 4 == 3})
    data, mask = buffer.sample("training", 2000)
    fields = {"observations", "next_observations", "actions", "rewards", "masks", "end_of_trajectory"}
    assert set(data) == set(mask) == fields
    assert set(data["rewards"].tolist()) == set(range(12))
    seen, then = (data[name] if space is BOX else data[name]["state"] for name in ("observations", "next_observations"))
    np.testing.assert_array_equal(then, seen + 1)
    assert buffer.metadata["ep_end"][:12].tolist() == [4] * 4 + [8] * 4 + [12] * 4
