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

from collections.abc import Callable
from typing import Any, TypeVar

from edgeml_ipc.codec import encoder, registry
from edgeml_ipc.codec.decoder import decode
from edgeml_ipc.codec.encoder import encode
from edgeml_ipc.errors import CodecError

__all__ = ["decode", "encode", "register"]

T = TypeVar("T")


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
