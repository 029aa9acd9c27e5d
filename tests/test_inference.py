"""The inference service, batched interfaces included, over every transport."""

from __future__ import annotations

import threading
from collections import namedtuple
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from edgeml_ipc import _batching
from edgeml_ipc.errors import RemoteError
from edgeml_ipc.inference import InferenceClient, InferenceServer
from tests.conftest import eventually

pytestmark = pytest.mark.usefixtures("no_threads_left")

Pair = namedtuple("Pair", "left right")


@pytest.fixture
def server(address: str) -> Iterator[InferenceServer]:
    with InferenceServer(0, host=address) as server:
        server.register_interface("double", lambda payload: {"y": payload["x"] * 2})
        server.start(threaded=True)
        yield server


@pytest.fixture
def client(server: InferenceServer) -> Iterator[InferenceClient]:
    with InferenceClient(server.address, 0, timeout_ms=20_000) as client:
        yield client


def test_call(client: InferenceClient) -> None:
    np.testing.assert_array_equal(client.call("double", {"x": np.arange(3)})["y"], [0, 2, 4])


def test_call_async(client: InferenceClient) -> None:
    futures = [client.call_async("double", {"x": i}) for i in range(50)]
    assert [future.result(20)["y"] for future in futures] == [2 * i for i in range(50)]


def test_interfaces(server: InferenceServer, client: InferenceClient) -> None:
    server.register_interface("stacked", lambda x: x, max_batch_size=4)
    assert client.interfaces() == {"double", "stacked"}


def test_unknown_interface(client: InferenceClient) -> None:
    with pytest.raises(RemoteError, match="no interface 'halve'"):
        client.call("halve", 1)


def test_requests_of_many_clients_reach_the_function_as_one_batch(server: InferenceServer) -> None:
    shapes: list[tuple[int, ...]] = []

    def policy(observations: dict[str, Any]) -> dict[str, Any]:
        shapes.append(observations["image"].shape)
        return {"action": observations["image"].sum(axis=(1, 2)) + observations["bias"], "index": list(range(4))}

    server.register_interface("policy", policy, max_batch_size=4, max_wait_ms=20_000)
    clients = [InferenceClient(server.address, 0, timeout_ms=20_000) for _ in range(4)]
    try:
        with ThreadPoolExecutor(4) as pool:
            results = list(pool.map(lambda i: clients[i].call("policy", {"image": np.full((2, 2), i), "bias": i}), range(4)))
    finally:
        for client in clients:
            client.stop()
    assert shapes == [(4, 2, 2)]
    assert [int(result["action"]) for result in results] == [5 * i for i in range(4)]
    assert sorted(result["index"] for result in results) == [0, 1, 2, 3]
    assert server.stats()["batches"]["policy"] == (1, 4)


def test_a_batch_that_is_not_full_goes_when_its_time_has_come(server: InferenceServer, client: InferenceClient) -> None:
    server.register_interface("wait", lambda x: x, max_batch_size=100, max_wait_ms=10)
    futures = [client.call_async("wait", np.full(3, i)) for i in range(5)]
    for i, future in enumerate(futures):
        np.testing.assert_array_equal(future.result(20), np.full(3, i))


def test_other_shapes_and_structures_form_batches_of_their_own(server: InferenceServer, client: InferenceClient) -> None:
    batches: list[Any] = []
    lock = threading.Lock()

    def keep(x: Any) -> Any:
        with lock:
            batches.append(x)
        return x

    server.register_interface("keep", keep, max_batch_size=2, max_wait_ms=20_000)
    payloads = [np.zeros(2), np.zeros(3), {"a": 1}, np.zeros(2, np.float32)]
    futures = [client.call_async("keep", payload) for payload in payloads * 2]
    for future in futures:
        future.result(20)
    assert len(batches) == 4
    assert sorted(np.shape(batch) for batch in batches if not isinstance(batch, dict)) == [(2, 2), (2, 2), (2, 3)]


def test_a_batch_that_raises_fails_each_of_its_callers(server: InferenceServer, client: InferenceClient) -> None:
    def explode(x: Any) -> Any:
        raise RuntimeError("boom")

    server.register_interface("explode", explode, max_batch_size=3, max_wait_ms=20_000)
    for future in [client.call_async("explode", i) for i in range(3)]:
        with pytest.raises(RemoteError, match="boom"):
            future.result(20)
    assert client.call("double", {"x": 1}) == {"y": 2}


def test_a_result_of_the_wrong_leading_size_is_an_error(server: InferenceServer, client: InferenceClient) -> None:
    server.register_interface("short", lambda x: x[:1], max_batch_size=2, max_wait_ms=20_000)
    for future in [client.call_async("short", np.zeros(2)) for _ in range(2)]:
        with pytest.raises(RemoteError, match="leading size 2"):
            future.result(20)


def test_a_batched_interface_takes_no_strings(server: InferenceServer, client: InferenceClient) -> None:
    server.register_interface("stacked", lambda x: x, max_batch_size=4)
    with pytest.raises(RemoteError, match="arrays and numbers"):
        client.call("stacked", {"x": None})


@pytest.mark.parametrize(("size", "wait"), [(0, 1.0), (2, -1.0)])
def test_impossible_batches(size: int, wait: float) -> None:
    with (
        InferenceServer(0, host="inproc://impossible") as server,
        pytest.raises(ValueError, match="must be at least"),
    ):
        server.register_interface("x", lambda x: x, max_batch_size=size, max_wait_ms=wait)


def test_rows_undo_stack() -> None:
    trees = [{"a": Pair(np.full(2, i), (i, [float(i)])), "b": np.float32(i)} for i in range(3)]
    stacked = _batching.stack(trees)
    assert isinstance(stacked["a"], Pair)
    assert stacked["a"].left.shape == (3, 2)
    for i, row in enumerate(_batching.rows(stacked, 3)):
        assert isinstance(row["a"], Pair)
        np.testing.assert_array_equal(row["a"].left, trees[i]["a"].left)
        assert row["a"].right == (i, [float(i)])
        assert row["b"] == i


def test_interfaces_may_be_registered_from_a_batched_callback(server: InferenceServer, client: InferenceClient) -> None:
    def register(payload: Any) -> Any:
        server.register_interface("second", lambda x: x, max_batch_size=2)
        return payload

    server.register_interface("first", register, max_batch_size=8, max_wait_ms=0)
    assert client.call("first", np.ones(2)).tolist() == [1, 1]
    assert client.call("second", np.ones(2)).tolist() == [1, 1]


def test_requests_that_wait_for_a_replaced_interface_are_answered(server: InferenceServer, client: InferenceClient) -> None:
    def replace(_: object) -> None:
        server.register_interface("batched", lambda x: x)

    server.register_interface("batched", lambda x: x + 1, max_batch_size=8, max_wait_ms=60_000)
    server.register_interface("replace", replace)
    future = client.call_async("batched", np.ones(2))
    eventually(lambda: server.stats()["requests"])
    client.call("replace", None)
    assert future.result(20).tolist() == [2, 2]


def test_a_batch_that_exits_leaves_the_server_running(server: InferenceServer, client: InferenceClient) -> None:
    def leave(_: object) -> Any:
        raise SystemExit

    server.register_interface("leave", leave, max_batch_size=2, max_wait_ms=0)
    with pytest.raises(RemoteError):
        client.call("leave", np.ones(2))
    assert client.interfaces() == {"double", "leave"}
