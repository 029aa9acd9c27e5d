"""Tests of edgeml_ipc.data.limiter."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeml_ipc.data.limiter import LocalLedger, RateLimiter
from edgeml_ipc.errors import ConnectionClosed, TimeoutError
from tests.conftest import eventually


def in_thread(call: Any, *arguments: Any) -> tuple[threading.Thread, list[Any]]:
    """Run a call in a thread; the list gets its result, or what it raised."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append(call(*arguments))
        except (TimeoutError, ConnectionClosed) as error:
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, outcome


def joined(thread: threading.Thread) -> None:
    thread.join(20)
    assert not thread.is_alive()


def test_nothing_is_sampled_before_there_are_enough_rows() -> None:
    limiter = RateLimiter(None, min_rows=3)
    limiter.await_insert(2)
    with pytest.raises(
        TimeoutError, match=r"cannot sample 1 rows: waited 0.0 s for 1 more inserted rows, to begin with: 2 rows"
    ):
        limiter.await_sample(1, timeout=0)
    limiter.await_insert(1)
    limiter.await_sample(1_000_000, timeout=0)  # without a rate that is all
    limiter.await_insert(1_000_000, timeout=0)


def test_the_first_rows_are_inserted_without_waiting_for_samples() -> None:
    limiter = RateLimiter(4.0, min_rows=1000, slack_samples=8)
    for _ in range(1000):
        limiter.await_insert(1, timeout=0)


def test_both_sides_stop_at_the_slack_and_say_what_they_wait_for() -> None:
    limiter = RateLimiter(2.0, min_rows=10, slack_samples=6)
    for _ in range(13):
        limiter.await_insert(1, timeout=0)
    with pytest.raises(
        TimeoutError, match=r"cannot insert 1 rows: waited 0.0 s for the learner to sample 2 more rows: 13 rows"
    ):
        limiter.await_insert(1, timeout=0)
    limiter.await_sample(1, timeout=0)
    with pytest.raises(TimeoutError, match=r"sample 1 more rows"):
        limiter.await_insert(1, timeout=0)
    limiter.await_sample(1, timeout=0)
    limiter.await_insert(1, timeout=0)  # 14 rows, worth 28 samples; 2 were sampled
    for _ in range(4):
        limiter.await_sample(3, timeout=0)
    with pytest.raises(
        TimeoutError, match=r"cannot sample 3 rows: waited 0.0 s for 2 more inserted rows: 14 rows were inserted"
    ):
        limiter.await_sample(3, timeout=0)
    limiter.await_insert(2, timeout=0)
    limiter.await_sample(3, timeout=0)
    expected = {"inserted": 16, "sampled": 17, "insert_timeouts": 2, "sample_timeouts": 1, "insert_waits": 0, "sample_waits": 0}
    assert limiter.stats() == {**expected, "waited_us": 0}


@settings(max_examples=100, deadline=None)
@given(
    st.floats(0.1, 50),
    st.integers(1, 40),
    st.floats(0, 100),
    st.lists(st.tuples(st.booleans(), st.integers(1, 9)), max_size=150),
)
def test_the_balance_never_leaves_its_bounds(rate: float, min_rows: int, more: float, moves: list[tuple[bool, int]]) -> None:
    slack = (9 + 9 * rate) / 2 + more
    limiter = RateLimiter(rate, min_rows=min_rows, slack_samples=slack)
    inserted = sampled = 0
    for is_insert, rows in moves:
        refused = []
        for insert in (is_insert, not is_insert):
            try:
                (limiter.await_insert if insert else limiter.await_sample)(rows, timeout=0)
            except TimeoutError:
                refused.append(insert)
                continue
            inserted, sampled = inserted + rows * insert, sampled + rows * (not insert)
            break
        assert len(refused) < 2, "neither side could move"
        balance, target = inserted * rate - sampled, min_rows * rate
        assert balance <= target + max(slack, 8 * rate) + 1e-6  # the insert that reaches min_rows may overshoot
        assert sampled == 0 or (balance >= target - slack - 1e-6 and inserted >= min_rows)
    counters = limiter.stats()
    assert (counters["inserted"], counters["sampled"]) == (inserted, sampled)


