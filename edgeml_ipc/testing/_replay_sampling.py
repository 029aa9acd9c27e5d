"""Sampling single steps: which ones, how often, and that a batch belongs to who asked for it."""

from __future__ import annotations

import numpy as np
import pytest

from edgeml_ipc.data.sampler import LatestSampler, SequenceSampler
from edgeml_ipc.errors import BufferEmpty
from edgeml_ipc.testing._replay_base import EPISODE, LENGTHS, STEPS, ReplayTests, check_even

_DRAWS = 20_000


class SamplingTests(ReplayTests):
    """One step at a time, one thread."""

    def test_an_empty_store_cannot_be_sampled(self) -> None:
        store = self.make_replay(10)
        self.register(store)
        with pytest.raises(BufferEmpty):
            store.sample("step", 4)

    def test_what_cannot_be_sampled_is_an_error(self) -> None:
        store = self.with_episodes()
        with pytest.raises(ValueError, match="no_such_config"):
            store.sample("no_such_config", 4)
        with pytest.raises(ValueError, match="got 0"):
            store.sample("step", 0)
        with pytest.raises(ValueError, match="no_such_field"):
            store.register_sample_config("wrong", {"value": LatestSampler("no_such_field")})
        with pytest.raises(ValueError, match="begin=2, end=2"):
            store.register_sample_config("wrong", {"value": LatestSampler(self.value_field)}, sample_range=(2, 2))

    def test_a_batch_has_the_shape_that_its_samplers_say(self) -> None:
        store = self.with_episodes()
        data, mask = store.sample("around", 6)
        assert set(data) == set(mask) == {"value", "around"}
        assert (data["value"].shape, mask["value"].shape) == ((6,), (6,))
        assert (data["around"].shape, mask["around"].shape) == ((6, 8), (6, 8))
        assert (mask["value"].dtype, mask["around"].dtype) == (np.bool_, np.bool_)
        store.register_sample_config("thin", {"next": SequenceSampler(True, 1, 2, self.value_field)}, sample_range=(0, 2))
        assert store.sample("thin", 6)[0]["next"].shape == (6,)

    def test_each_step_is_as_likely_as_any_other(self) -> None:
        """The last step of an episode too, and the first of those that are held."""
        store = self.with_episodes()
        expected = [e * EPISODE + p for e, length in enumerate(LENGTHS, 1) for p in range(length)]
        check_even(store.sample("step", _DRAWS)[0]["value"], expected)

    def test_what_was_overwritten_is_not_drawn(self) -> None:
        capacity = STEPS // 2
        store = self.with_episodes(capacity)
        check_even(store.sample("step", _DRAWS)[0]["value"], self.content(store))
        assert len(store) <= capacity

    def test_steps_of_an_open_episode_are_drawn(self) -> None:
        store = self.make_replay(20, seed=0)
        self.register(store)
        for position in range(4):
            store.insert(self.make_item(EPISODE + position))
            check_even(store.sample("step", 2000)[0]["value"], range(EPISODE, EPISODE + position + 1))

    def test_same_seed_same_steps_same_batches(self) -> None:
        one, same, other = self.with_episodes(seed=5), self.with_episodes(seed=5), self.with_episodes(seed=6)
        batches = [[store.sample("around", 50) for _ in range(3)] for store in (one, same, other)]
        for (data, mask), (data_again, mask_again) in zip(*batches[:2], strict=True):
            for field in data:
                np.testing.assert_array_equal(data[field], data_again[field])
                np.testing.assert_array_equal(mask[field], mask_again[field])
        drawn = [[data["value"].tolist() for data, _ in stream] for stream in batches]
        assert drawn[0] != drawn[2]
        assert drawn[0][0] != drawn[0][1]

    def test_forced_rows_are_the_anchors(self) -> None:
        store = self.with_episodes()
        rows = np.array([5, 0, 5, 11])
        data, _ = store.sample("around", 4, force_indices=rows)
        assert data["value"].tolist() == np.array(self.content(store))[rows].tolist()
        self.check_around(store.sample("around", 4, force_indices=rows), self.content(store))
        with pytest.raises(ValueError, match="force_indices"):
            store.sample("around", 4, force_indices=rows[:2])
        with pytest.raises(ValueError, match="force_indices"):
            store.sample("step", 1, force_indices=np.array([2 * STEPS - 1]))  # nothing was ever there

    def test_a_transform_gives_the_batch_its_last_shape(self) -> None:
        store = self.with_episodes()
        value = {"value": LatestSampler(self.value_field)}
        store.register_sample_config("negative", value, transform=lambda data, mask: ({"less": -data["value"]}, {"all": mask}))
        data, mask = store.sample("negative", 3)
        assert (data["less"] <= -EPISODE).all()
        assert mask["all"]["value"].all()

    def test_a_batch_belongs_to_who_asked_for_it(self) -> None:
        store = self.with_episodes()
        before = self.content(store)
        held, _ = store.sample("around", 32)
        copies = {field: array.copy() for field, array in held.items()}
        spoilt, _ = store.sample("around", 32)
        for array in spoilt.values():
            array.fill(77)
        assert self.content(store) == before
        self.add_episodes(store, LENGTHS * 3, first=20)
        store.sample("around", 32)
        for field, array in held.items():
            np.testing.assert_array_equal(array, copies[field])

    def test_stats_tell_how_much_was_sampled(self) -> None:
        store = self.with_episodes()
        before = store.stats()["sampled"]
        store.sample("step", 7)
        store.sample("ahead", 5)
        assert store.stats()["sampled"] == before + 12
