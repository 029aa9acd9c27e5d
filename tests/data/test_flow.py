"""Tests of edgeml_ipc.data.flow and waiting, in one process: with the C half, and with its stand-in in Python."""

from __future__ import annotations

import itertools
import math
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeml_ipc.data import ReplayBuffer, SequenceSampler
from edgeml_ipc.data.limiter import Limits, RateLimiter
from edgeml_ipc.errors import BufferEmpty, ConnectionClosed, SegmentError, TimeoutError
from tests.conftest import eventually
from tests.data.test_limiter import in_thread, joined
from tests.data.test_replay_buffer import make, transition

ROOT = Path(__file__).parents[2]
LIMITS_AT, EVENT_AT = 0x310, 0x284
_names = itertools.count()


@pytest.fixture
def name() -> Iterator[str]:
    made = f"test-flow-{os.getpid()}-{next(_names)}"
    yield made
    ReplayBuffer.remove(made)


def steps(count: int) -> list[dict[str, Any]]:
    return [transition(value) for value in range(count)]


def sequences(buffer: ReplayBuffer, length: int) -> None:
    buffer.register_sample_config("windows", {"rewards": SequenceSampler(begin=0, end=length)}, (0, length))


def is_waiting(buffer: ReplayBuffer, key: str = "flow_sample_waits", count: int = 1) -> Callable[[], bool]:
    return lambda: buffer.stats()[key] >= count


# ---- the rate


def test_without_a_rate_nothing_is_counted() -> None:
    with make(capacity=64) as buffer:
        buffer.batch_insert(steps(10))
        buffer.sample(10_000)
        assert not [key for key in buffer.stats() if key.startswith(("flow", "granted"))]


def test_inserts_and_samples_wait_for_each_other_and_say_why() -> None:
    with make(capacity=64, samples_per_insert=2.0, min_rows=4, slack_samples=6, flow_timeout=0.05) as buffer:
        with pytest.raises(
            TimeoutError, match=r"cannot sample 2 rows: .* for 4 more inserted rows, to begin with: 0 rows were"
        ):
            buffer.sample(2)
        buffer.batch_insert(steps(4))
        buffer.batch_insert(steps(3))
        with pytest.raises(TimeoutError, match=r"cannot insert 1 rows: .* for the learner to sample 2 more rows: 7 rows were"):
            buffer.insert(transition(0))
        buffer.sample(2)
        buffer.insert(transition(0))
        sequences(buffer, 2)
        for _ in range(4):
            buffer.sample("windows", 3)
        with pytest.raises(TimeoutError, match=r"cannot sample 3 rows: .* for 2 more inserted rows: 8 rows .* and 14 sampled"):
            buffer.sample("windows", batch_size=3)
        counters = buffer.stats()
        assert (counters["inserted"], counters["sampled"]) == (8, 14)
        assert (counters["granted_inserts"], counters["granted_samples"]) == (8, 14)
        assert (counters["flow_insert_timeouts"], counters["flow_sample_timeouts"]) == (1, 2)
        assert counters["flow_waited_us"] > 0


def test_the_one_who_waits_goes_on() -> None:
    with make(capacity=64, samples_per_insert=1.0, min_rows=2, slack_samples=5) as buffer:
        thread, outcome = in_thread(lambda: len(buffer.sample(2)["rewards"]))
        eventually(is_waiting(buffer))
        buffer.batch_insert(steps(2))
        joined(thread)
        assert outcome == [2]
        buffer.batch_insert(steps(5))
        buffer.batch_insert(steps(2))
        writer = buffer.writer()
        thread, outcome = in_thread(writer.insert, transition(1))
        eventually(is_waiting(buffer, "flow_insert_waits"))
        buffer.sample(1)
        joined(thread)
        assert outcome == [None]


