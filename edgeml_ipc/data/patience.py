"""Patience: how often rows are copied anew that writers overwrite meanwhile, and what is done about it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from edgeml_ipc.data.chunks import RowTable
from edgeml_ipc.errors import EdgeMLError

ATTEMPTS: Final = 100  # to copy rows that are overwritten meanwhile
_PATIENT: Final = 3  # attempts, after which writers are asked to hold back, each time for twice as long
_FIRST_HOLD_NS: Final = 500_000
_LONGEST_HOLD_NS: Final = 50_000_000


class Patience:
    """Attempts to copy rows before they are overwritten, of which the later ones ask writers to hold back meanwhile.

    Example:
        with Patience(table) as patience:
            for attempt in patience:
                ...
    """

    def __init__(self, table: RowTable) -> None:
        self._table, self._holds = table, False

    def __iter__(self) -> Iterator[int]:
        for attempt in range(ATTEMPTS):
            if attempt >= _PATIENT:
                self._holds = True
                self._table.hold(min(_FIRST_HOLD_NS << (attempt - _PATIENT), _LONGEST_HOLD_NS))
            yield attempt

    def __enter__(self) -> Patience:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._holds and kind is None:  # else the last request runs out by itself
            self._table.hold(0)


def overtaken(capacity: int) -> EdgeMLError:
    """Return the error of a reader that writers overtook again and again."""
    return EdgeMLError(
        f"rows of the sample were overwritten while they were copied, {ATTEMPTS} times over: writers go round the "
        f"{capacity} rows faster than they can be read; make the capacity larger"
    )
