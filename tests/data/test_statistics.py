"""What is drawn from a shared buffer that has wrapped, and how often: each way to draw against its stated probabilities.

Three streams write into chunks of eight rows by turns, so that their episodes, of six lengths, lie in pieces all over the
buffer; the beginnings of some are overwritten, and the last of each stream goes on.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from scipy import stats

from edgeml_ipc.data import (
    BufferEmpty,
    FutureSampler,
    LatestSampler,
    NStepSampler,
    PrioritySampler,
    ReplayBuffer,
    SequenceSampler,
    TrajectorySampler,
)
from edgeml_ipc.data.draws import ArraySteps
from tests.data.window_streams import ACTIONS, BOX, TOKEN, Stream, fill, keys_of

SIGNIFICANT = 1e-4  # fixed seeds: a test that passes once always does
DRAWS = 40_000


class Held:
    """What a full buffer holds, found by sorting all its rows."""

    def __init__(self, buffer: ReplayBuffer) -> None:
        assert len(buffer) == buffer.capacity
        self.token = buffer.columns["token"]
        self.keys = keys_of(self.token)
        self.episode = self.keys // 100
        self.rows = np.arange(buffer.capacity)
        self.steps = ArraySteps(self.token[:, 2], self.episode)
        self.before, self.after = self.steps.before(self.rows), self.steps.after(self.rows)
        age = buffer.latest_data_id() - buffer.about["sequence"]
        self.age = age.astype(float)


def make(capacity: int = 300, *, streams: int = 3, seed: int = 5, **options: Any) -> tuple[ReplayBuffer, Held]:
    buffer = ReplayBuffer(BOX, ACTIONS, capacity, extra_columns=[TOKEN], chunk_rows=8, seed=seed, **options)
    fill(buffer, 240, streams=streams)
    return buffer, Held(buffer)


def check(drawn: Any, keys: np.ndarray, weights: np.ndarray) -> None:
    """Compare how often each key was drawn with its weight; none of weight 0 may be drawn."""
    values, counts = np.unique(drawn, return_counts=True)
    order = np.argsort(keys)
    keys, weights = keys[order], weights[order].astype(float)
    place = np.minimum(np.searchsorted(keys, values), len(keys) - 1)
    assert (keys[place] == values).all()
    full = np.zeros(len(keys))
    full[place] = counts
    assert full[weights == 0].sum() == 0
    full, expected = full[weights > 0], weights[weights > 0] / weights.sum() * counts.sum()
    rare = expected < 5  # taken together, as the test needs it
    if rare.any():
        full, expected = np.append(full[~rare], full[rare].sum()), np.append(expected[~rare], expected[rare].sum())
    assert len(full) > 1
    assert stats.chisquare(full, expected).pvalue > SIGNIFICANT


def draw(buffer: ReplayBuffer, samplers: dict[str, Any], **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    buffer.register_sample_config("drawn", {"token": LatestSampler(), **samplers}, **options)
    return buffer.sample("drawn", DRAWS)


def test_the_buffer_is_as_it_is_said_to_be() -> None:
    _, held = make()
    first = held.before == 0
    assert (held.token[first, 2] > 1).any(), "an episode has lost its beginning"
    assert (held.token[held.after == 0, 2] < held.token[held.after == 0, 3]).any(), "an episode goes on"
    assert set(held.token[:, 0]) == {1, 2, 3}
    assert (np.diff(held.episode) != 0).sum() > 60


@pytest.mark.parametrize("sample_range", [(0, 1), (-2, 1), (0, 4), (-1, 3), (2, 5)])
def test_uniform_anchors_and_sequences(sample_range: tuple[int, int]) -> None:
    """All windows that fit are equally likely, terminal steps and both ends of episodes included; no two streams mix."""
    buffer, held = make()
    begin, end = sample_range
    data, mask = draw(buffer, {"window": SequenceSampler(begin=begin, end=end, source="token")}, sample_range=sample_range)
    fits = (held.before >= -begin) & (held.after >= max(end - 1, 0))
    check(keys_of(data["token"]), held.keys, fits)
    assert mask["window"].all()
    assert (data["window"] == data["token"][:, None] + np.arange(begin, end)[None, :, None] * np.array([0, 0, 1, 0])).all()
    last = data["window"][:, -1]
    assert (last[:, 2] == last[:, 3]).any()
    assert (data["window"][:, 0, 2] == 1 + max(begin, 0)).any()


@pytest.mark.parametrize("sample_range", [(0, 1), (-1, 3)])
def test_priorities(sample_range: tuple[int, int]) -> None:
    buffer, held = make()
    samplers = {"token": LatestSampler(), "p": PrioritySampler(alpha=0.7, beta=0.5)}
    buffer.register_sample_config("drawn", samplers, sample_range=sample_range)
    data, _ = buffer.sample("drawn", 300, force_indices=held.rows)
    assert (data["token"] == held.token).all()
    assert (data["p"]["importance"] == 1).all()
    errors = np.random.default_rng(0).normal(size=300)
    assert buffer.update_priorities("drawn", data["p"]["indices"], errors) == 300
    weights = (np.abs(errors) + 1e-6) ** 0.7
    fits = (held.before >= -sample_range[0]) & (held.after >= sample_range[1] - 1)
    batches = [buffer.sample("drawn", 100)[0] for _ in range(DRAWS // 100)]
    tokens, indices, importance = (
        np.concatenate([b["token"] if part == "token" else b["p"][part] for b in batches])
        for part in ("token", "indices", "importance")
    )
    check(keys_of(tokens), held.keys, np.where(fits, weights, 0))
    rows = indices % buffer.capacity
    assert (held.token[rows] == tokens).all()
    assert np.allclose(importance, (weights.min() / weights[rows]) ** 0.5, rtol=1e-5)


def test_new_rows_have_the_greatest_priority() -> None:
    buffer, _ = make()
    buffer.register_sample_config("drawn", {"token": LatestSampler(), "p": PrioritySampler(alpha=1.0)})
    data, _ = buffer.sample("drawn", 300, force_indices=np.arange(300))
    buffer.update_priorities("drawn", data["p"]["indices"], np.linspace(0.5, 3.0, 300))
    old = keys_of(data["token"])
    Stream(buffer, 7).insert(70, batched=True)
    held = Held(buffer)
    kept = dict(zip(old.tolist(), np.linspace(0.5, 3.0, 300), strict=True))
    weights = np.array([kept.get(key, 3.0) for key in held.keys.tolist()])
    assert (held.token[:, 0] == 7).sum() == 70
    check(keys_of(buffer.sample("drawn", DRAWS)[0]["token"]), held.keys, weights)


@pytest.mark.parametrize("lambda_", [None, 2.0])
def test_futures(lambda_: float | None) -> None:
    buffer, held = make()
    kind = "uniform" if lambda_ is None else "exponential"
    data, _ = draw(buffer, {"goal": FutureSampler(kind, lambda_=lambda_, source="token")})
    offsets = data["goal"][:, 2] - data["token"][:, 2]
    assert (offsets == data["goal_offset"]).all()
    assert (data["goal"][:, [0, 1, 3]] == data["token"][:, [0, 1, 3]]).all()
    check(keys_of(data["token"]), held.keys, np.ones(300))
    left = dict(zip(held.keys.tolist(), held.after.tolist(), strict=True))
    after = np.array([left[key] for key in keys_of(data["token"]).tolist()])
    assert (offsets[after == 0] == 0).all()
    for length in range(1, after.max() + 1):
        wanted = np.ones(length + 1) if lambda_ is None else np.exp(-np.arange(length + 1) / lambda_)
        check(offsets[after == length], np.arange(length + 1), wanted)


def test_n_step_returns() -> None:
    buffer, held = make()
    target = NStepSampler(n=4, gamma=0.9)
    data, mask = draw(buffer, {"target": target})
    check(keys_of(data["token"]), held.keys, np.ones(300))
    place = dict(zip(held.keys.tolist(), held.rows.tolist(), strict=True))
    rows = np.array([place[key] for key in keys_of(data["token"]).tolist()])
    lengths = np.minimum(held.after[rows] + 1, 4)
    assert (data["target"]["lengths"] == lengths).all()
    assert set(lengths.tolist()) == {1, 2, 3, 4}
    value = (held.token[:, 1] % 1000 * 100 + held.token[:, 2]).astype(np.float64)  # each step's reward, and observation after
    wanted = sum(np.where(k < lengths, 0.9**k * (value[rows] + k), 0) for k in range(4))
    assert np.allclose(data["target"]["returns"], wanted, rtol=1e-5)
    last = held.steps.shift(rows, lengths - 1)
    terminated = held.token[last, 2] == held.token[last, 3]
    assert np.allclose(data["target"]["discounts"], np.where(terminated, 0, 0.9**lengths))
    assert (data["target"]["next_observations"] == value[last].astype(np.float32)[:, None]).all()
    assert mask["target"].all()
    assert terminated.any()
    assert ((lengths < 4) & ~terminated).any(), "an episode that goes on is used as far as it is held"


@pytest.mark.parametrize("least", [1, 3])
def test_trajectories(least: int) -> None:
    """Each episode is equally likely, whatever is held of it; what is held comes from its first step on, and no more."""
    buffer, held = make(min_trajectory_length=least)
    data, mask = draw(buffer, {"whole": TrajectorySampler(8, source="token"), "rewards": TrajectorySampler(8)})
    first = (held.before == 0) & (held.after + 1 >= least)
    check(keys_of(data["token"]), held.keys, first)
    check(keys_of(data["whole"][:, 0]), held.keys, first)
    left = dict(zip(held.keys.tolist(), held.after.tolist(), strict=True))
    lengths = np.array([left[key] + 1 for key in keys_of(data["token"]).tolist()])
    there = np.arange(8) < np.minimum(lengths, 8)[:, None]
    assert (mask["whole"] == there).all()
    assert mask["whole"].dtype == np.bool_
    steps = data["token"][:, None] + np.arange(8)[None, :, None] * np.array([0, 0, 1, 0])
    assert (data["whole"] == np.where(there[:, :, None], steps, 0)).all()
    assert ((data["rewards"] != 0) == there).all()


@pytest.mark.parametrize("newest", [1, 20, 123, 10_000])
def test_only_the_newest_rows(newest: int) -> None:
    buffer, held = make()
    samplers = {"window": SequenceSampler(begin=-1, end=2, source="token")}
    data, mask = draw(buffer, samplers, max_age_rows=newest)
    if newest == 1:
        assert set(keys_of(data["token"])) == {held.keys[held.age.argmin()]}
        return
    check(keys_of(data["token"]), held.keys, held.age < newest)
    assert not mask["window"].all()
    data, mask = draw(buffer, samplers, max_age_rows=newest, sample_range=(-1, 2))
    check(keys_of(data["token"]), held.keys, (held.age < newest) & (held.before >= 1) & (held.after >= 1))
    assert mask["window"].all()


@pytest.mark.parametrize("half_life", [2.5, 40.0, 1000.0])
@pytest.mark.parametrize("limits", [{}, {"max_age_rows": 150}, {"sample_range": (-1, 2)}])
@pytest.mark.parametrize("streams", [1, 3])
def test_the_newer_the_likelier(half_life: float, limits: dict[str, Any], streams: int) -> None:
    buffer, held = make(streams=streams)
    data, _ = draw(buffer, {}, half_life_rows=half_life, **limits)
    allowed = held.age < limits.get("max_age_rows", np.inf)
    if "sample_range" in limits:
        allowed &= (held.before >= 1) & (held.after >= 1)
    check(keys_of(data["token"]), held.keys, np.where(allowed, 2.0 ** (-held.age / half_life), 0))


def versioned(*, rising: bool) -> tuple[ReplayBuffer, Held, np.ndarray]:
    """Return a buffer whose rows have policy versions: those of most of a stream's rows rise, if not all do; some have none."""
    buffer = ReplayBuffer(BOX, ACTIONS, 300, extra_columns=[TOKEN], chunk_rows=8, seed=5)
    streams, rng = [Stream(buffer, 1), Stream(buffer, 2), Stream(buffer, 3)], np.random.default_rng(0)
    for turn in range(600):
        version = turn // 25 - (0 if rising else int(rng.integers(6)))
        streams[turn % 3].insert(1, batched=bool(turn % 2), **({"policy_version": version} if version >= 0 else {}))
    return buffer, Held(buffer), buffer.about["policy_version"]


