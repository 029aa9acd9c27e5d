"""What edgeml's and agentlace's users may write: every public name of theirs, its arguments in their order, its defaults.

The table was written down from their sources (agentlace's last version; edgeml's where it had more). An argument that this
library adds comes by keyword only, or after theirs.
"""

from __future__ import annotations

import importlib
import inspect
import logging
from typing import Any

import pytest

DEBUG, INFO, WARNING = logging.DEBUG, logging.INFO, logging.WARNING

# module -> name -> arguments with their defaults; one without a default has none, and `...` stands for a fresh, empty one.
TABLE: dict[str, dict[str, str]] = {
    "action": {
        "ActionConfig": "port_number, action_keys, observation_keys, broadcast_port=None, version='0.0.1'",
        "ActionServer": "config, obs_callback, act_callback, log_level=WARNING",
        "ActionServer.start": "threaded=False",
        "ActionServer.publish_obs": "payload",
        "ActionServer.stop": "",
        "ActionClient": "server_ip, config, wait_for_server=False, timeout_ms=800",
        "ActionClient.obs": "keys=None",
        "ActionClient.act": "key, payload=...",
        "ActionClient.register_obs_callback": "callback",
        "ActionClient.stop": "",
    },
    "inference": {
        "InferenceServer": "port_num",
        "InferenceServer.start": "threaded=False",
        "InferenceServer.register_interface": "name, callback",
        "InferenceServer.stop": "",
        "InferenceClient": "server_ip, port_num",
        "InferenceClient.interfaces": "",
        "InferenceClient.call": "name, payload",
    },
    "trainer": {
        "TrainerConfig": "port_number=5555, broadcast_port=5556, request_types=..., rate_limit=None, version='0.0.1'",
        "TrainerServer": "config, data_callback=None, request_callback=None, log_level=INFO",
        "TrainerServer.register_data_store": "name, data_store",
        "TrainerServer.data_store": "name",
        "TrainerServer.store_names": "",
        "TrainerServer.publish_network": "payload",
        "TrainerServer.start": "threaded=False",
        "TrainerServer.stop": "",
        "TrainerClient": (
            "name, server_ip, config, data_store=None, data_stores=..., log_level=INFO, wait_for_server=False, timeout_ms=800"
        ),
        "TrainerClient.update": "",
        "TrainerClient.update_datastore": "name, from_id, confirm_update=False",
        "TrainerClient.get_server_last_update_id": "name",
        "TrainerClient.request": "type, payload",
        "TrainerClient.recv_network_callback": "callback",
        "TrainerClient.start_async_update": "interval=10",
        "TrainerClient.stop": "",
        "TrainerTunnel": "",
        "TrainerSMInterface": "",
        "TrainerSMInterface.recv_network_callback": "callback_fn",
        "TrainerSMInterface.publish_network": "params",
        "TrainerSMInterface.start": "",
        "TrainerSMInterface.stop": "",
        "TrainerSMInterface.update": "",
        "TrainerSMInterface.register_request_callback": "callback_fn",
        "TrainerSMInterface.request": "type, payload",
        "TrainerSMInterface.start_async_update": "interval=10",
    },
    "data.data_store": {
        "DataStoreBase": "capacity",
        "DataStoreBase.latest_data_id": "",
        "DataStoreBase.get_latest_data": "from_id",
        "DataStoreBase.insert": "data",
        "DataStoreBase.batch_insert": "batch_data",
        "QueuedDataStore": "capacity",
        "QueuedDataStore.latest_data_id": "",
        "QueuedDataStore.insert": "data",
        "QueuedDataStore.get_latest_data": "from_id",
    },
    "data.trajectory_buffer": {
        "DataShape": "name, shape=(), dtype='float32'",
        "Trajectory": "begin_idx, id, min_length",
        "TrajectoryBuffer": "capacity, data_shapes, seed=0, min_trajectory_length=2, device=None, use_jax=False",
        "TrajectoryBuffer.register_sample_config": "name, samplers, sample_range=(0, 1), transform=None",
        "TrajectoryBuffer.insert": "data, end_of_trajectory=False",
        "TrajectoryBuffer.end_trajectory": "",
        "TrajectoryBuffer.sample": "sampler_name, batch_size, force_indices=None",
        "TrajectoryBuffer.serialized": "",
        "TrajectoryBuffer.save": "path",
        "TrajectoryBuffer.load": "path, device=None, use_jax=False",
        "TrajectoryBuffer.deserialize": "loaded_data, device=None, use_jax=False",
        "TrajectoryBuffer.latest_data_id": "",
    },
    "data.sampler": {
        "LatestSampler": "source=None",
        "SequenceSampler": "squeeze=False, begin=0, end=1, source=None",
        "FutureSampler": "distribution=FutureSampler.Distribution.UNIFORM, max_future=None, lambda_=None, source=None",
    },
    "data.jaxrl_data_store": {
        "TrajectoryBufferDataStore": ("capacity, data_shapes, device=None, seed=0, min_trajectory_length=2, rlds_logger=None"),
        "TrajectoryBufferDataStore.insert": "data",
        "ReplayBufferDataStore": "observation_space, action_space, capacity, rlds_logger=None",
        "ReplayBufferDataStore.insert": "data",
        "ReplayBufferDataStore.sample": "batch_size, keys=None, indx=None",
        "ReplayBufferDataStore.get_iterator": "queue_size=2, sample_args=..., device=None",
        "ReplayBufferDataStore.latest_data_id": "",
        "make_default_trajectory_buffer": "observation_space, action_space, capacity, device=None, rlds_logger=None",
    },
    "data.tfds": {
        "make_datastore": "dataset_dir, capacity, type='replay_buffer', data_transform=None",
        "populate_datastore": "datastore, dataset, type=None, data_transform=None",
        "RLDSLogger": "observation_space, action_space, dataset_name, directory, max_episodes_per_file=1000",
    },
    "data.replay_buffer": {
        "DataShape": "name, shape=(), dtype='float32'",
        "ReplayBuffer.insert": "data, end_of_trajectory",
        "EfficientReplayBuffer.insert": "data, end_of_trajectory=False",
    },
    "gym_env": {
        "GymEnvClient": "host='localhost', port=5546, retry_interval=0.5, timeout_ms=800",
        "GymEnvClient.step": "action",
        "GymEnvClient.close": "",
        "GymEnvServerWrapper": "env, port=5546",
        "GymEnvServerWrapper.start": "threaded=False",
        "GymEnvServerWrapper.stop": "",
    },
    "internal.utils": {
        "mat_to_jpeg": "img",
        "jpeg_to_mat": "buf",
        "compute_hash": "obj",
        "print_size": "obj",
        "print_error": "text",
        "print_warning": "text",
        "make_compression_method": "compression",
    },
    "zmq_wrapper.req_rep": {
        "ReqRepServer": "port=5556, impl_callback=None, log_level=DEBUG, compression='lz4'",
        "ReqRepServer.run": "",
        "ReqRepServer.stop": "",
        "ReqRepServer.reset": "",
        "ReqRepClient": "ip, port=5556, timeout_ms=800, log_level=DEBUG, compression='lz4'",
        "ReqRepClient.send_msg": "request, wait_for_response=True",
        "ReqRepClient.reset_socket": "",
    },
    "zmq_wrapper.broadcast": {
        "BroadcastServer": "port=5557, log_level=DEBUG, compression='lz4'",
        "BroadcastServer.broadcast": "message",
        "BroadcastClient": "ip, port=5557, log_level=DEBUG, comppression='lz4'",
        "BroadcastClient.async_start": "callback",
        "BroadcastClient.stop": "",
    },
    "zmq_wrapper.pair": {
        "PairServer": "port=5557, log_level=DEBUG, compression='lz4'",
        "PairServer.register_callback": "callback",
        "PairServer.broadcast": "message",
        "PairServer.run": "",
        "PairClient": "ip, port=5557, log_level=DEBUG, compression='lz4'",
        "PairClient.register_callback": "callback",
        "PairClient.broadcast": "message",
        "PairClient.run": "",
    },
    "zmq_wrapper.pipeline": {
        "Producer": "ip='localhost', port=5547, compression='lz4'",
        "Producer.send_msg": "msg",
        "Consumer": "callback_fn, port=5547, compression='lz4'",
        "Consumer.start": "",
        "Consumer.async_start": "",
        "Consumer.stop": "",
    },
}

