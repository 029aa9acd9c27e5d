"""Saving and loading: what comes out of the file is what went in, and sampling goes on where it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgeml_ipc.errors import EdgeMLError
from edgeml_ipc.testing._replay_base import EPISODE, LENGTHS, STEPS, ReplayTests


class SavingTests(ReplayTests):
    """A store that has `save(path)`, and `load(path)` into an empty one."""

    @pytest.mark.parametrize("capacity", [2 * STEPS, STEPS, STEPS // 2])
    def test_what_was_saved_is_loaded(self, tmp_path: Path, capacity: int) -> None:
        store = self.with_episodes(capacity)
        store.save(tmp_path / "saved")
        loaded = self.make_replay(capacity)
        self.register(loaded)
        loaded.load(tmp_path / "saved")
        assert self.content(loaded) == self.content(store)
        assert (len(loaded), loaded.latest_data_id()) == (len(store), store.latest_data_id())
        assert loaded.read_since(-1)[0] == store.read_since(-1)[0]
        for _ in range(10):
            self.check_around(loaded.sample("around", 64), self.content(store))

    def test_sampling_goes_on_as_it_would_have(self, tmp_path: Path) -> None:
        store, loaded = self.with_episodes(seed=3), self.make_replay(2 * STEPS, seed=4)
        self.register(loaded)
        store.sample("around", 10)
        store.save(tmp_path / "saved")
        loaded.load(tmp_path / "saved")
        for config in ("around", "step", "around"):
            expected, got = store.sample(config, 40)[0], loaded.sample(config, 40)[0]
            for field in expected:
                np.testing.assert_array_equal(got[field], expected[field])

    def test_a_loaded_store_goes_on(self, tmp_path: Path) -> None:
        """With ids that follow on, and in a new episode: the one that was open when it was saved has ended."""
        store = self.with_episodes()
        for position in range(3):
            store.insert(self.make_item(50 * EPISODE + position))
        store.save(tmp_path / "saved")
        loaded = self.make_replay(2 * STEPS)
        self.register(loaded)
        loaded.load(tmp_path / "saved")
        newest = loaded.latest_data_id()
        for position in range(3, 6):
            loaded.insert(self.make_item(50 * EPISODE + position))
        assert loaded.latest_data_id() == newest + 3
        drawn = set(loaded.sample("ahead", 3000)[0]["ahead"][:, 0].tolist())
        assert {value - 50 * EPISODE for value in drawn if value >= 50 * EPISODE} == {0, 3}

    def test_a_file_is_replaced_whole(self, tmp_path: Path) -> None:
        path = tmp_path / "saved"
        store = self.with_episodes()
        for length in LENGTHS:
            self.add_episodes(store, [length], first=length + 20)
            store.save(path)
        assert [found.name for found in tmp_path.iterdir()] == ["saved"]
        loaded = self.make_replay(2 * STEPS)
        loaded.load(path)
        assert self.content(loaded) == self.content(store)

    @pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.99])
    def test_half_a_file_is_refused(self, tmp_path: Path, kept: float) -> None:
        path = tmp_path / "saved"
        self.with_episodes().save(path)
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * kept)])
        loaded = self.make_replay(2 * STEPS)
        with pytest.raises(EdgeMLError, match="saved"):
            loaded.load(path)
        assert (len(loaded), loaded.latest_data_id()) == (0, -1)
        with pytest.raises(EdgeMLError, match="no_such_file"):
            loaded.load(tmp_path / "no_such_file")

    def test_only_an_empty_store_is_loaded(self, tmp_path: Path) -> None:
        store = self.with_episodes()
        store.save(tmp_path / "saved")
        before = self.content(store)
        with pytest.raises(EdgeMLError):
            store.load(tmp_path / "saved")
        assert self.content(store) == before