@pytest.mark.parametrize("rising", [True, False])
@pytest.mark.parametrize("staleness", [0, 3, 100])
def test_only_rows_of_new_policies(rising: bool, staleness: int) -> None:
    buffer, held, version = versioned(rising=rising)
    fresh = version >= version.max() - staleness
    assert fresh.any()
    check(keys_of(draw(buffer, {}, max_staleness=staleness)[0]["token"]), held.keys, fresh)
    data, _ = draw(buffer, {}, max_staleness=staleness, max_age_rows=70, sample_range=(-1, 2))
    check(keys_of(data["token"]), held.keys, fresh & (held.age < 70) & (held.before >= 1) & (held.after >= 1))
    data, _ = draw(buffer, {"p": PrioritySampler()}, max_staleness=staleness, max_age_rows=70)
    check(keys_of(data["token"]), held.keys, fresh & (held.age < 70))
    data, _ = draw(buffer, {"whole": TrajectorySampler(3, source="token")}, max_staleness=staleness + 2)
    check(keys_of(data["token"]), held.keys, (version >= version.max() - staleness - 2) & (held.before == 0))


def test_the_newest_policy_is_that_of_the_rows_that_are_held_now() -> None:
    buffer = ReplayBuffer(BOX, ACTIONS, 40, extra_columns=[TOKEN], chunk_rows=8, seed=5)
    buffer.register_sample_config("fresh", {"token": LatestSampler()}, max_staleness=1)
    stream = Stream(buffer, 1)
    stream.insert(10, batched=True)
    with pytest.raises(BufferEmpty, match="0 rows may be anchors by priority, age and policy version"):
        buffer.sample("fresh", 4)
    for version, position in ((9, 10), (3, 15), (4, 20), (2, 25)):
        stream.insert(5, batched=True, policy_version=version)
        versions = buffer.about["policy_version"][: position + 5]
        kept = keys_of(buffer.columns["token"][: position + 5][versions >= versions.max() - 1])
        check(keys_of(buffer.sample("fresh", 4000)[0]["token"]), kept, np.ones(len(kept)))
    stream.insert(25, batched=True, policy_version=3)  # overwrites those of version 9
    versions = buffer.about["policy_version"]
    assert versions.max() == 4
    kept = keys_of(buffer.columns["token"][versions >= 3])
    check(keys_of(buffer.sample("fresh", 4000)[0]["token"]), kept, np.ones(len(kept)))


