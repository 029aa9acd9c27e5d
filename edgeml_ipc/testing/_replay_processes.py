"""Several processes write into one replay store, and some of them die."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np

from edgeml_ipc.testing import _store_children as children
from edgeml_ipc.testing._replay_base import EPISODE, ReplayTests, check_even
from edgeml_ipc.testing._workers import Child

_CAPACITY = 512


class SharedReplayTests(ReplayTests):
    """A store that other processes reach. A subclass overrides `make_shared`, whose stores must take three writers."""

    @abstractmethod
    def make_shared(self, capacity: int, seed: int | None = None) -> tuple[Any, Callable[[Any], Any], Any]:
        """Return an empty store, a function that other processes can import or unpickle, and what they call it with.

        `function(argument)` there gives the same store.
        """

    def steps(self, episode: int, length: int, *, ended: bool = True) -> list[tuple[Any, bool]]:
        """Return the items of an episode, each with whether it is the last."""
        first = episode * EPISODE
        return [(self.make_item(first + k), ended and k == length - 1) for k in range(length)]

    def test_another_process_reads_and_writes_the_same_rows(self) -> None:
        store, attach, place = self.make_shared(_CAPACITY, seed=0)
        self.register(store)
        self.add_episodes(store, [4])
        with Child(children.write, attach, place, self.steps(2, 5)) as child:
            assert child.hear() == "written"
            values = [*range(100, 104), *range(200, 205)]
            assert (sorted(self.content(store)), len(store)) == (values, 9)
            check_even(store.sample("step", 5000)[0]["value"], values)
            child.say("close")
            assert child.exit_code == 0
        store.close()

    def test_episodes_of_several_writers_do_not_mix(self) -> None:
        store, attach, place = self.make_shared(_CAPACITY, seed=0)
        self.register(store)
        lengths = [3, 1, 9, 4, 12]
        steps = [[step for k, n in enumerate(lengths) for step in self.steps(first + k, n)] for first in (100, 200)]
        with (
            Child(children.write, attach, place, steps[0]) as one,
            Child(children.write, attach, place, steps[1]) as two,
        ):
            self.add_episodes(store, lengths, first=1)
            assert [one.hear(), two.hear()] == ["written", "written"]
        firsts = [e * EPISODE for begin in (1, 100, 200) for e in range(begin, begin + len(lengths))]
        held = [first + k for first, n in zip(firsts, lengths * 3, strict=True) for k in range(n)]
        assert sorted(self.content_of_all(store)) == sorted(held)
        for _ in range(20):
            self.check_around(store.sample("around", 128), held)
        store.close()

    def test_a_killed_writer_leaves_its_rows_and_nothing_open(self) -> None:
        store, attach, place = self.make_shared(_CAPACITY, seed=0)
        self.register(store)
        with Child(children.write, attach, place, self.steps(1, 8, ended=False)) as child:
            assert child.hear() == "written"
            child.kill()
        with Child(children.write, attach, place, [(self.make_item(EPISODE + 8), True)]) as child:
            assert child.hear() == "written"  # its values go on where the dead one's ended, as another episode
        self.add_episodes(store, [5], first=2)
        assert sorted(self.content_of_all(store)) == [*range(100, 109), *range(200, 205)]
        data, _ = store.sample("ahead", 2000)
        check_even(data["ahead"][:, 0], [*range(100, 106), *range(200, 203)])
        store.close()

    def test_a_writer_killed_on_the_way_leaves_whole_steps(self) -> None:
        store, attach, place = self.make_shared(_CAPACITY, seed=0)
        self.register(store)
        steps = [step for episode in range(1, 900) for step in self.steps(episode, 9)]
        with Child(children.write, attach, place, steps) as child:
            while len(store) < 50:
                assert child.is_alive
            child.kill()
        held = sorted(self.content_of_all(store))
        expected = [e * EPISODE + p for e in range(1, 900) for p in range(9)]
        start = expected.index(held[0])
        assert held == expected[start : start + len(held)]
        for _ in range(20):
            self.check_around(store.sample("around", 64), held)
        self.add_episodes(store, [5], first=901)
        assert sorted(np.unique(store.sample("step", 5000)[0]["value"]).tolist())[-5:] == list(range(90100, 90105))
        store.close()

    def content_of_all(self, store: Any) -> list[int]:
        """Return the values of all steps held, also beyond the ids that a killed writer took and never used."""
        values: list[int] = []
        from_id = -1
        while from_id < store.latest_data_id():
            first_id, items, _ = store.read_since(from_id)
            values += self.values(items)
            from_id = first_id + len(items) - 1 if items else store.latest_data_id()
        return values
