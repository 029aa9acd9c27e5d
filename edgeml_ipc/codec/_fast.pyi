"""The compiled half of the codec: the same bytes, for the nodes that messages are mostly made of.

Where a message holds anything else, or anything is wrong with it, each function returns NotImplemented, and the Python half
does the whole message.
"""

from collections.abc import Callable, Sequence
from types import NotImplementedType
from typing import Any

def encode(tree: object, /) -> list[Any] | NotImplementedType:
    """See `encoder.encode`."""

def decode(parts: Sequence[Any], first: int, copy: bool, /) -> Any:
    """See `decoder.decode`; the header is `parts[first]`."""

def prepare(to_host: Callable[[Any], Any], /) -> None:
    """Take the function that makes a plain array of what has one; to be called once, before `encode`."""
