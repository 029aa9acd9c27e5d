"""Every store of ours that is sampled passes the suites for users: anonymous, named, of several chunk sizes, without C."""

import itertools
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from edgeml_ipc.data import DataShape, ReplayBuffer, TrajectoryBuffer
from edgeml_ipc.testing._replay_base import ReplayTests
from edgeml_ipc.testing._replay_sampling import SamplingTests
from edgeml_ipc.testing._replay_saving import SavingTests
from edgeml_ipc.testing._replay_windows import WindowTests
from edgeml_ipc.testing._store_contents import ContentTests
from edgeml_ipc.testing._store_threads import ThreadTests
from edgeml_ipc.testing.stores import SavedReplayConformance, SharedReplayConformance
from tests.data.test_replay_buffer import ACTIONS, BOX, DICT, image_transition, transition

_numbers = itertools.count()
STEP_SHAPES = [DataShape("step.number", dtype="int64"), DataShape("step.image", (4, 4), "uint8")]


class Transitions(ReplayTests):
    """Items of the buffers below."""

    copies = True

    def make_replay(self, capacity: int, seed: int | None = None) -> ReplayBuffer:
        return ReplayBuffer(BOX, ACTIONS, capacity, seed=seed)

    def make_item(self, value: int) -> Any:
        return transition(value)

    def make_bad_item(self) -> Any:
        return {**transition(0), "unknown": 1}

    def value_of(self, item: Any) -> int:
        assert item["observations"].shape == (3,)
        assert (item["observations"] == item["rewards"]).all()
        assert (item["next_observations"] == item["rewards"] + 1).all()
        return int(item["rewards"])


class TestReplayBuffer(Transitions, SavedReplayConformance):
    """As users make it."""


class Chunks(Transitions, SavingTests, ContentTests, ThreadTests, SamplingTests, WindowTests):
    """All of the suite but the uploads, which do not see chunks."""

    def chunk_rows(self, capacity: int) -> int:
        raise NotImplementedError

    def make_replay(self, capacity: int, seed: int | None = None) -> ReplayBuffer:
        return ReplayBuffer(BOX, ACTIONS, capacity, seed=seed, chunk_rows=self.chunk_rows(capacity))


class TestChunksOfOneRow(Chunks):
    def chunk_rows(self, capacity: int) -> int:
        return 1


class TestUnevenChunks(Chunks):
    """The last chunk is shorter than the others, and many episodes span several."""

    def chunk_rows(self, capacity: int) -> int:
        return min(7, capacity)


class TestOneChunk(Chunks):
    def chunk_rows(self, capacity: int) -> int:
        return capacity


class Steps(ReplayTests):
    """Items of the trajectory buffers below, which have other fields than a transition."""

    copies = True
    value_field = "step.number"

    def make_replay(self, capacity: int, seed: int | None = None) -> TrajectoryBuffer:
        return TrajectoryBuffer(capacity, STEP_SHAPES, min_trajectory_length=1, seed=seed)

    def make_item(self, value: int) -> Any:
        return {"step": {"number": value, "image": np.full((4, 4), value % 256, np.uint8)}}

    def make_bad_item(self) -> Any:
        return {"step": {"number": 1.5, "image": np.zeros((4, 4), np.uint8)}}

    def value_of(self, item: Any) -> int:
        assert (item["step"]["image"] == item["step"]["number"] % 256).all()
        return int(item["step"]["number"])


class TestTrajectoryBuffer(Steps, SavedReplayConformance):
    """As users make it, but for the shortest trajectories, which the suite samples too."""


class TestNamedTrajectoryBuffer(Steps, SharedReplayConformance):
    @pytest.fixture(autouse=True)
    def _remove_names(self) -> Iterator[None]:
        self.made: list[str] = []
        yield
        for name in self.made:
            TrajectoryBuffer.remove(name)

    def make_replay(self, capacity: int, seed: int | None = None) -> TrajectoryBuffer:
        self.made.append(f"test-conformance-{os.getpid()}-{next(_numbers)}")
        return TrajectoryBuffer(capacity, STEP_SHAPES, min_trajectory_length=1, seed=seed, name=self.made[-1])

    def make_shared(self, capacity: int, seed: int | None = None) -> tuple[TrajectoryBuffer, Callable[[Any], Any], str]:
        return self.make_replay(capacity, seed), TrajectoryBuffer.attach, self.made[-1]


class TestDictReplayBuffer(Transitions, SavedReplayConformance):
    """Nested observations of several dtypes, and integer actions."""

    def make_replay(self, capacity: int, seed: int | None = None) -> ReplayBuffer:
        return ReplayBuffer(DICT, spaces.Discrete(5), capacity, seed=seed)

    def make_item(self, value: int) -> Any:
        then = image_transition((value + 1) % 256)["observations"]
        return {**image_transition(value % 256), "next_observations": then, "actions": value % 5, "rewards": value}

    def value_of(self, item: Any) -> int:
        value = int(item["rewards"])
        assert (item["observations"]["image"] == value % 256).all()
        assert (item["next_observations"]["arm"]["joints"] == (value + 1) % 256).all()
        assert item["actions"] == value % 5
        return value


class TestWithoutTheCHalf(Transitions, SavedReplayConformance):
    @pytest.fixture(autouse=True)
    def _without_c(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "edgeml_ipc.data._rows", None)  # as where it was not built


class TestNamedReplayBuffer(Transitions, SavedReplayConformance, SharedReplayConformance):
    """Made by one object, used by another that reaches it by its name."""

    @pytest.fixture(autouse=True)
    def _remove_names(self) -> Iterator[None]:
        self.made: list[str] = []
        yield
        for name in self.made:
            ReplayBuffer.remove(name)

    def make_replay(self, capacity: int, seed: int | None = None) -> ReplayBuffer:
        self.made.append(f"test-conformance-{os.getpid()}-{next(_numbers)}")
        ReplayBuffer(BOX, ACTIONS, capacity, name=self.made[-1]).close()
        return ReplayBuffer.attach(self.made[-1], seed=seed)

    def make_shared(self, capacity: int, seed: int | None = None) -> tuple[ReplayBuffer, Callable[[Any], Any], str]:
        return self.make_replay(capacity, seed), ReplayBuffer.attach, self.made[-1]