def test_what_fails_is_given_back() -> None:
    with make(capacity=64, samples_per_insert=1.0, min_rows=2, slack_samples=50) as buffer:
        buffer.batch_insert(steps(20))
        for call in (
            lambda: buffer.insert(transition(0, rewards=None)),
            lambda: buffer.batch_insert([transition(0), transition(1, actions=np.zeros(9))]),
            lambda: buffer.sample("nothing", 5),
            lambda: buffer.sample(5, about=True, nothing=1),
        ):
            with pytest.raises((ValueError, TypeError)):
                call()
        sequences(buffer, 40)
        with pytest.raises(BufferEmpty):
            buffer.sample("windows", 5, timeout=0)
        with pytest.raises(TimeoutError, match="no window fits"):
            buffer.sample("windows", 5, timeout=0.01)
        counters = buffer.stats()
        assert (counters["granted_inserts"], counters["granted_samples"]) == (20, 0)


def test_a_writer_that_leaves_gives_back_what_it_dropped(caplog: pytest.LogCaptureFixture) -> None:
    with make(capacity=64, min_rows=3) as buffer:
        writer = buffer.writer()
        writer.batch_insert([transition(value, next_observations=None) for value in range(5)])
        assert buffer.stats()["granted_inserts"] == 5
        writer.close()
        assert "it is dropped" in caplog.text
        assert buffer.stats()["granted_inserts"] == buffer.stats()["inserted"] == 4


def test_a_batch_that_can_never_pass_is_refused_and_an_upload_comes_in_pieces() -> None:
    with make(capacity=1000, samples_per_insert=2.0, slack_samples=10) as buffer:
        with pytest.raises(ValueError, match=r"cannot insert 50 rows at once: .* which allows 9 rows at once"):
            buffer.batch_insert(steps(50))
        with pytest.raises(ValueError, match=r"cannot sample 50 rows at once: .* which allows 18 rows at once"):
            buffer.sample(50)
        assert len(buffer) == 0
        thread, outcome = in_thread(lambda: [len(buffer.sample(9)["rewards"]) for _ in range(10)])
        with buffer.uploads.stream("actor", bytes(16)) as stream:
            assert stream.insert(0, steps(50)) == 50
        joined(thread)
        assert outcome == [[9] * 10]
        assert buffer.stats()["granted_inserts"] == 50


def test_an_upload_that_is_not_let_through_says_how_far_it_came() -> None:
    with make(capacity=1000, samples_per_insert=1.0, slack_samples=5, flow_timeout=0.01) as buffer:
        stream = buffer.uploads.stream("actor", bytes(16))
        with pytest.raises(TimeoutError, match="cannot insert"):
            stream.insert(0, steps(30))
        assert stream.cursor == buffer.stats()["inserted"] == 5
        buffer.sample(4)
        with pytest.raises(TimeoutError, match="cannot insert"):
            stream.insert(0, steps(30))
        assert stream.cursor == buffer.stats()["inserted"] == 10
        buffer.sample(2)
        assert stream.insert(0, steps(12)) == 12


@pytest.mark.parametrize(("rate", "slack"), [(0.1, 7.3), (1 / 3, 0.67), (256.0, 128.5), (3.7, 1000.1), (1e-3, 0.6)])
def test_the_most_rows_at_once_are_allowed_and_one_more_is_not(rate: float, slack: float) -> None:
    limiter = RateLimiter(rate, slack_samples=slack)
    assert limiter.most_inserts is not None
    limiter.await_insert(limiter.most_inserts, timeout=0)
    with pytest.raises(ValueError, match="at once"):
        limiter.await_insert(limiter.most_inserts + 1, timeout=0)


# ---- waiting for rows


def test_a_sample_waits_for_the_first_row() -> None:
    with make(capacity=64) as buffer:
        for timeout in (None, 0):
            with pytest.raises(BufferEmpty):
                buffer.sample(4, timeout=timeout)
        with pytest.raises(
            TimeoutError, match=r"waited 0.0 s: .* nothing was inserted yet .*; 0 rows were inserted, 0 are held"
        ):
            buffer.sample(4, timeout=0.01)
        threads = [in_thread(lambda: len(buffer.sample(4, timeout=60)["rewards"])) for _ in range(3)]
        buffer.insert(transition(1))
        for thread, outcome in threads:
            joined(thread)
            assert outcome == [4]


