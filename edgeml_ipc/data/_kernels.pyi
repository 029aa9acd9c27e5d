"""The compiled inner loops of sampling, bound from C. Internal: `gather.py` and `priority.py` are its only users.

Rows and places are contiguous int64 arrays, weights and targets contiguous float64 arrays; all are copied or checked before
the interpreter lock is released.
"""

from typing import Any, final

@final
class Block:
    """Writable memory of one batch, aligned to 64 bytes; goes back to its pool when the last array on it dies."""

    def __buffer__(self, flags: int, /) -> memoryview: ...

@final
class Pool:
    """Keeps up to `idle_blocks` (at most 64) blocks that nobody uses for the next batches."""

    def __new__(cls, idle_blocks: int) -> Pool: ...
    def stats(self) -> dict[str, int]: ...

@final
class Gather:
    """Copies rows of columns. Any thread may call; holds the columns' buffers until `close`."""

    def __new__(cls, columns: tuple[Any, ...], which: tuple[int, ...], threads: int) -> Gather:
        """Take columns of bytes (rows, row_bytes); column i follows the set of rows number `which[i]`."""
    def run(self, rows: tuple[Any, ...], pool: Pool, /) -> tuple[Block, tuple[int, ...]]:
        """Copy the rows of each set, zeros for -1; return the block and the byte at which each column begins."""
    def patch(self, block: Block, places: tuple[int, ...], rows: tuple[Any, ...], at: tuple[Any, ...], /) -> None:
        """Copy rows over places of a block that `run` made for `places[s]` rows of set s."""
    def close(self) -> None:
        """Let go of the columns, once the calls under way are done."""

@final
class SumTree:
    """Weights of rows and their sums. Its caller serialises all calls."""

    total: float
    least: float
    def __new__(cls, capacity: int) -> SumTree: ...
    def set(self, rows: Any, weights: Any, /) -> None: ...
    def update(
        self, handles: Any, errors: Any, stamps: Any, stride_bits: int, epsilon: float, alpha: float, /
    ) -> tuple[int, float]:
        """See `priority.Tree`."""
    def fill(self, begin: int, end: int, weight: float, /) -> None: ...
    def get(self, rows: Any, out: Any, /) -> None: ...
    def find(self, targets: Any, rows: Any, weights: Any, /) -> None: ...
