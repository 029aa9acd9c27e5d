"""The learner: it samples windows of eight steps while the actors write, and looks whether each is of one episode."""

import time

import numpy as np
from actor import move

from edgeml_ipc import SequenceSampler

BATCH_SIZE, WINDOW_STEPS = 256, 8


def learn(buffer, rows, every_second):
    """Sample until `rows` transitions were inserted; print the rates, and call `every_second(inserted)`."""
    window = SequenceSampler(begin=0, end=WINDOW_STEPS)
    fields = {"observations": window, "actions": window, "rewards": window}
    buffer.register_sample_config("windows", fields, sample_range=(0, WINDOW_STEPS))
    batches = inserted = 0
    started = reported = time.perf_counter()
    while inserted < rows:
        data, mask = buffer.sample("windows", BATCH_SIZE, timeout=60)  # seconds to wait for the first window
        states, actions = data["observations"], data["actions"]
        assert states.shape == (BATCH_SIZE, WINDOW_STEPS, 4)
        assert mask["observations"].all()
        assert np.array_equal(states[:, 1:], move(states[:, :-1], actions[:, :-1]))
        batches += 1
        inserted, now = buffer.stats()["inserted"], time.perf_counter()
        if now - reported >= 1 or inserted >= rows:
            reported, seconds, rows_out = now, now - started, batches * BATCH_SIZE * WINDOW_STEPS
            print(
                f"{seconds:.1f} s: {inserted} rows in ({inserted / seconds:,.0f}/s) by {buffer.stats()['writers']} writers, "
                f"{rows_out} rows out ({rows_out / seconds:,.0f}/s) in {batches} batches",
                flush=True,
            )
            every_second(inserted)