def test_a_sample_waits_for_a_window_that_fits() -> None:
    with make(capacity=64) as buffer:
        sequences(buffer, 4)
        buffer.batch_insert(steps(3))
        buffer.end_trajectory()
        buffer.batch_insert(steps(2))
        with pytest.raises(
            TimeoutError, match=r"5 rows were inserted, 5 are held, the longest episode has 3 steps, and no window"
        ):
            buffer.sample("windows", 2, timeout=0.01)
        thread, outcome = in_thread(lambda: buffer.sample("windows", 2, timeout=60)[0]["rewards"].shape)
        buffer.batch_insert(steps(1))
        buffer.batch_insert(steps(1))
        joined(thread)
        assert outcome == [(2, 4)]


@pytest.mark.parametrize("timeout", [-1, math.inf, math.nan])
def test_a_timeout_is_a_number_of_seconds(timeout: float) -> None:
    with pytest.raises(ValueError, match="flow_timeout must be a finite number of seconds from 0"):
        make(flow_timeout=timeout)
    with make(count=3) as buffer, pytest.raises(ValueError, match="timeout must be a finite number of seconds from 0"):
        buffer.sample(1, timeout=timeout)


def test_close_ends_all_waits_of_this_process() -> None:
    buffer = make(capacity=64, samples_per_insert=1.0, min_rows=30, slack_samples=40)
    empty = make(capacity=64)
    waiting = [in_thread(buffer.sample, 4), in_thread(lambda: buffer.sample(4, timeout=60))]
    eventually(is_waiting(buffer, count=2))
    waiting.append(in_thread(lambda: empty.sample(4, timeout=60)))
    full = make(capacity=64, samples_per_insert=1.0, slack_samples=10)
    full.batch_insert(steps(11))
    waiting.append(in_thread(full.insert, transition(1)))
    eventually(is_waiting(full, "flow_insert_waits"))
    for closed in (buffer, empty, full):
        closed.close()
        closed.close()
    for thread, outcome in waiting:
        joined(thread)
        assert isinstance(outcome[0], ConnectionClosed)


@pytest.mark.usefixtures("no_threads_left")
def test_prefetching_waits_for_rows_and_ends_at_once_when_closed() -> None:
    with make(capacity=64) as buffer, buffer.prefetch(4) as batches:
        buffer.insert(transition(1))
        assert next(batches)["rewards"].tolist() == [1] * 4
    with make(capacity=64) as buffer:
        buffer.prefetch(4).close()
        with buffer.prefetch(4, timeout=0.01) as batches, pytest.raises(TimeoutError, match="nothing was inserted yet"):
            next(batches)
    with make(capacity=64, min_rows=30) as buffer:
        batches = buffer.prefetch(4)
        eventually(is_waiting(buffer))
        batches.close()


# ---- the header


def memory_of(buffer: ReplayBuffer) -> Any:
    assert buffer._storage.segment is not None
    return buffer._storage.segment.memory


def test_whoever_attaches_keeps_to_the_same_rate(name: str) -> None:
    rate = {"samples_per_insert": 0.5, "min_rows": 7, "slack_samples": 30}
    with make(capacity=64, name=name, **rate) as buffer, ReplayBuffer.attach(name, flow_timeout=0) as other:
        assert other._storage.limits == buffer._storage.limits == Limits(0.5, 7, 30)
        other.batch_insert(steps(6))
        with pytest.raises(TimeoutError, match="1 more inserted rows, to begin with: 6 rows were inserted"):
            other.sample(1)
        buffer.insert(transition(1))
        other.sample(1)
    with make(capacity=64, name=name, reattach=True, **rate) as again:
        counters = again.stats()
        assert (counters["granted_inserts"], counters["granted_samples"]) == (7, 1)
    for changed in ({"samples_per_insert": 1.0}, {"min_rows": 8}, {"slack_samples": 31}, {"samples_per_insert": None}):
        with pytest.raises(SegmentError, match=r"the rate Limits\(samples_per_insert=0.5, min_rows=7, slack_samples=30.0\)"):
            make(capacity=64, name=name, reattach=True, **{**rate, **changed})