def test_an_episode_that_overwriting_has_made_too_short_is_sampled_no_more() -> None:
    buffer = ReplayBuffer(BOX, ACTIONS, 20, extra_columns=[TOKEN], chunk_rows=4, seed=1, min_trajectory_length=3)
    configs: dict[str, dict[str, Any]] = {
        "plain": {"token": LatestSampler()},
        "prioritized": {"token": LatestSampler(), "p": PrioritySampler()},
        "whole": {"token": LatestSampler(), "all": TrajectorySampler(9, source="token")},
    }
    for name, samplers in configs.items():
        buffer.register_sample_config(name, samplers)
    stream = Stream(buffer, 1)  # of episodes of 3, 12, 2, 5, 1, 7 steps
    written = [(episode, length) for episode, length in enumerate([3, 12, 2, 5, 1, 7, 3, 12]) for _ in range(length)]
    stream.insert(17, batched=True)
    seen = []
    for inserted in range(17, 40):
        held = Counter(written[max(inserted - 20, 0) : inserted])
        allowed = {length for (_, length), steps in held.items() if steps >= 3}
        seen.append(allowed)
        for name in configs:
            assert set(buffer.sample(name, 300)[0]["token"][:, 3].tolist()) == allowed
        stream.insert(1, batched=False)
    assert seen[0] == {3, 12}
    assert {12, 5} in seen, "what was left of the first episode is no more sampled"
    assert seen[-1] == {5, 7, 3, 12}


