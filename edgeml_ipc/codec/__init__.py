"""Trees of arrays to a list of buffers and back, without pickle.

A *tree* is a dict, list, tuple, namedtuple, set, frozenset, OrderedDict, flax FrozenDict or registered object whose leaves
are numpy and JAX arrays, numpy scalars, None, bool, int, float, complex, str and bytes. Each arrives as the type it was,
except that a JAX array (and a numpy.memmap) arrives as a numpy array, in C order and little-endian. Anything else, also a
subclass of one of these, is refused: it would arrive as something that it was not.

    >>> import numpy as np
    >>> parts = encode({"image": np.zeros((480, 640, 3), np.uint8), "goal": (1.5, "left")})
    >>> decode(parts)["goal"]
    (1.5, 'left')
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from edgeml_ipc.codec import decoder, encoder, registry
from edgeml_ipc.errors import CodecError

__all__ = ["decode", "encode", "register"]

T = TypeVar("T")


def encode(tree: Any) -> list[Any]:
    """Turn a tree into buffers: a header, one for each large array or bytes, and one that the small arrays share.

    Contiguous arrays of 4 KiB or more are not copied: their buffer is the array itself, or a view on it, so a change made
    to it before the buffers are sent is sent too. The tree itself is not changed.

    Raises:
        CodecError: a node's type or dtype cannot travel, or the tree is too deep, contains itself, or is over another
            limit. The message names the node's place and what to do.
    Threads: any, as long as nobody changes the tree meanwhile.
    """
    return encoder.encode(tree)


def decode(parts: Sequence[Any], *, copy: bool = False) -> Any:
    """Turn what `encode` made back into the tree.

    Args:
        parts: C-contiguous buffers, the header first.
        copy: make each array a writable copy of its own. Otherwise arrays are read-only views that keep the part they
            lie in alive, and are valid as long as they are referenced.
    Raises:
        CodecError: anything is wrong with the parts: truncated, malformed, over a limit, or holding an object of a class
            that is not registered here.
    Threads: any.
    """
    return decoder.decode(parts, 0, copy)


def register(
    cls: type[T],
    name: str | None = None,
    to_tree: Callable[[T], Any] | None = None,
    from_tree: Callable[[Any], T] | None = None,
) -> None:
    """Let objects of exactly this class travel. Both ends must register it under the same name.

    Args:
        cls: a dataclass or namedtuple; any other class with `to_tree` and `from_tree`.
        name: what it is called on the wire; by default the class's qualified name.
        to_tree: object -> tree. from_tree: tree -> object; it gets what a peer sent, so it should check it. Its arrays are
            views where `decode` makes views.
    Raises:
        CodecError: name or class are taken, the codec has a form of its own for the class, or the class needs `to_tree` and
            `from_tree`.
    Threads: any. To register the same class again changes its functions, if they are given.
    """
    if encoder.is_built_in(cls):
        raise CodecError(f"{cls.__qualname__} travels as it is and cannot be registered")
    registry.add(cls, name, to_tree, from_tree)
    encoder.forget(cls)
