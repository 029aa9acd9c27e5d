"""Windows: no window leaves its episode, none is missing, and what a mask leaves out is zero."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from edgeml_ipc.data.sampler import FutureSampler, LatestSampler
from edgeml_ipc.errors import BufferEmpty
from edgeml_ipc.testing._replay_base import EPISODE, LENGTHS, STEPS, ReplayTests, check_even
from edgeml_ipc.testing._workers import Background

_DRAWS = 20_000


def _beginnings(held: list[int], length: int) -> list[int]:
    """Return the held steps from which `length` steps of one episode are held."""
    there = set(held)
    return [
        value for value in held if all(value + k in there and (value + k) // EPISODE == value // EPISODE for k in range(length))
    ]


class WindowTests(ReplayTests):
    """Windows of several steps of an episode."""

    @pytest.mark.parametrize("capacity", [STEPS - 3, STEPS // 2, 2 * STEPS])
    def test_a_window_never_leaves_its_episode(self, capacity: int) -> None:
        """Some episodes have lost their beginning, and most are shorter than the window."""
        store = self.with_episodes(capacity)
        for _ in range(20):
            self.check_around(store.sample("around", 64), self.content(store))

    @pytest.mark.parametrize("capacity", [STEPS // 2, 2 * STEPS])
    def test_each_whole_window_is_as_likely_as_any_other(self, capacity: int) -> None:
        store = self.with_episodes(capacity)
        data, mask = store.sample("ahead", _DRAWS)
        assert mask["ahead"].all()
        np.testing.assert_array_equal(data["ahead"], data["ahead"][:, :1] + np.arange(3))
        check_even(data["ahead"][:, 0], _beginnings(self.content(store), 3))

    def test_a_window_that_no_episode_has_is_an_error(self) -> None:
        store = self.make_replay(20)
        self.register(store)
        self.add_episodes(store, [2, 2, 1])
        with pytest.raises(BufferEmpty):
            store.sample("ahead", 4)
        self.add_episodes(store, [3], first=9)
        assert store.sample("ahead", 4)[0]["ahead"].tolist() == [[900, 901, 902]] * 4

    def test_end_trajectory_ends_the_episode(self) -> None:
        """The values go on as if it were one episode: only the store can tell."""
        store = self.make_replay(20, seed=0)
        self.register(store)
        for value in range(EPISODE, EPISODE + 6):
            store.insert(self.make_item(value))
            if value == EPISODE + 2:
                store.end_trajectory()
        data, _ = store.sample("ahead", 1000)
        assert sorted(set(data["ahead"][:, 0].tolist())) == [EPISODE, EPISODE + 3]

    def test_a_future_lies_in_the_anchors_episode(self) -> None:
        store = self.with_episodes()
        field = self.value_field
        store.register_sample_config("goal", {"value": LatestSampler(field), "goal": FutureSampler(source=field)})
        data, mask = store.sample("goal", _DRAWS)
        assert mask["goal"].all()
        value, goal = data["value"].astype(int), data["goal"].astype(int)
        assert (goal >= value).all()
        assert (goal // EPISODE == value // EPISODE).all()
        longest = max(range(len(LENGTHS)), key=LENGTHS.__getitem__)
        first = (longest + 1) * EPISODE
        check_even(goal[value == first], range(first, first + LENGTHS[longest]))

    def test_windows_are_whole_while_a_thread_inserts(self) -> None:
        """The store wraps all the time; a window is of one episode and one moment, or it is drawn anew."""
        store = self.with_episodes(STEPS)
        stop = threading.Event()

        def insert() -> None:
            episode = 10
            while not stop.is_set():
                self.add_episodes(store, LENGTHS, first=episode)
                episode = 10 + (episode - 10 + len(LENGTHS)) % 800

        with Background(insert) as inserting:
            try:
                for _ in range(200):
                    self._check_whole(store)
            finally:
                stop.set()
        inserting.get()

    def _check_whole(self, store: Any) -> None:
        data, mask = store.sample("around", 32)
        anchors = data["value"].astype(int)
        wanted = anchors[:, None] + np.arange(-3, 5)
        assert mask["around"][:, 3].all()
        np.testing.assert_array_equal(data["around"], np.where(mask["around"], wanted, 0))
        assert (wanted // EPISODE == anchors[:, None] // EPISODE)[mask["around"]].all()
        steps = mask["around"].astype(int)
        assert (np.abs(np.diff(steps, axis=1, prepend=0, append=0)).sum(axis=1) == 2).all(), "a window with a hole"
