"""RLDS data sets under agentlace's names: `RLDSLogger`, `make_datastore`, `populate_datastore` of `edgeml_ipc.datasets`."""

from __future__ import annotations

from importlib import import_module
from typing import Any, Final

_NAMES: Final = frozenset({"RLDSLogger", "make_datastore", "populate_datastore"})


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("edgeml_ipc.datasets"), name)