EMPTY: tuple[Any, ...] = (None, [], {})


def resolve(module: str, name: str) -> Any:
    found = importlib.import_module(f"edgeml_ipc.compat.{module}")
    for part in name.split("."):
        found = getattr(found, part)
    return found


def wanted(module: str, text: str) -> dict[str, Any]:
    """Return the arguments that the table says, with their defaults."""
    sampler = resolve("data.sampler", "FutureSampler")
    names = {"DEBUG": DEBUG, "INFO": INFO, "WARNING": WARNING, "FutureSampler": sampler}
    made = eval(f"lambda {text}: None", names)
    return {name: argument.default for name, argument in inspect.signature(made).parameters.items()}


@pytest.mark.parametrize(
    ("module", "name"), [(module, name) for module, names in TABLE.items() for name in names], ids=lambda text: text
)
def test_the_arguments_are_theirs(module: str, name: str) -> None:
    given = inspect.signature(resolve(module, name))
    ours = [argument for argument in given.parameters.values() if argument.name != "self"]
    theirs = wanted(module, TABLE[module][name])
    for place, (argument, default) in enumerate(theirs.items()):
        mine = ours[place]
        assert mine.name == argument, f"{name} has {mine.name!r} where {argument!r} belongs"
        assert mine.kind is not inspect.Parameter.KEYWORD_ONLY
        if default is ...:
            assert mine.default in EMPTY or mine.default.__class__.__name__ == "_HAS_DEFAULT_FACTORY_CLASS"
        elif default is not inspect.Parameter.empty:
            assert mine.default == default, f"{name}: {argument}={mine.default!r}, and theirs is {default!r}"
    for mine in ours[len(theirs) :]:
        assert mine.default is not inspect.Parameter.empty or mine.kind in (mine.VAR_KEYWORD, mine.VAR_POSITIONAL)


def test_the_short_way_to_the_classes() -> None:
    compat = importlib.import_module("edgeml_ipc.compat")
    for module in ("action", "inference", "trainer", "data.data_store"):
        for name in TABLE[module]:
            if name[0].isupper() and "." not in name:
                assert getattr(compat, name) is resolve(module, name)
