"""The seam by which a buffer reaches buffers elsewhere: stores never import services, so the package lends them one here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_connectors: list[Callable[[], Callable[..., Any]]] = []


def lend(find: Callable[[], Callable[..., Any]]) -> None:
    """Say how to find what connects to a buffer elsewhere; it is not looked for until it is used."""
    _connectors[:] = [find]


def connect(kind: type, address: str, **options: Any) -> Any:
    """Connect to a buffer elsewhere, by what was lent; `kind` is the class whose objects are wanted where it is near."""
    return _connectors[0]()(kind, address, **options)