def test_a_waiting_sample_goes_on_once_rows_come() -> None:
    limiter = RateLimiter(1.0, min_rows=5)
    thread, outcome = in_thread(limiter.await_sample, 4, 60)
    eventually(lambda: limiter.stats()["sample_waits"])
    limiter.await_insert(4)
    limiter.await_insert(1)
    joined(thread)
    assert outcome == [None]
    assert limiter.stats()["waited_us"] > 0


def test_a_waiting_insert_goes_on_once_the_learner_samples() -> None:
    limiter = RateLimiter(1.0, min_rows=1, slack_samples=10)
    limiter.await_insert(11)
    thread, outcome = in_thread(limiter.await_insert, 3, None)
    eventually(lambda: limiter.stats()["insert_waits"])
    limiter.await_sample(2)
    limiter.await_sample(1)
    joined(thread)
    assert outcome == [None]


def test_a_deadline_ends_a_wait_and_counts_nothing() -> None:
    limiter = RateLimiter(1.0)
    with pytest.raises(TimeoutError, match=r"waited 0.1 s for 1 more inserted rows, to begin with"):
        limiter.await_sample(7, timeout=0.1)
    assert limiter.stats()["sampled"] == 0
    assert limiter.stats()["sample_waits"] == limiter.stats()["sample_timeouts"] == 1


def test_close_ends_all_waits() -> None:
    limiter = RateLimiter(1.0)
    waiting = [in_thread(limiter.await_sample, 1, None) for _ in range(3)]
    eventually(lambda: limiter.stats()["sample_waits"] == 3)
    limiter.close()
    limiter.close()
    for thread, outcome in waiting:
        joined(thread)
        assert isinstance(outcome[0], ConnectionClosed)
    with pytest.raises(ConnectionClosed):
        limiter.await_insert(1)


def test_many_threads_keep_the_rate() -> None:
    limiter = RateLimiter(4.0, min_rows=8, slack_samples=64)
    threads = [in_thread(lambda: [limiter.await_insert(2, 60) for _ in range(200)]) for _ in range(3)]
    threads += [in_thread(lambda: [limiter.await_sample(12, 60) for _ in range(197)]) for _ in range(2)]
    for thread, outcome in threads:
        joined(thread)
        assert isinstance(outcome[0], list), outcome
    counters = limiter.stats()
    assert (counters["inserted"], counters["sampled"]) == (1200, 4728)
    assert counters["insert_timeouts"] == counters["sample_timeouts"] == 0


def test_take_back_lets_others_go_on() -> None:
    limiter = RateLimiter(1.0, slack_samples=4)
    limiter.await_insert(5)
    limiter.take_back(inserted=2)
    limiter.await_insert(2, timeout=0)
    limiter.await_sample(5, timeout=0)
    limiter.take_back(sampled=5)
    assert (limiter.stats()["inserted"], limiter.stats()["sampled"]) == (5, 0)


def test_counts_may_begin_where_a_loaded_buffer_stands() -> None:
    limiter = RateLimiter(1.0, min_rows=100, slack_samples=10, ledger=LocalLedger(inserted=500, sampled=400))
    limiter.await_sample(10, timeout=0)
    with pytest.raises(TimeoutError, match=r"500 rows were inserted and 410 sampled"):
        limiter.await_sample(1, timeout=0)


def test_arguments() -> None:
    for rate in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"samples_per_insert"):
            RateLimiter(rate)
    with pytest.raises(ValueError, match=r"min_rows"):
        RateLimiter(1.0, min_rows=0)
    with pytest.raises(ValueError, match=r"slack_samples must be at least .* = 4.5, got 2"):
        RateLimiter(8.0, slack_samples=2)
    limiter = RateLimiter(1.0, slack_samples=10)
    for call in (limiter.await_insert, limiter.await_sample):
        with pytest.raises(ValueError, match=r"at least 1, got 0"):
            call(0)
        with pytest.raises(ValueError, match=r"20 rows at once: .* needs slack_samples of at least 10.5, got 10"):
            call(20)
