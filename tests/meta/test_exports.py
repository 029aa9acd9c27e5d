"""The public names: each importable from `edgeml_ipc` and from the module where edgeml's users look for it."""

import importlib

import pytest

import edgeml_ipc
from tests.meta.source import package_modules

PUBLIC = {
    "edgeml_ipc.action": ["ActionClient", "ActionConfig", "ActionServer"],
    "edgeml_ipc.inference": ["InferenceClient", "InferenceServer"],
    "edgeml_ipc.trainer": ["TrainerClient", "TrainerConfig", "TrainerServer", "TrainerTunnel"],
    "edgeml_ipc.data": [
        "DataShape",
        "DataStoreBase",
        "FutureSampler",
        "LatestSampler",
        "PrioritySampler",
        "QueuedDataStore",
        "ReplayBuffer",
        "Sampler",
        "SequenceSampler",
        "TrajectoryBuffer",
        "make_default_trajectory_buffer",
    ],
    "edgeml_ipc.data.sampler": ["FutureSampler", "LatestSampler", "PrioritySampler", "Sampler", "SequenceSampler"],
    "edgeml_ipc.data.data_store": ["DataStoreBase", "QueuedDataStore"],
    "edgeml_ipc.datasets": [
        "RLDSLogger",
        "export_lerobot",
        "export_minari",
        "export_rlds",
        "make_datastore",
        "populate_datastore",
    ],
    "edgeml_ipc.remote_buffer": ["RemoteBuffer"],
    "edgeml_ipc.remote_writer": ["RemoteWriter"],
    "edgeml_ipc.errors": [
        "AddressInUse",
        "AuthenticationError",
        "BufferEmpty",
        "BufferFull",
        "CodecError",
        "ConfigMismatch",
        "ConnectionClosed",
        "ConnectionRefused",
        "DatasetError",
        "EdgeMLError",
        "IncompatiblePeer",
        "MessageTooLarge",
        "PeerDied",
        "RateLimited",
        "RemoteError",
        "SegmentError",
        "TimeoutError",
        "TransportUnavailable",
    ],
}


# Not in `__all__`: a star import must not import what an extra brings.
WITH_EXTRAS = {"edgeml_ipc.gym_env": ["EnvServer", "RemoteEnv", "RemoteVectorEnv"]}


@pytest.mark.parametrize(("module", "name"), [(module, name) for module, names in WITH_EXTRAS.items() for name in names])
def test_name_that_needs_an_extra_resolves_from_both_places(module: str, name: str) -> None:
    assert getattr(edgeml_ipc, name) is getattr(importlib.import_module(module), name)
    assert name in dir(edgeml_ipc)
    assert name not in edgeml_ipc.__all__


@pytest.mark.parametrize(("module", "name"), [(module, name) for module, names in PUBLIC.items() for name in names])
def test_public_name_resolves_from_both_places(module: str, name: str) -> None:
    assert getattr(edgeml_ipc, name) is getattr(importlib.import_module(module), name)
    assert name in edgeml_ipc.__all__


def test_every_error_is_public() -> None:
    errors = importlib.import_module("edgeml_ipc.errors")
    defined = {n for n, v in vars(errors).items() if isinstance(v, type) and issubclass(v, errors.EdgeMLError)}
    assert defined == set(PUBLIC["edgeml_ipc.errors"])


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = edgeml_ipc.no_such_name  # type: ignore[attr-defined]


@pytest.mark.parametrize("module", package_modules())
def test_all_is_sorted_and_importable(module: str) -> None:
    if module.endswith("__main__"):
        return  # running it is its only use
    loaded = importlib.import_module(module)
    names: list[str] = list(getattr(loaded, "__all__", []))
    assert [name for name in names if not hasattr(loaded, name)] == []
    assert len(names) == len(set(names))
    assert names == sorted(names, key=lambda name: (0 if name.isupper() else 1 if name[0].isupper() else 2, name))


def test_the_table_of_contents_offers_what_it_lists() -> None:
    assert edgeml_ipc.__all__
    assert set(edgeml_ipc.__all__) <= set(dir(edgeml_ipc))
