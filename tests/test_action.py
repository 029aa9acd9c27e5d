"""The action service, over every transport."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from edgeml_ipc.action import ActionClient, ActionConfig, ActionServer
from edgeml_ipc.errors import AuthenticationError, ConfigMismatch, ConnectionRefused, EdgeMLError, RemoteError
from edgeml_ipc.security import Keys
from tests.conftest import eventually

pytestmark = pytest.mark.usefixtures("no_threads_left")

CONFIG = ActionConfig(port_number=0, action_keys=["move", "stop"], observation_keys=["pose", "camera"])


class Robot:
    """Two callbacks that keep what they are called with."""

    def __init__(self) -> None:
        self.asked: list[set[str]] = []
        self.acted: list[tuple[str, Any]] = []

    def obs(self, keys: set[str]) -> dict[str, Any]:
        self.asked.append(keys)
        return {key: np.zeros((480, 640, 3), np.uint8) if key == "camera" else np.zeros(3) for key in keys}

    def act(self, key: str, payload: Any) -> dict[str, Any]:
        self.acted.append((key, payload))
        if key == "stop":
            raise RuntimeError("cannot stop")
        return {"status": "done"}


@pytest.fixture
def robot() -> Robot:
    return Robot()


@pytest.fixture
def server(address: str, robot: Robot) -> Iterator[ActionServer]:
    with ActionServer(CONFIG, robot.obs, robot.act, host=address) as server:
        server.start(threaded=True)
        yield server


@pytest.fixture
def client(server: ActionServer) -> Iterator[ActionClient]:
    with ActionClient(server.address, CONFIG, timeout_ms=20_000) as client:
        yield client


def test_obs(client: ActionClient, robot: Robot) -> None:
    observation = client.obs()
    assert observation["camera"].shape == (480, 640, 3)
    assert client.obs(["pose"]).keys() == {"pose"}
    assert client.obs({"pose"}).keys() == {"pose"}
    assert robot.asked == [{"pose", "camera"}, {"pose"}, {"pose"}]


def test_act(client: ActionClient, robot: Robot) -> None:
    assert client.act("move", {"by": np.ones(3)}) == {"status": "done"}
    assert client.act("move") == {"status": "done"}
    assert robot.acted[0][0] == "move"
    assert robot.acted[1] == ("move", {})


def test_unknown_keys(client: ActionClient, robot: Robot) -> None:
    with pytest.raises(RemoteError, match="'fly'"):
        client.act("fly")
    with pytest.raises(RemoteError, match="'smell'"):
        client.obs(["pose", "smell"])
    assert robot.asked == robot.acted == []


def test_callback_that_raises(client: ActionClient) -> None:
    with pytest.raises(RemoteError, match="cannot stop") as caught:
        client.act("stop")
    assert caught.value.remote_type == "RuntimeError"
    assert client.act("move") == {"status": "done"}


def test_published_observations(server: ActionServer, client: ActionClient) -> None:
    got: list[dict[str, Any]] = []
    arrived = threading.Event()
    client.register_obs_callback(lambda obs: (got.append(obs), arrived.set()))
    assert server.publish_obs({"pose": np.arange(3)}) == 1
    assert arrived.wait(20)
    np.testing.assert_array_equal(got[0]["pose"], np.arange(3))
    eventually(lambda: client.lag == 0 and list(server.stats()["lag"].values()) == [0])


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"action_keys": ["move"]}, "action_keys"),
        ({"observation_keys": ["pose"]}, "observation_keys"),
        ({"version": "2"}, "version"),
    ],
)
def test_wrong_config_shows_the_differing_field(server: ActionServer, changes: dict[str, Any], field: str) -> None:
    config = copy.deepcopy(CONFIG)
    vars(config).update(changes)
    with pytest.raises(ConfigMismatch, match=field) as caught:
        ActionClient(server.address, config)
    assert list(caught.value.differences) == [field]


def test_one_config_serves_a_server_and_two_clients_and_is_not_changed(server: ActionServer) -> None:
    before = copy.deepcopy(CONFIG)
    with ActionClient(server.address, CONFIG, timeout_ms=20_000) as one, ActionClient(server.address, CONFIG) as two:
        assert one.act("move") == two.act("move") == {"status": "done"}
    assert before == CONFIG


def test_other_ports_are_no_mismatch(server: ActionServer) -> None:
    config = copy.deepcopy(CONFIG)
    config.port_number, config.broadcast_port = 1234, 1235
    with ActionClient(server.address, config, timeout_ms=20_000) as client:
        assert client.act("move") == {"status": "done"}


def test_bare_host_takes_the_port_of_the_config(robot: Robot) -> None:
    with ActionServer(CONFIG, robot.obs, robot.act, transport="tcp") as server:
        server.start(threaded=True)
        assert server.port > 0
        assert server.address == f"tcp://127.0.0.1:{server.port}"
        config = copy.deepcopy(CONFIG)
        config.port_number = server.port
        with ActionClient("localhost", config, transport="tcp", timeout_ms=20_000) as client:
            assert client.transport == "tcp"
            assert client.act("move") == {"status": "done"}


def test_keys(robot: Robot) -> None:
    ours, theirs = Keys.generate()
    with ActionServer(CONFIG, robot.obs, robot.act, host="tcp://127.0.0.1:0", keys=ours) as server:
        server.start(threaded=True)
        with ActionClient(server.address, CONFIG, timeout_ms=20_000, keys=theirs) as client:
            assert client.act("move") == {"status": "done"}
        for wrong in (None, Keys.generate()[1]):
            with pytest.raises(AuthenticationError):
                ActionClient(server.address, CONFIG, keys=wrong)


def test_listening_for_all_needs_keys_or_a_word(robot: Robot) -> None:
    with pytest.raises(EdgeMLError, match="insecure"):
        ActionServer(CONFIG, robot.obs, robot.act, host="0.0.0.0", transport="tcp")
    ActionServer(CONFIG, robot.obs, robot.act, host="0.0.0.0", transport="tcp", insecure=True).stop()


def test_one_server_for_shared_memory_and_tcp(robot: Robot) -> None:
    with ActionServer(CONFIG, robot.obs, robot.act) as server:
        server.start(threaded=True)
        config = copy.deepcopy(CONFIG)
        config.port_number = server.port
        with (
            ActionClient("localhost", config, timeout_ms=20_000) as near,
            ActionClient("localhost", config, timeout_ms=20_000, transport="tcp") as far,
        ):
            assert (near.transport, far.transport) == ("shm", "tcp")
            got: dict[str, Any] = {}
            near.register_obs_callback(lambda obs: got.update(near=obs))
            far.register_obs_callback(lambda obs: got.update(far=obs))
            server.publish_obs({"pose": 1})
            eventually(lambda: got == {"near": {"pose": 1}, "far": {"pose": 1}})
            assert near.act("move") == far.act("move") == {"status": "done"}


def test_stopping_is_idempotent(server: ActionServer, client: ActionClient) -> None:
    client.stop()
    client.close()
    server.stop()
    server.close()
    with pytest.raises(ConnectionRefused):
        ActionClient(server.address, CONFIG)
