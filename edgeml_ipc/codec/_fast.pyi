"""The compiled half of the codec: the same bytes, for the nodes that messages are mostly made of.

Where a message holds anything else, or anything is wrong with it, the Python half does the whole message.
"""

from collections.abc import Callable, Sequence
from types import NotImplementedType
from typing import Any

def encode(tree: object, /) -> list[Any]:
    """See `codec.encode`."""

def decode(parts: Sequence[Any], first: int = 0, copy: bool = False, /) -> Any:
    """See `codec.decode`; the header is `parts[first]`."""

def try_encode(tree: object, /) -> list[Any] | NotImplementedType:
    """As `encode`, but return NotImplemented where that asks the Python half."""

def try_decode(parts: Sequence[Any], first: int = 0, copy: bool = False, /) -> Any:
    """As `decode`, but return NotImplemented where that asks the Python half."""

def prepare_encode(to_host: Callable[[Any], Any], in_python: Callable[[Any], list[Any]], /) -> None:
    """Take the function that makes a plain array of what has one, and the Python half's `encode`. Before anything else."""

def prepare_decode(in_python: Callable[[Sequence[Any], int, bool], Any], /) -> None:
    """Take the Python half's `decode`. Before anything else."""