@pytest.mark.parametrize(
    "limits",
    [(-1.0, 5, 100.0), (math.nan, 5, 100.0), (math.inf, 5, 100.0), (1.0, -5, 100.0), (1.0, 5, 0.5), (1.0, 5, math.nan)],
)
def test_limits_that_are_none_are_damage(name: str, limits: tuple[float, int, float]) -> None:
    with make(capacity=64, name=name, samples_per_insert=1.0) as buffer:
        rate, min_rows, slack = limits
        struct.pack_into("<ddq", memory_of(buffer), LIMITS_AT, rate, slack, min_rows)
        with pytest.raises(SegmentError, match=r"cannot attach to .*must be"):
            ReplayBuffer.attach(name)


@pytest.mark.parametrize("count", [-1, 1 << 63, (1 << 62) + 1])
def test_counts_that_are_none_are_damage(count: int) -> None:
    with make(capacity=64, samples_per_insert=1.0) as buffer:
        for at in (0x300, 0x308):
            struct.pack_into("<QQ", memory_of(buffer), 0x300, 0, 0)
            struct.pack_into("<Q", memory_of(buffer), at, count % (1 << 64))
            for call in (lambda: buffer.insert(transition(1)), lambda: buffer.sample(1)):
                with pytest.raises(SegmentError, match="damaged"):
                    call()


def test_any_value_of_the_futex_and_of_a_writers_account_does_no_harm() -> None:
    with make(capacity=64, samples_per_insert=1.0, min_rows=3) as buffer:
        writer = buffer.writer()
        for wanted, event, account in ((0xFFFFFFFF, 0xFFFFFFFF, -(1 << 63)), (7, 0, (1 << 63) - 1), (0, 0x80000000, -5)):
            struct.pack_into("<II", memory_of(buffer), EVENT_AT - 4, wanted, event)
            struct.pack_into("<q", memory_of(buffer), 4096 + 64 * writer.place + 40, account)
            thread, outcome = in_thread(lambda: len(buffer.sample(1)["rewards"]))
            for value in range(3):
                writer.insert(transition(value))
            joined(thread)
            assert outcome == [1]
            writer.close()
            writer = buffer.writer()
        assert buffer.stats()["granted_inserts"] == buffer.stats()["inserted"] == 9


def test_a_place_that_is_none_is_refused() -> None:
    with make(capacity=64, max_writers=3) as buffer:
        words: Any = buffer._storage.changes
        words.charge(2, 1)
        with pytest.raises(ValueError, match="place must be below 3, got 3"):
            words.charge(3, 1)
        memory = bytearray(memory_of(buffer)[:4096])
        with pytest.raises(SegmentError, match="damaged"):
            type(words)(memory)
        with pytest.raises(SegmentError, match="damaged"):
            type(words)(bytearray(10))


# ---- without the C half

FALLBACK = """
import sys
sys.modules["edgeml_ipc.data._rows"] = None  # as where it was not built
from edgeml_ipc.data.limiter import LocalLedger
from tests.data import test_flow as tests
with tests.make(samples_per_insert=1.0) as buffer:
    assert isinstance(buffer._flow.limiter._ledger, LocalLedger)
tests.test_inserts_and_samples_wait_for_each_other_and_say_why()
tests.test_the_one_who_waits_goes_on()
tests.test_what_fails_is_given_back()
tests.test_a_batch_that_can_never_pass_is_refused_and_an_upload_comes_in_pieces()
tests.test_an_upload_that_is_not_let_through_says_how_far_it_came()
tests.test_a_sample_waits_for_the_first_row()
tests.test_a_sample_waits_for_a_window_that_fits()
tests.test_close_ends_all_waits_of_this_process()
tests.test_prefetching_waits_for_rows_and_ends_at_once_when_closed()
"""


def test_the_same_without_the_c_half() -> None:
    done = subprocess.run([sys.executable, "-c", FALLBACK], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