def test_same_seed_and_same_inserts_give_the_same_batches() -> None:
    """Each config has a stream of its own: what others draw meanwhile makes no difference."""
    configs: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "plain": ({}, {}),
        "another": ({}, {}),
        "window": ({"w": SequenceSampler(begin=-2, end=2, source="token")}, {"sample_range": (-1, 2)}),
        "future": ({"goal": FutureSampler(source="token")}, {}),
        "n_step": ({"target": NStepSampler(3, 0.9)}, {}),
        "whole": ({"all": TrajectorySampler(5, source="token")}, {}),
        "recent": ({}, {"max_age_rows": 100, "half_life_rows": 30}),
        "prioritized": ({"p": PrioritySampler()}, {}),
    }

    def batches(names: list[str]) -> dict[str, list[Any]]:
        buffer, _ = make(seed=9)
        for name in names:
            samplers, options = configs[name]
            buffer.register_sample_config(name, {"token": LatestSampler(), **samplers}, **options)
        found: dict[str, list[Any]] = {name: [] for name in names}
        stream = Stream(buffer, 9)
        for turn in range(5):
            for name in names:
                data, mask = buffer.sample(name, 16)
                if "p" in data:
                    buffer.update_priorities(name, data["p"]["indices"], np.arange(16) + turn)
                found[name].append((data, mask))
            stream.insert(9, batched=True)
        return found

    together = batches(list(configs))
    for name in configs:
        alone = batches([name])[name]
        for ours, theirs in zip(together[name], alone, strict=True):
            np.testing.assert_equal(ours, theirs)
    assert not (together["plain"][0][0]["token"] == together["another"][0][0]["token"]).all()
