"""The services as edgeml's and agentlace's own tests use them, and the manners: None, False, a dict that says no."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from flax.core import freeze

import edgeml_ipc
from edgeml_ipc.compat import (
    ActionClient,
    ActionConfig,
    ActionServer,
    DataStoreBase,
    InferenceClient,
    InferenceServer,
    QueuedDataStore,
    TrainerClient,
    TrainerConfig,
    TrainerServer,
    TrainerTunnel,
)
from edgeml_ipc.compat.trainer import TrainerSMInterface
from edgeml_ipc.errors import AuthenticationError, CodecError, ConfigMismatch, ConnectionRefused
from tests.conftest import eventually

pytestmark = pytest.mark.usefixtures("no_threads_left")

IMAGE = np.arange(256 * 256 * 3, dtype=np.uint8).reshape(256, 256, 3)
ACTION = ActionConfig(port_number=0, action_keys=["send_image"], observation_keys=["test_image"], broadcast_port=5589)
TRAINER = TrainerConfig(port_number=0, broadcast_port=5556, request_types=["get-stats"])


def nobody() -> int:
    """Return a port that nobody listens on."""
    with InferenceServer(0) as server:
        return server.port


# --- action -----------------------------------------------------------------------------------------------------------------


def observe(keys: set[str]) -> dict[str, Any]:
    if "test_image" in keys:
        return {"status": "success", "test_image": IMAGE}
    return {"status": "error", "message": "another key"}


def act(key: str, payload: dict[str, Any]) -> dict[str, Any]:
    payload["image"] += 1  # what edgeml's callbacks may do
    return {"status": "success", "sum": int(payload["image"].sum())}


@pytest.fixture
def robot() -> Iterator[ActionServer]:
    with ActionServer(ACTION, observe, act) as server:
        server.start(threaded=True)
        yield server


def test_action(robot: ActionServer) -> None:
    config = replace(ACTION, port_number=robot.port)
    client = ActionClient("127.0.0.1", config, timeout_ms=20_000)
    received: list[Any] = []
    client.register_obs_callback(received.append)
    observation = client.obs()
    assert observation is not None
    assert observation["test_image"].shape == (256, 256, 3)
    observation["test_image"][:] = 0  # a copy of our own
    assert client.act("send_image", {"image": np.zeros((3, 3))}) == {"status": "success", "sum": 9}
    assert robot.publish_obs({"test-broadcast": 1}) is True
    eventually(lambda: received == [{"test-broadcast": 1}])
    assert config.action_keys == ["send_image"]  # edgeml's client changed it, so that it served one client only
    with ActionClient("127.0.0.1", config, timeout_ms=20_000) as another:
        assert another.obs({"test_image"}) is not None
    robot.stop()
    assert client.obs() is None
    client.stop()


def test_action_keys_that_are_not_in_the_config(robot: ActionServer) -> None:
    with ActionClient("127.0.0.1", replace(ACTION, port_number=robot.port), timeout_ms=20_000) as client:
        with pytest.raises(AssertionError, match="nothing"):
            client.obs({"nothing"})
        with pytest.raises(Exception, match="nothing"):
            client.act("nothing")


def test_action_without_callbacks_or_broadcasts() -> None:
    config = replace(ACTION, broadcast_port=None)
    with ActionServer(config, None, None) as server:
        server.start(threaded=True)
        with ActionClient("127.0.0.1", replace(config, port_number=server.port), timeout_ms=20_000) as client:
            assert client.obs() == {"success": False, "message": "Invalid payload"}
            assert client.act("send_image") == {"success": False, "message": "Invalid payload"}
            assert server.publish_obs({"x": 1}) is False
            with pytest.raises(Exception, match="broadcast_port"):
                client.register_obs_callback(print)


# --- inference --------------------------------------------------------------------------------------------------------------


def greet(payload: dict[str, Any]) -> dict[str, Any]:
    name = payload.get("name")
    return {"status": "ok", "message": f"Hello, {name}!"} if name else {"status": "error", "message": "Name not provided"}


def fail(payload: Any) -> Any:
    raise OSError("broken")


def test_inference() -> None:
    server = InferenceServer(0)
    server.register_interface("echo", lambda payload: {"status": "ok", "message": payload})
    server.register_interface("greet", greet)
    server.register_interface("fail", fail)
    assert set(server.interfaces) == {"echo", "greet", "fail"}
    server.start(threaded=True)
    client = InferenceClient("localhost", server.port, timeout_ms=20_000)
    assert client.interfaces() == {"echo", "greet", "fail"}
    response = client.call("echo", {"message": "test", "array": np.zeros(3)})
    assert response["message"]["message"] == "test"
    response["message"]["array"] += 1
    assert client.call("greet", {"name": "John"})["message"] == "Hello, John!"
    assert client.call("greet", {}) == {"status": "error", "message": "Name not provided"}
    assert not client.call("unknown", {})["success"]
    assert client.call("fail", {}) is None
    with pytest.raises(CodecError):
        client.call("echo", {"what": object()})
    server.stop()
    assert client.call("greet", {"name": "John"}) is None
    assert client.interfaces() == set()
    client.stop()


def test_an_inference_client_may_come_before_its_server(caplog: pytest.LogCaptureFixture) -> None:
    port = nobody()
    with InferenceClient("localhost", port) as client:
        assert client.call("echo", {}) is None
        assert "nothing listens there" in caplog.text
        with InferenceServer(port) as server:
            server.register_interface("echo", lambda payload: payload)
            server.start(threaded=True)
            assert client.call("echo", {"x": 1}) == {"x": 1}


# --- trainer ----------------------------------------------------------------------------------------------------------------


def test_trainer() -> None:
    seen: list[tuple[str, int]] = []

    def new_data(name: str, payload: dict[str, Any]) -> dict[str, Any]:
        seen.append((name, len(payload["data"])))
        return {}

    def answer(kind: str, payload: Any) -> dict[str, Any]:
        assert kind == "get-stats"
        return {"trainer-status": "it works"}

    server = TrainerServer(TRAINER, new_data, answer)
    learner1, learner2 = QueuedDataStore(6), QueuedDataStore(6)
    server.register_data_store("table1", learner1)
    server.register_data_store("table2", learner2)
    server.start(threaded=True)
    assert "table1" in server.store_names()
    assert server.data_stores == {"table1": learner1, "table2": learner2}
    assert server.data_store("table3") is None

    actor1, actor2 = QueuedDataStore(3), QueuedDataStore(3)
    config = replace(TRAINER, port_number=server.port)
    stores = {"table1": actor1, "table2": actor2}
    client = TrainerClient("table1", "127.0.0.1", config, data_stores=stores, timeout_ms=20_000)
    received: list[Any] = []
    client.recv_network_callback(received.append)
    actor1.insert(np.array([1, 2, 3]))
    actor1.insert(np.array([4, 5, 6]))
    assert client.update() is True
    assert (len(actor1), len(learner1)) == (2, 2)
    actor1.insert(np.array([7, 8, 9]))
    actor2.insert(np.array([30, 31, 32]))
    actor2.insert(np.array([30, 31, 32]))
    assert (len(learner1), len(learner2)) == (2, 0)
    assert client.update() is True
    assert (len(learner1), len(learner2)) == (3, 2)
    learner1.get_latest_data(-1)[0][:] = 0  # a copy of the store's own
    actor1.insert(np.array([10, 11, 12]))
    assert client.get_server_last_update_id("table1") == 2
    assert client.update_datastore("table1", 2, confirm_update=True) is True
    assert client.get_server_last_update_id("table1") == actor1.latest_data_id() == 3
    assert client.update_datastore("table3", 0) is False
    assert (len(learner1), len(learner2)) == (4, 2)
    assert seen == [("table1", 2), ("table1", 1), ("table2", 2), ("table1", 1)]

    assert client.request("get-stats", {}) == {"trainer-status": "it works"}
    assert client.request("invalid", {}) is None
    client.start_async_update(interval=0.05)
    actor1.insert(np.array([13, 14, 15]))
    eventually(lambda: learner1.latest_data_id() == actor1.latest_data_id() == 4)
    network = freeze({"params": {"kernel": np.arange(4.0)}})
    server.publish_network(network)
    eventually(lambda: received)
    assert type(received[-1]) is type(network)
    np.testing.assert_array_equal(received[-1]["params"]["kernel"], np.arange(4.0))
    received[-1]["params"]["kernel"][:] = 0

    client.req_rep_client.timeout_ms = 50
    client.req_rep_client.reset_socket()
    assert client.req_rep_client.timeout_ms == 50
    server.stop()
    actor1.insert(np.array([1, 1, 1]))
    assert client.update() is False
    assert client.request("get-stats", {}) is None
    assert client.get_server_last_update_id("table1") is None
    client.stop()


def test_one_data_store_has_the_clients_name() -> None:
    with TrainerServer(TRAINER) as server:
        learner = QueuedDataStore(100)
        server.register_data_store("actor", learner)
        server.start(threaded=True)
        queue = QueuedDataStore(10)
        queue.insert("before the client")
        config = replace(TRAINER, port_number=server.port)
        with TrainerClient("actor", "localhost", config, queue, timeout_ms=20_000) as client:
            assert learner.get_latest_data(-1) == ["before the client"]  # the constructor updates
            assert client.request("get-stats", {}) == {}  # there is no request_callback
            assert client.data_store is queue
            assert client.client_name == "actor"
        with TrainerClient("stranger", "localhost", config, queue, timeout_ms=20_000) as client:
            assert client.update() is False  # the server has no such store
        with TrainerClient("none", "localhost", config, timeout_ms=20_000) as client:
            assert client.update() is False
            assert client.get_server_last_update_id("actor") == -1


def test_the_rate_limit_gives_none() -> None:
    config = TrainerConfig(port_number=0, request_types=["get-stats"], rate_limit=1)
    with TrainerServer(config, request_callback=lambda kind, payload: {"ok": True}) as server:
        server.start(threaded=True)
        with TrainerClient("a", "localhost", replace(config, port_number=server.port), timeout_ms=20_000) as client:
            assert [client.request("get-stats", {}) for _ in range(2)] == [{"ok": True}, None]


def test_a_slow_callback_gives_none() -> None:
    go_on = threading.Event()

    def slow(kind: str, payload: Any) -> dict[str, Any]:
        assert go_on.wait(20)
        return {}

    with TrainerServer(TRAINER, request_callback=slow) as server:
        server.start(threaded=True)
        with TrainerClient("a", "localhost", replace(TRAINER, port_number=server.port), timeout_ms=50) as client:
            assert client.request("get-stats", {}) is None
            go_on.set()


def test_what_a_client_does_without_a_server() -> None:
    port = nobody()
    with pytest.raises(ConnectionRefused, match="nothing listens"):
        TrainerClient("a", "localhost", TrainerConfig(port_number=port))
    with pytest.raises(ConnectionRefused, match="nothing listens"):
        ActionClient("localhost", replace(ACTION, port_number=port))
    clients: list[Any] = []

    def wait() -> None:
        clients.append(TrainerClient("a", "localhost", TrainerConfig(port_number=port), wait_for_server=True))
        clients.append(ActionClient("localhost", replace(ACTION, port_number=action.port), wait_for_server=True))

    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    with TrainerServer(TrainerConfig(port_number=port)) as server, ActionServer(ACTION, None, None) as action:
        server.start(threaded=True)
        action.start(threaded=True)
        waiting.join(30)
        assert len(clients) == 2
        for client in clients:
            client.stop()


def test_waiting_goes_on_past_a_look(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("edgeml_ipc.compat._manners._LOOK_SECONDS", 0.05)
    port = nobody()
    clients: list[Any] = []
    config = TrainerConfig(port_number=port)

    def wait() -> None:
        clients.append(TrainerClient("a", "localhost", config, wait_for_server=True))

    waiting = threading.Thread(target=wait, daemon=True)
    with caplog.at_level(logging.WARNING, "edgeml_ipc"):
        waiting.start()
        eventually(lambda: caplog.text.count("waiting for the server") >= 2)
    with TrainerServer(config) as server:
        server.start(threaded=True)
        waiting.join(30)
        clients[0].stop()


def test_another_config_is_refused() -> None:
    with TrainerServer(TRAINER) as server:
        server.start(threaded=True)
        with pytest.raises(ConfigMismatch, match="version"):
            TrainerClient("a", "localhost", replace(TRAINER, port_number=server.port, version="9"))


def test_a_program_of_edgemls_talks_to_one_of_ours() -> None:
    ours = edgeml_ipc.TrainerConfig(port_number=0, request_types=["get-stats"])
    with edgeml_ipc.TrainerServer(ours, request_callback=lambda kind, payload: {"ours": True}) as server:
        server.start(threaded=True)
        config = replace(TRAINER, port_number=server.port, experimental_pipeline_port=5547)
        with TrainerClient("a", "localhost", config, timeout_ms=20_000) as client:
            assert client.request("get-stats", {}) == {"ours": True}


def test_listening_beyond_loopback_has_to_be_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    for make in (
        lambda **options: TrainerServer(TRAINER, **options),
        lambda **options: ActionServer(ACTION, None, None, **options),
        lambda **options: InferenceServer(0, **options),
    ):
        with pytest.raises(AuthenticationError, match="insecure=True"):
            make(host="0.0.0.0")
        make(host="0.0.0.0", insecure=True).stop()
        with make() as server:
            assert "127.0.0.1" in server.address
    assert InferenceClient("127.0.0.2", nobody()).call("x", {}) is None
    assert "0.0.0.0" not in caplog.text
    with pytest.raises((ConnectionRefused, TimeoutError), match=r"host='0\.0\.0\.0'.*insecure=True"):
        TrainerClient("a", "192.0.2.1", TrainerConfig(port_number=nobody()), timeout_ms=100)  # an address of nobody's


@pytest.mark.parametrize("kind", [TrainerTunnel, TrainerSMInterface])
def test_the_tunnel(kind: type[TrainerTunnel]) -> None:
    tunnel = kind()
    received: list[Any] = []
    assert tunnel.request("stats", {"x": 1}) is None
    tunnel.publish_network("before anybody listens")
    tunnel.recv_network_callback(received.append)
    tunnel.register_request_callback(lambda kind, payload: {kind: payload})
    tunnel.start(threaded=True)
    tunnel.start_async_update(interval=1)
    tunnel.update()
    tunnel.publish_network({"w": 1})
    assert received == [{"w": 1}]
    assert tunnel.request("stats", {"x": 1}) == {"stats": {"x": 1}}
    tunnel.stop()


# --- stores -----------------------------------------------------------------------------------------------------------------


def test_queued_data_store() -> None:
    store = QueuedDataStore(6)
    assert len(store) == 0
    store.insert(1)
    store.insert(2)
    second = store.latest_data_id()
    assert store.get_latest_data(second) == []
    store.insert(3)
    assert len(store.get_latest_data(second)) == 1
    store.batch_insert([4, 5, 6])
    assert len(store) == 6
    sixth = store.latest_data_id()
    store.batch_insert([7, 8, 9])
    assert len(store) == 6
    assert store.get_latest_data(second) == [4, 5, 6, 7, 8, 9]
    assert store.get_latest_data(sixth) == [7, 8, 9]
    store.batch_insert(range(10, 18))
    assert store._data_queue[-1] == 17
    assert list(store._seq_id_queue) == list(range(11, 17))
    assert store.latest_seq_id == 16


class InsertOnly(DataStoreBase):
    """All that a learner's store needs."""

    def __init__(self) -> None:
        DataStoreBase.__init__(self, 10)
        self.items: list[Any] = []

    def insert(self, data: Any) -> None:
        self.items.append(data)


def test_a_learners_store_needs_insert_alone() -> None:
    store = InsertOnly()
    store.batch_insert(["a", "b"])
    for call in (store.latest_data_id, lambda: store.get_latest_data(0), lambda: len(store)):
        with pytest.raises(NotImplementedError, match="InsertOnly does not define"):
            call()
    with TrainerServer(TRAINER) as server:
        server.register_data_store("actor", store)
        server.start(threaded=True)
        queue = QueuedDataStore(10)
        queue.batch_insert(["c", "d"])
        with TrainerClient("actor", "localhost", replace(TRAINER, port_number=server.port), queue, timeout_ms=20_000) as client:
            assert client.update() is True
    assert store.items == ["a", "b", "c", "d"]
