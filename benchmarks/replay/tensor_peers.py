"""Buffers of others that hold tensors: torchrl and flashbax, on the CPU; each full before it is measured."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.replay.data import (
    BATCH,
    CAMERAS,
    EPISODE_STEPS,
    IMAGE,
    INSERTED_AT_ONCE,
    STATE,
    Kind,
    piece,
    pieces,
    sliced,
    turns,
)
from benchmarks.replay.numpy_peers import (
    ERRORS,
    Operation,
    for_cpprb,
    imported,
    insert_case,
    priority_case,
    sample_case,
)
from edgeml_ipc.errors import TransportUnavailable

# ---- torchrl: threads as torch chooses them


def torchrl_batches(batches: list[dict[str, np.ndarray]]) -> Iterator[Any]:
    """Turn stacked arrays into TensorDicts, with the number of the episode, by which slices are found."""
    torch, tensor_dict = imported("torch"), imported("tensordict").TensorDict
    begun = 0
    for arrays in batches:
        count = len(arrays["done"])
        tensors = {name: torch.from_numpy(array) for name, array in for_cpprb(arrays).items()}
        episode = torch.arange(begun, begun + count) // EPISODE_STEPS
        begun += count
        yield tensor_dict({**tensors, "episode": episode}, [count])


def torchrl_full(kind: Kind, batch_size: int = BATCH, **settings: Any) -> Any:
    """Return a TensorDictReplayBuffer that is full."""
    library = imported("torchrl.data")
    logging.getLogger("torchrl").setLevel(logging.WARNING)  # it tells of every storage, on the standard output
    storage = library.LazyTensorStorage(kind.rows)
    buffer = library.TensorDictReplayBuffer(storage=storage, batch_size=batch_size, **settings)
    for batch in torchrl_batches(pieces(kind)):
        buffer.extend(batch)
    return buffer


def torchrl_add(at_once: int) -> Operation:
    """`add` of one, or `extend` with many, as TensorDicts that were made before."""
    buffer = torchrl_full(STATE)
    batches = list(torchrl_batches(sliced(piece(STATE), at_once)))
    following = turns([batch[0] for batch in batches] if at_once == 1 else batches)
    insert = buffer.add if at_once == 1 else buffer.extend
    return lambda: insert(following())


def torchrl_sample(kind: Kind) -> Operation:
    """`sample`."""
    return torchrl_full(kind).sample  # type: ignore[no-any-return]


def torchrl_windows(window: int) -> Operation:
    """`sample` of slices, with the ends of the episodes found once: nobody inserts."""
    sampler = imported("torchrl.data").SliceSampler(slice_len=window, traj_key="episode", cache_values=True)
    return torchrl_full(STATE, BATCH * window, sampler=sampler).sample  # type: ignore[no-any-return]


def torchrl_priority() -> Operation:
    """`sample`, `update_priority`."""
    library, torch = imported("torchrl.data"), imported("torch")
    try:
        sampler = library.PrioritizedSampler(STATE.rows, alpha=0.6, beta=0.4)
    except RuntimeError as error:
        raise TransportUnavailable("the compiled half of torchrl does not load beside the torch that is installed") from error
    buffer, errors = torchrl_full(STATE, sampler=sampler), torch.from_numpy(ERRORS)
    return lambda: buffer.update_priority(buffer.sample()["index"], errors)


# ---- flashbax: everything jitted, the state donated, so that it changes in place; each call is waited for


class Flashbax:
    """A buffer and its state, full.

    Args:
        make: of flashbax, the function that makes the buffer. batched: it adds items; else sequences `(1, time)`.
    """

    def __init__(self, make: str, batched: bool, **settings: Any) -> None:
        """Compile and fill."""
        self.jax, library = imported("jax"), imported("flashbax")
        self.buffer = getattr(library, make)(**settings)
        whole = for_cpprb(piece(STATE))
        self.state = self.buffer.init({name: self.jax.numpy.asarray(array[0]) for name, array in whole.items()})
        self._add = self.jax.jit(self.buffer.add, donate_argnums=0)
        self._sample = self.jax.jit(self.buffer.sample)
        self._key = self.jax.random.key(0)
        for arrays in pieces(STATE):
            self.add({name: array if batched else array[None] for name, array in for_cpprb(arrays).items()})

    def add(self, items: Any) -> None:
        """Add, and wait until that is done."""
        self.state = self.jax.block_until_ready(self._add(self.state, items))

    def sample(self) -> Any:
        """Draw a batch, and wait for it."""
        self._key, key = self.jax.random.split(self._key)
        return self.jax.block_until_ready(self._sample(self.state, key))


def flashbax_items(make: str = "make_item_buffer", **settings: Any) -> Flashbax:
    """Return a buffer of items."""
    sizes = {"max_length": STATE.rows, "min_length": BATCH, "sample_batch_size": BATCH, "add_batches": True}
    return Flashbax(make, batched=True, **sizes, **settings)


def flashbax_add(at_once: int) -> Operation:
    """`add` of numpy arrays: one item, or many."""
    full = flashbax_items()
    batches = [for_cpprb(arrays) for arrays in sliced(piece(STATE), at_once)]
    following = turns(batches)
    return lambda: full.add(following())


def flashbax_windows(window: int) -> Operation:
    """`sample` of sequences, which may run over the end of an episode."""
    settings = {"add_batch_size": 1, "sample_batch_size": BATCH, "sample_sequence_length": window, "period": 1}
    rows = {"min_length_time_axis": window, "max_length_time_axis": STATE.rows}
    return Flashbax("make_trajectory_buffer", batched=False, **settings, **rows).sample


def flashbax_priority() -> Operation:
    """`sample`, `set_priorities`."""
    full = flashbax_items("make_prioritised_item_buffer", priority_exponent=0.6, device="cpu")
    update = full.jax.jit(full.buffer.set_priorities, donate_argnums=0)

    def one() -> None:
        full.state = full.jax.block_until_ready(update(full.state, full.sample().indices, ERRORS))

    return one


CASES = [
    insert_case("torchrl", "add of one TensorDict", lambda: torchrl_add(1)),
    insert_case("flashbax", "jitted add of one item", lambda: flashbax_add(1)),
    insert_case("torchrl", "extend with 50", lambda: torchrl_add(INSERTED_AT_ONCE), INSERTED_AT_ONCE),
    insert_case("flashbax", "jitted add of 50 items", lambda: flashbax_add(INSERTED_AT_ONCE), INSERTED_AT_ONCE),
    sample_case("torchrl", "sample(), torch tensors", lambda: torchrl_sample(STATE)),
    sample_case("flashbax", "jitted sample, JAX arrays", lambda: flashbax_items().sample),
    sample_case("torchrl", "slices of 10, ends of episodes cached", lambda: torchrl_windows(10), STATE, 10),
    sample_case("flashbax", "jitted sequences of 10, across episodes", lambda: flashbax_windows(10), STATE, 10),
    sample_case("torchrl", "slices of 50, ends of episodes cached", lambda: torchrl_windows(50), STATE, 50),
    sample_case("flashbax", "jitted sequences of 50, across episodes", lambda: flashbax_windows(50), STATE, 50),
    sample_case("torchrl", "sample(), torch tensors", lambda: torchrl_sample(IMAGE), IMAGE),
    sample_case("torchrl", "sample(), torch tensors", lambda: torchrl_sample(CAMERAS), CAMERAS),
    priority_case("torchrl", "sample, update_priority", torchrl_priority),
    priority_case("flashbax", "jitted sample, set_priorities", flashbax_priority),
]
