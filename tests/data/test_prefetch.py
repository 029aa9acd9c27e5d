"""Tests of edgeml_ipc.data.prefetch."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

from edgeml_ipc.data.gather import Gather
from edgeml_ipc.data.prefetch import prefetch
from edgeml_ipc.errors import BufferEmpty
from tests.conftest import eventually

pytestmark = pytest.mark.usefixtures("no_threads_left")


def counting(end: int | None = None) -> Callable[[int], dict[str, np.ndarray]]:
    """Return a source whose n-th batch is filled with n; it runs out, or raises, after `end` of them."""
    made = 0

    def sample(count: int) -> dict[str, np.ndarray]:
        nonlocal made
        if made == end:
            raise StopIteration
        made += 1
        return {"x": np.full((count, 3), made, np.float32)}

    return sample


def test_batches_come_in_order_as_jax_arrays() -> None:
    with prefetch(counting(), 4, size=3) as batches:
        for number in range(1, 20):
            batch = next(batches)
            assert isinstance(batch["x"], jax.Array)
            assert batch["x"].tolist() == [[number] * 3] * 4


def test_a_batch_that_is_held_never_changes() -> None:
    """The source gives the same memory again and again, aligned as JAX likes it, and writes it before each batch."""
    memory = np.frombuffer(bytearray(64 * 1024 + 64), np.uint8)
    start = -memory.ctypes.data % 64
    shared = memory[start : start + 64 * 1024].view(np.float32).reshape(64, 256)
    writes = 0

    def sample(count: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
        nonlocal writes
        writes += 1
        shared[:] = writes
        return {"x": shared[:count]}, shared[0]

    with prefetch(sample, 64) as batches:
        held = [next(batches) for _ in range(200)]
    assert writes >= 200
    for number, (data, row) in enumerate(held, start=1):
        assert (np.asarray(data["x"]) == number).all()
        assert (np.asarray(row) == number).all()


def test_pooled_blocks_go_round_while_batches_are_held() -> None:
    column = np.repeat(np.arange(500, dtype=np.float32)[:, None], 2048, axis=1)
    gather = Gather([column])
    drawn = 0

    def sample(count: int) -> np.ndarray:
        nonlocal drawn
        drawn += 1
        return gather(np.full(count, drawn)).arrays[0]

    with prefetch(sample, 16) as batches:
        held = [next(batches) for _ in range(100)]
    assert [int(batch[0, 0]) for batch in held] == list(range(1, 101))
    assert all((np.asarray(batch) == number).all() for number, batch in enumerate(held, start=1))
    assert gather.stats()["blocks_reused"] > 90  # what JAX got was a copy, so the blocks were free again


def test_no_more_than_size_batches_are_ahead() -> None:
    made: list[int] = []

    def sample(count: int) -> np.ndarray:
        made.append(len(made))
        return np.zeros(count)

    with prefetch(sample, 2, size=3) as batches:
        eventually(lambda: batches.stats()["ready"] == 3)
        for taken in range(5):
            assert len(made) <= taken + 3
            next(batches)
            eventually(lambda: batches.stats()["ready"] == 3)
    assert len(made) == 8


def test_what_the_source_raises_reaches_the_consumer_after_the_batches_before() -> None:
    def sample(count: int) -> np.ndarray:
        if len(calls) == 3:
            raise BufferEmpty("nothing left")
        calls.append(count)
        return np.zeros(count)

    calls: list[int] = []
    batches = prefetch(sample, 5, size=2)
    for _ in range(3):
        next(batches)
    with pytest.raises(BufferEmpty, match="nothing left"):
        next(batches)
    with pytest.raises(StopIteration):
        next(batches)
    batches.close()


def test_a_source_that_cannot_be_put_on_a_device_tells_so() -> None:
    with prefetch(lambda count: np.array(["text"] * count), 2) as batches, pytest.raises(TypeError):
        next(batches)


def test_a_source_that_runs_out_ends_the_loop() -> None:
    with prefetch(counting(end=7), 1) as batches:
        assert [int(batch["x"][0, 0]) for batch in batches] == [1, 2, 3, 4, 5, 6, 7]


def test_the_device_is_the_one_asked_for() -> None:
    device = jax.devices("cpu")[0]
    sharding = jax.sharding.SingleDeviceSharding(device)
    for where in (device, sharding, None):
        with prefetch(counting(), 2, device=where) as batches:
            assert next(batches)["x"].devices() == {device}


def test_close_ends_a_consumer_that_waits() -> None:
    gate, asked = threading.Event(), threading.Event()

    def sample(count: int) -> np.ndarray:
        asked.set()
        assert gate.wait(60)
        return np.zeros(count)

    batches = prefetch(sample, 1)
    ended: list[Any] = []
    consumer = threading.Thread(target=lambda: ended.extend(batches))
    consumer.start()
    assert asked.wait(20)
    eventually(lambda: batches.stats()["waits"] == 1)
    closer = threading.Thread(target=batches.close)
    closer.start()
    consumer.join(20)
    assert not consumer.is_alive()
    gate.set()
    closer.join(20)
    assert not closer.is_alive()
    assert ended == []
    batches.close()
    with pytest.raises(StopIteration):
        next(batches)


def test_dropping_the_iterator_ends_its_thread() -> None:
    before = threading.active_count()
    batches = prefetch(counting(), 1)
    next(batches)
    del batches
    gc.collect()
    eventually(lambda: threading.active_count() == before)


def test_arguments() -> None:
    with pytest.raises(ValueError, match="batch_size"):
        prefetch(counting(), 0)
    with pytest.raises(ValueError, match="size must be at least 1"):
        prefetch(counting(), 1, size=0)
