"""Tests of edgeml_ipc._inlets: what a learner does with batches of uploads, without a connection."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from edgeml_ipc._inlets import BufferInlet, inlet_of
from edgeml_ipc.compat.data.jaxrl_data_store import ReplayBufferDataStore
from edgeml_ipc.data import ReplayBuffer

BOX = spaces.Box(-1, 1, (2,), np.float32)


def step(number: int, **following: Any) -> dict[str, Any]:
    return {"observations": np.zeros(2), "actions": np.zeros(2), "rewards": float(number), "masks": 1.0, **following}


def batch(buffer: ReplayBuffer, wanted: int | None, first_id: int, items: list[dict[str, Any]]) -> dict[str, Any]:
    names = {"client": "actor", "incarnation": b"x" * 16, "learner_store": buffer.incarnation}
    return {**names, "wanted": wanted, "first_id": first_id, "evicted": 0, "items": items}


def rewards(buffer: ReplayBuffer) -> list[float]:
    return [item["rewards"] for item in buffer.get_latest_data(-1)]


def test_a_step_that_was_accepted_and_lost_with_a_learner_is_asked_for_again() -> None:
    """It waited for the step that follows it. Whoever goes on behind it, not knowing of the death, is told to go back."""
    last = step(2, next_observations=np.ones(2), dones=True)
    with ReplayBuffer(BOX, BOX, 100) as buffer:
        learner = BufferInlet(buffer)
        assert learner.take(batch(buffer, None, 0, [step(0), step(1)]))[0]["next_id"] == 2
        learner.close()  # as if it had died: step 1 was not committed
        learner = BufferInlet(buffer)
        assert learner.take(batch(buffer, 2, 2, [last])) == ({"next_id": None}, [])
        assert learner.sync({"client": "actor", "incarnation": b"x" * 16})["next_id"] == 1
        assert learner.take(batch(buffer, 1, 1, [step(1), last]))[0]["next_id"] == 3
        assert rewards(buffer) == [0, 1, 2]
        learner.close()


@pytest.mark.parametrize("wanted", [1, None])
def test_steps_that_the_client_no_longer_has_are_left_out(wanted: int | None) -> None:
    """It knows what is wanted, and begins behind it: no step of the two is joined to the other."""
    last = step(9, next_observations=np.ones(2), dones=True)
    with ReplayBuffer(BOX, BOX, 100) as buffer:
        learner = BufferInlet(buffer)
        learner.take(batch(buffer, None, 0, [step(0, next_observations=np.ones(2))]))
        assert learner.take(batch(buffer, wanted, 9, [last]))[0]["next_id"] == 10
        assert rewards(buffer) == [0, 9]
        assert buffer.about["position"][buffer.rows()].tolist() == [0, 0]
        learner.close()


class Halving(ReplayBuffer):
    """A user's own class, which does something with each step."""

    def insert(self, data: Any, end_of_trajectory: bool = False) -> None:
        super().insert({**data, "rewards": data["rewards"] / 2}, end_of_trajectory)


def test_the_insert_of_a_users_own_class_is_called() -> None:
    with Halving(BOX, BOX, 100) as buffer:
        learner = inlet_of(buffer)
        life = learner.sync({"client": "actor", "incarnation": b"x" * 16})["learner_store"]
        steps = [step(number, next_observations=np.ones(2)) for number in range(4)]
        uploaded = batch(buffer, None, 0, steps) | {"learner_store": life}
        for _ in range(2):
            assert learner.take(uploaded)[0]["next_id"] == 4
        assert rewards(buffer) == [0, 0.5, 1, 1.5]


def test_the_insert_of_a_class_of_this_package_is_gone_past() -> None:
    with ReplayBuffer(BOX, BOX, 100) as buffer:
        inlet = inlet_of(buffer)
        assert isinstance(inlet, BufferInlet)
        inlet.close()
    with ReplayBufferDataStore(BOX, BOX, 100) as buffer:
        inlet = inlet_of(buffer)
        assert isinstance(inlet, BufferInlet)
        inlet.close()
