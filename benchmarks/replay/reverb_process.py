"""Reverb in an interpreter of its own: `PYTHON reverb_process.py MODE ROWS BATCH SPEC`; see `reverb_peer.py`.

Its last release needs TensorFlow 2.15, which needs numpy 1, which the other peers do not take. So nothing of this repository is
imported here. Answers each line "seconds" on the standard input with a line of nanoseconds, one for each repetition.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from itertools import pairwise

import numpy as np

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
WARM_UP_SHARE = 0.2
ITEMS_BETWEEN_FLUSHES = 200
TABLE = "replay"


def main(mode: str, rows: int, batch_size: int, spec: dict) -> None:
    """Serve a table that is full, then rounds."""
    answers = os.fdopen(os.dup(1), "w")  # what the libraries print goes elsewhere
    os.dup2(2, 1)
    import reverb
    import tensorflow

    by_priority = mode == "priority"
    signature = {name: tensorflow.TensorSpec(shape, np.dtype(dtype)) for name, (shape, dtype) in spec.items()}
    table = reverb.Table(
        TABLE,
        sampler=reverb.selectors.Prioritized(0.6) if by_priority else reverb.selectors.Uniform(),
        remover=reverb.selectors.Fifo(),
        max_size=rows,
        rate_limiter=reverb.rate_limiters.MinSize(1),
        signature=signature,
    )
    server = reverb.Server([table])
    client = reverb.Client(f"localhost:{server.port}")
    step = {name: np.ones(shape, dtype) if shape else np.dtype(dtype).type(1) for name, (shape, dtype) in spec.items()}
    writer = client.trajectory_writer(num_keep_alive_refs=1)
    added = 0

    def add() -> None:
        nonlocal added
        writer.append(step)
        writer.create_item(TABLE, 1.0, {name: column[-1] for name, column in writer.history.items()})
        added += 1
        if added % ITEMS_BETWEEN_FLUSHES == 0:
            writer.flush()

    for _ in range(rows):
        add()
    writer.flush()
    dataset = reverb.TrajectoryDataset.from_table_signature(f"localhost:{server.port}", TABLE, 2 * batch_size)
    batches = dataset.batch(batch_size).as_numpy_iterator()
    errors = np.random.default_rng(0).random(batch_size)

    def one() -> None:
        if mode == "insert":
            add()
            return
        batch = next(batches)
        if by_priority:
            client.mutate_priorities(TABLE, dict(zip(batch.info.key.tolist(), errors.tolist(), strict=True)))

    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(timed(one, float(line))), file=answers, flush=True)


def timed(operation: Callable[[], object], seconds: float) -> list[int]:
    """Time the operation again and again, after a warm-up."""
    clock = time.perf_counter_ns
    end_warm_up = clock() + int(seconds * WARM_UP_SHARE * 1e9)
    operation()
    while clock() < end_warm_up:
        operation()
    times = [clock()]
    stop = times[0] + int(seconds * 1e9)
    while times[-1] < stop or len(times) < 4:
        operation()
        times.append(clock())
    return [after - before for before, after in pairwise(times)]


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), json.loads(sys.argv[4]))
