"""What a remote buffer and its server say to each other: samplers as data, and errors that arrive as what they are.

The service is a guest at the trainer server's address, so its clients need no TrainerConfig: they show `CONFIG`.

    look   {store}                              -> {kind, capacity, offer}           what is there; offer: how to attach
    open   {store, seed, min_trajectory_length} -> {incarnation, capacity, shapes}   begin a visit
    ask    {method, arguments}                  -> {result} or {error, message}      or {unknown}: there is no visit (any more)
    leave  {}                                   -> {}                                end the visit: its writers are closed

A visit belongs to a client; it ends too when the client has been without a connection for a while.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from inspect import signature
from typing import Any, Final

from edgeml_ipc.data import Sampler
from edgeml_ipc.errors import BufferEmpty, BufferFull, EdgeMLError, RemoteError, SegmentError, TimeoutError

SERVICE: Final = "replay"
CONFIG: Final = {"version": "1"}
MAX_REPLY_BYTES: Final = 1 << 29  # of one batch

_PLAIN: Final = (bool, int, float, str, type(None))

# What the library raises on the server, and the same class here. Anything else there is a fault of the server.
_ERRORS: Final[dict[str, type[Exception]]] = {
    kind.__name__: kind
    for kind in (BufferEmpty, BufferFull, SegmentError, TimeoutError, ValueError, TypeError, IndexError, EdgeMLError)
}


def describe(samplers: Mapping[str, Sampler]) -> dict[str, Any]:
    """Return samplers as plain data: the name of the class, and what it was made with.

    Raises:
        TypeError: one is of a class of the user's own: code does not travel.
    """
    described = {}
    for field, sampler in samplers.items():
        if type(sampler) not in _kinds().values():
            raise TypeError(
                f"the sampler of {field!r} is a {type(sampler).__name__}; a remote buffer takes {sorted(_kinds())}, and code "
                "does not travel"
            )
        described[field] = {"kind": type(sampler).__name__}
        for name in signature(type(sampler)).parameters:
            value = getattr(sampler, name)
            described[field][name] = value.name if isinstance(value, Enum) else value
    return described


def build(described: Any) -> dict[str, Sampler]:
    """Make the samplers that plain data describes.

    Raises:
        ValueError, TypeError: it describes none.
    """
    if not isinstance(described, dict):
        raise TypeError(f"samplers must be a dict, got {type(described).__name__}")
    return {field: _sampler(field, values) for field, values in described.items()}


def plain(what: str, values: Any) -> dict[str, Any]:
    """Return a dict of names and plain values as it is. Raises TypeError: it is none."""
    if not isinstance(values, dict):
        raise TypeError(f"{what} must be a dict, got {type(values).__name__}")
    for name, value in values.items():
        if not isinstance(name, str) or not isinstance(value, _PLAIN):
            raise TypeError(f"{what} must have numbers, strings or None by name, got {name!r}: {type(value).__name__}")
    return values


def _sampler(field: Any, values: Any) -> Sampler:
    given = dict(plain(f"the sampler of {field!r}", values))
    kind = _kinds().get(str(given.pop("kind", None)))
    if kind is None or not isinstance(field, str):
        raise ValueError(f"the sampler of {field!r} is described by {values!r}, which is no sampler")
    if set(given) != set(signature(kind).parameters):
        raise ValueError(f"a {kind.__name__} is described by {[*signature(kind).parameters]}, got {sorted(given)}")
    return kind(**given)


def _kinds() -> dict[str, type[Sampler]]:
    """Return the samplers of this package by name."""
    kinds: dict[str, type[Sampler]] = {}
    to_see = [Sampler]
    while to_see:
        for kind in to_see.pop().__subclasses__():
            to_see.append(kind)
            if kind.__module__.startswith("edgeml_ipc.data."):
                kinds[kind.__name__] = kind
    return kinds


def carried_error(error: BaseException) -> dict[str, Any]:
    """Return an error of the library's as plain data."""
    name = next(kind.__name__ for kind in type(error).__mro__ if kind.__name__ in _ERRORS)
    return {"error": name, "message": str(error)}


def error_in(answer: Mapping[str, Any], address: str) -> Exception:
    """Return the error that an answer carries, as the type that it was."""
    kind = _ERRORS.get(answer["error"])
    message = f"{address}: {answer['message']}"
    return RemoteError(message, remote_type=str(answer["error"])) if kind is None else kind(message)
