"""The trainer service: uploads exactly once, networks newest first, requests; over every transport."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import gc
import threading
from collections.abc import Iterator
from typing import Any

import multiprocess
import numpy as np
import pytest

from edgeml_ipc import _inlets, _uploads
from edgeml_ipc.data.data_store import DataStoreBase, QueuedDataStore
from edgeml_ipc.errors import ConfigMismatch, ConnectionRefused, EdgeMLError, RateLimited, RemoteError, TimeoutError
from edgeml_ipc.trainer import TrainerClient, TrainerConfig, TrainerServer, TrainerTunnel
from tests.conftest import eventually
from tests.service_processes import upload

pytestmark = pytest.mark.usefixtures("no_threads_left")

CONFIG = TrainerConfig(port_number=0, request_types=["stats", "slow"])


def step(i: int) -> dict[str, Any]:
    return {"step": np.array([i]), "reward": float(i)}


def fill(queue: DataStoreBase, begin: int, end: int) -> None:
    for i in range(begin, end):
        queue.insert(step(i))


def steps_in(store: DataStoreBase) -> list[int]:
    return [int(item["step"][0]) for item in store.get_latest_data(-1)]


def serve(address: str, store: DataStoreBase, **options: Any) -> TrainerServer:
    server = TrainerServer(CONFIG, host=address, **options)
    server.register_data_store("actor", store)
    server.start(threaded=True)
    return server


def connect(server: TrainerServer, queue: DataStoreBase | None, **options: Any) -> TrainerClient:
    return TrainerClient("actor", server.address, CONFIG, queue, **{"timeout_ms": 20_000, **options})


@pytest.fixture
def store() -> QueuedDataStore:
    return QueuedDataStore(100_000)


@pytest.fixture
def queue() -> QueuedDataStore:
    return QueuedDataStore(100_000)


@pytest.fixture
def server(address: str, store: QueuedDataStore) -> Iterator[TrainerServer]:
    with serve(address, store) as server:
        yield server


@pytest.fixture
def client(server: TrainerServer, queue: QueuedDataStore) -> Iterator[TrainerClient]:
    with connect(server, queue) as client:
        yield client


# --- uploads ----------------------------------------------------------------------------------------------------------------


def test_update_sends_what_is_new(client: TrainerClient, queue: QueuedDataStore, store: QueuedDataStore) -> None:
    assert client.update().sent == 0
    fill(queue, 0, 2500)
    assert client.update().sent == 2500
    fill(queue, 2500, 2510)
    result = client.update()
    assert result
    assert (result.sent, result.evicted, result.lost) == (10, 0, 0)
    assert steps_in(store) == list(range(2510))


def test_items_keep_their_types(client: TrainerClient, queue: QueuedDataStore, store: QueuedDataStore) -> None:
    items = [
        {
            "a": np.full((2, 2), i, np.uint8),
            "r": i / 3,
            "n": i,
            "done": i == 1,
            "s": np.float32(i),
            "z": np.array(i),
            "in": {"x": i},
        }
        for i in range(3)
    ]
    queue.batch_insert(items)
    client.update()  # alike: columns; what follows travels as it is
    queue.batch_insert([{"text": "x", "none": None}, (1, 2), "bare"])
    client.update()
    arrived = store.get_latest_data(-1)
    assert len(arrived) == 6
    for item, other in zip(items, arrived[:3], strict=True):
        assert {key: type(value) for key, value in item.items()} == {key: type(value) for key, value in other.items()}
        np.testing.assert_equal(other, item)
    assert arrived[3:] == [{"text": "x", "none": None}, (1, 2), "bare"]


def test_what_a_full_queue_dropped_is_reported(client: TrainerClient, store: QueuedDataStore, server: TrainerServer) -> None:
    small = QueuedDataStore(100)
    with TrainerClient("small", server.address, CONFIG, data_stores={"actor": small}, timeout_ms=20_000) as other:
        fill(small, 0, 250)
        assert (other.update().evicted, len(store)) == (150, 100)
        fill(small, 250, 260)
        assert (other.update().evicted, len(store)) == (0, 110)
        assert other.stats()["stores"]["actor"] == {"sent": 110, "evicted": 150, "lost": 0, "waiting": 0, "direct": 0}
    assert server.stats()["stores"]["actor"]["evicted_by_clients"] == 150


def test_cursors_go_by_client_and_by_queue(server: TrainerServer, store: QueuedDataStore) -> None:
    for name in ("one", "two", "two"):  # the third is a restarted client with a new queue
        queue = QueuedDataStore(100)
        fill(queue, 0, 5)
        with TrainerClient(name, server.address, CONFIG, data_stores={"actor": queue}, timeout_ms=20_000) as client:
            assert client.update().sent == 5
    assert steps_in(store) == [0, 1, 2, 3, 4] * 3


def test_a_restarted_client_with_the_same_queue_goes_on(
    server: TrainerServer, queue: QueuedDataStore, store: QueuedDataStore
) -> None:
    fill(queue, 0, 10)
    with connect(server, queue) as client:
        assert client.update().sent == 10
    fill(queue, 10, 15)
    with connect(server, queue) as client:
        assert client.update().sent == 5
    assert steps_in(store) == list(range(15))


def test_several_stores(server: TrainerServer, store: QueuedDataStore) -> None:
    other = QueuedDataStore(100)
    server.register_data_store("other", other)
    assert server.store_names() == {"actor", "other"}
    assert server.data_store("other") is other
    first, second = QueuedDataStore(10), QueuedDataStore(10)
    first.insert("a")
    second.insert("b")
    with TrainerClient("actor", server.address, CONFIG, first, {"other": second}, timeout_ms=20_000) as client:
        assert client.update().sent == 2
    assert store.get_latest_data(-1) == ["a"]
    assert other.get_latest_data(-1) == ["b"]


def test_unknown_store(server: TrainerServer) -> None:
    with (
        TrainerClient("stranger", server.address, CONFIG, QueuedDataStore(1), timeout_ms=20_000) as client,
        pytest.raises(RemoteError, match="no data store 'stranger'"),
    ):
        client.update()
    with pytest.raises(KeyError, match="stranger"):
        server.data_store("stranger")


def test_what_is_no_store_cannot_be_registered(server: TrainerServer) -> None:
    with pytest.raises(TypeError, match="DataStoreBase"):
        server.register_data_store("x", [])  # type: ignore[arg-type]


def test_an_update_that_times_out_is_not_inserted_twice(address: str, store: QueuedDataStore, queue: QueuedDataStore) -> None:
    go_on = threading.Event()
    seen: list[int] = []

    def slow(name: str, payload: dict[str, Any]) -> None:
        seen.extend(int(item["step"][0]) for item in payload["data"])
        assert go_on.wait(20)

    with serve(address, store, data_callback=slow) as server, connect(server, queue, timeout_ms=200) as client:
        fill(queue, 0, 5)
        with pytest.raises(TimeoutError):
            client.update()
        go_on.set()
        fill(queue, 5, 8)
        client._client._timeout = 20.0
        assert client.update().sent == 8
        assert steps_in(store) == seen == list(range(8))


def test_links_cut_under_uploads_insert_each_item_once(address: str, store: QueuedDataStore, queue: QueuedDataStore) -> None:
    cuts = 0

    def cut(name: str, payload: dict[str, Any]) -> None:
        nonlocal cuts
        cuts += 1
        for session in server._server._sessions.values():
            session.connection.close()

    with serve(address, store, data_callback=cut) as server, connect(server, queue) as client:
        for begin in range(0, 3000, 300):
            fill(queue, begin, begin + 300)
            assert client.update().sent == 300
        assert cuts == 10
        assert steps_in(store) == list(range(3000))
        assert client.stats()["retries"] == 10


class FailingStore(QueuedDataStore):
    """Refuses the item with a certain step, once; `batch` chooses how it inserts."""

    def __init__(self, refuse: int) -> None:
        super().__init__(1000)
        self.refuse: int | None = refuse

    def insert(self, data: Any) -> None:
        if int(data["step"][0]) == self.refuse:
            self.refuse = None
            raise OSError("disk full")
        super().insert(data)

    def batch_insert(self, batch: Any) -> None:
        for data in batch:
            self.insert(data)


class FailingOneByOne(FailingStore):
    batch_insert = DataStoreBase.batch_insert


@pytest.mark.parametrize("kind", [FailingStore, FailingOneByOne])
def test_a_store_that_raises_within_a_batch_gets_each_item_once(
    address: str, kind: type[FailingStore], queue: QueuedDataStore
) -> None:
    store = kind(refuse=7)
    with serve(address, store) as server, connect(server, queue) as client:
        fill(queue, 0, 20)
        with pytest.raises(RemoteError, match="disk full"):
            client.update()
        assert steps_in(store) == list(range(7))
        client.update()
        assert steps_in(store) == list(range(20))
        assert server.stats()["stores"]["actor"]["inserted"] == 20


def test_a_server_with_a_new_store_gets_what_the_queue_holds_and_the_rest_is_lost(address: str) -> None:
    queue = QueuedDataStore(100)
    with serve(address, QueuedDataStore(1000)) as first:
        place = first.address
        client = connect(first, queue)
        fill(queue, 0, 120)
        assert client.update().evicted == 20  # 20..119 are delivered
    fill(queue, 120, 180)  # 80..179 are held; 20..79 were delivered to the first only
    with pytest.raises(EdgeMLError):
        client.update()
    store = QueuedDataStore(1000)
    with serve(place, store):
        result = client.update()
        assert (result.sent, result.evicted, result.lost) == (100, 0, 60)
        assert steps_in(store) == list(range(80, 180))
        assert client.update().sent == 0
        client.stop()


def test_a_new_server_with_the_same_store_goes_on(address: str, store: QueuedDataStore, queue: QueuedDataStore) -> None:
    fill(queue, 0, 10)
    with serve(address, store) as first:
        place = first.address
        client = connect(first, queue)
        assert client.update().sent == 10
    fill(queue, 10, 15)
    with serve(place, store):
        with contextlib.suppress(EdgeMLError):  # it may find the link dead only after it sent
            client.update()
        client.update()
        assert steps_in(store) == list(range(15))
        assert client.stats()["stores"]["actor"] == {"sent": 15, "evicted": 0, "lost": 0, "waiting": 0, "direct": 0}
        client.stop()


def test_a_server_replaced_within_an_update_is_noticed(address: str) -> None:
    """A batch is never taken for the continuation of what another server was sent."""
    queue = QueuedDataStore(1000)
    fill(queue, 0, 10)
    first = serve(address, QueuedDataStore(1000))
    client = connect(first, queue)
    client.update()
    first.stop()
    store = QueuedDataStore(1000)
    with serve(first.address, store):
        fill(queue, 10, 12)
        with contextlib.suppress(EdgeMLError):
            client.update()
        client.update()
        assert steps_in(store) == list(range(12))
        client.stop()


def test_large_items_go_in_bounded_batches(client: TrainerClient, queue: QueuedDataStore, store: QueuedDataStore) -> None:
    for i in range(10):
        queue.insert({"image": np.full(_uploads.BATCH_BYTES * 3 // 8, i, np.uint8)})
    assert client.update().sent == 10
    assert client.stats()["calls"] == 1 + 5  # sync, then two images each time
    assert [int(item["image"][0]) for item in store.get_latest_data(-1)] == list(range(10))


def test_data_callback_gets_new_items(address: str, store: QueuedDataStore, queue: QueuedDataStore) -> None:
    got: list[tuple[str, int]] = []
    with (
        serve(address, store, data_callback=lambda name, payload: got.append((name, len(payload["data"])))) as server,
        connect(server, queue) as client,
    ):
        fill(queue, 0, 3)
        client.update()
    assert got == [("actor", 3)]


def test_async_update_retries_and_flushes(address: str, queue: QueuedDataStore) -> None:
    store = FailingOneByOne(refuse=2)
    with serve(address, store) as server:
        client = connect(server, queue)
        client.start_async_update(interval=0.02)
        fill(queue, 0, 5)
        eventually(lambda: steps_in(store) == list(range(5)))
        assert client.stats()["update_errors"] == 1
        client.start_async_update(interval=1000)
        client.stop()
    with serve(address, QueuedDataStore(10)) as server:
        final = connect(server, queue)
        final.start_async_update(interval=1000)
        fill(queue, 5, 7)
        final.stop()
        final.stop()
        assert len(server.data_store("actor")) == 7


def test_async_update_needs_a_positive_interval(client: TrainerClient) -> None:
    with pytest.raises(ValueError, match="interval"):
        client.start_async_update(interval=0)


def test_uploads_of_processes(process_address: str, store: QueuedDataStore) -> None:
    spawn = multiprocess.get_context("spawn")
    with TrainerServer(TrainerConfig(port_number=0), host=process_address) as server:
        server.register_data_store("steps", store)
        server.start(threaded=True)
        pipes, processes = [], []
        for number in range(2):
            ours, theirs = spawn.Pipe()
            process = spawn.Process(target=upload, args=(server.address, f"actor{number}", number * 3000, 3000, theirs))
            process.start()
            pipes.append(ours)
            processes.append(process)
        for pipe, process in zip(pipes, processes, strict=True):
            assert pipe.poll(60)
            assert pipe.recv() == (3000, 0, 0)
            process.join(20)
    assert sorted(steps_in(store)) == list(range(6000))


# --- networks and requests --------------------------------------------------------------------------------------------------


def test_networks_with_their_versions(server: TrainerServer, client: TrainerClient) -> None:
    got: list[Any] = []
    client.recv_network_callback(got.append)
    assert client.policy_version == 0
    assert server.publish_network({"w": np.full(200_000, 1.0)}) == 1
    eventually(lambda: client.policy_version == 1)
    assert server.publish_network({"w": np.full(200_000, 2.0)}) == server.policy_version == 2
    eventually(lambda: client.policy_version == 2 and client.policy_lag == 0 and len(got) == 2)
    assert got[-1]["w"][-1] == 2.0
    eventually(lambda: list(server.stats()["lag"].values()) == [0])


def test_request(address: str, store: QueuedDataStore) -> None:
    def answer(kind: str, payload: Any) -> dict[str, Any]:
        return {"kind": kind, "payload": payload}

    with serve(address, store, request_callback=answer) as server, connect(server, None) as client:
        assert client.request("stats", {"x": 1}) == {"kind": "stats", "payload": {"x": 1}}
        assert client.request("slow") == {"kind": "slow", "payload": {}}
        with pytest.raises(RemoteError, match="request type 'other'"):
            client.request("other", {})
        assert client.update().sent == 0


def test_request_without_a_callback(client: TrainerClient) -> None:
    with pytest.raises(RemoteError, match="no request_callback"):
        client.request("stats")


def test_rate_limit(address: str) -> None:
    config = TrainerConfig(port_number=0, request_types=["x"], rate_limit=0.5)
    with TrainerServer(config, request_callback=lambda kind, payload: {}, host=address) as server:
        server.start(threaded=True)
        with TrainerClient("actor", server.address, config, timeout_ms=20_000) as client:
            client.request("x")
            with pytest.raises(RateLimited):
                client.request("x")


def test_wrong_config(server: TrainerServer) -> None:
    before = copy.deepcopy(CONFIG)
    with pytest.raises(ConfigMismatch, match="request_types") as caught:
        TrainerClient("actor", server.address, TrainerConfig(port_number=1, request_types=["stats"]))
    assert caught.value.differences == {"request_types": ("['stats']", "['stats', 'slow']")}
    assert before == CONFIG


def test_one_name_for_two_stores() -> None:
    with pytest.raises(ValueError, match="'actor'"):
        TrainerClient("actor", "inproc://x", CONFIG, QueuedDataStore(1), {"actor": QueuedDataStore(1)})


# --- what is lost on the way to a result, and users' stores that misbehave ----------------------------------------------------


class GatedStore(QueuedDataStore):
    """Inserts when the test opens it."""

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self.open = threading.Event()

    def batch_insert(self, batch: Any) -> None:
        assert self.open.wait(20)
        super().batch_insert(batch)


def test_an_update_takes_no_longer_than_its_own_deadline(address: str, queue: QueuedDataStore) -> None:
    store = GatedStore(100)
    with serve(address, store) as server, connect(server, queue) as client:
        fill(queue, 0, 10)
        with pytest.raises(TimeoutError):
            client.update(timeout=0.1)
        store.open.set()
        assert client.update().sent == 10


def test_what_a_failed_update_did_is_in_the_next_result(address: str) -> None:
    store, queue, second = GatedStore(100), QueuedDataStore(10), QueuedDataStore(10)
    with serve(address, store) as server:
        server.register_data_store("second", QueuedDataStore(10))
        stores = {"second": second, "actor": queue}
        with TrainerClient("actor", server.address, CONFIG, data_stores=stores, timeout_ms=20_000) as client:
            fill(second, 0, 3)
            fill(queue, 0, 25)
            with pytest.raises(TimeoutError):
                client.update(timeout=0.3)
            store.open.set()
            assert client.update() == _uploads.UpdateResult(sent=13, evicted=15)
            assert client.update() == _uploads.UpdateResult()


def test_data_callback_gets_what_was_inserted_before_a_store_raised(address: str, queue: QueuedDataStore) -> None:
    announced: list[int] = []
    server = serve(
        address, FailingStore(refuse=7), data_callback=lambda _, p: announced.extend(int(d["step"][0]) for d in p["data"])
    )
    with server, connect(server, queue) as client:
        fill(queue, 0, 20)
        with pytest.raises(RemoteError, match="disk full"):
            client.update()
        client.update()
        assert announced == list(range(20))


def test_async_update_goes_on_after_a_store_that_raises(server: TrainerServer, store: QueuedDataStore) -> None:
    class Moody(QueuedDataStore):
        moods = iter([KeyError("not now")])

        def latest_data_id(self) -> int:
            for error in self.moods:
                raise error
            return super().latest_data_id()

    queue = Moody(10)
    fill(queue, 0, 5)
    with connect(server, queue) as client:
        client.start_async_update(interval=0.01)
        eventually(lambda: steps_in(store) == list(range(5)))
        assert client.stats()["update_errors"] == 1


@dataclasses.dataclass
class ComparableStore(DataStoreBase):
    """A user's store that has no hash, and equals another of the same content."""

    capacity: int = 1000
    items: list[Any] = dataclasses.field(default_factory=list)

    def insert(self, data: Any) -> None:
        self.items.append(data)

    def latest_data_id(self) -> int:
        return len(self.items) - 1

    def get_latest_data(self, from_id: int) -> list[Any]:
        return self.items[from_id + 1 :]

    def __len__(self) -> int:
        return len(self.items)


def test_stores_are_told_apart_by_identity(server: TrainerServer, queue: QueuedDataStore) -> None:
    stores = {"a": ComparableStore(), "b": ComparableStore()}
    for name, store in stores.items():
        server.register_data_store(name, store)
    fill(queue, 0, 5)
    with TrainerClient("actor", server.address, CONFIG, data_stores=dict.fromkeys(stores, queue), timeout_ms=20_000) as client:
        assert client.update().sent == 10
    assert [steps_in(store) for store in stores.values()] == [list(range(5))] * 2


def test_cursors_end_with_their_store() -> None:
    store = QueuedDataStore(1)
    key = id(store)
    assert _inlets.cursors_of(store) is _inlets.cursors_of(store)
    assert key in _inlets._cursors
    del store
    gc.collect()
    assert key not in _inlets._cursors


def test_a_forgotten_cursor_repeats_nothing_that_was_acknowledged(
    server: TrainerServer, store: QueuedDataStore, client: TrainerClient, queue: QueuedDataStore
) -> None:
    fill(queue, 0, 5)
    client.update()
    _inlets.cursors_of(store)._next.clear()
    client._uploaders["actor"]._learner_store = None  # as after a failed update
    fill(queue, 5, 8)
    assert client.update() == _uploads.UpdateResult(sent=3)
    assert steps_in(store) == list(range(8))


# --- the tunnel -------------------------------------------------------------------------------------------------------------


def test_tunnel(store: QueuedDataStore, queue: QueuedDataStore) -> None:
    got: list[Any] = []
    config = TrainerConfig(request_types=["add"])
    with TrainerTunnel(config, request_callback=lambda kind, x: {"sum": sum(x)}, data_store=queue) as tunnel:
        tunnel.start()
        tunnel.register_data_store(tunnel.name, store)
        tunnel.recv_network_callback(got.append)
        fill(queue, 0, 10)
        assert tunnel.update().sent == 10
        assert tunnel.request("add", [1, 2]) == {"sum": 3}
        tunnel.publish_network({"w": 1})
        eventually(lambda: got == [{"w": 1}] and tunnel.policy_version == 1)
        assert tunnel.store_names() == {"tunnel"}
        assert steps_in(tunnel.data_store("tunnel")) == list(range(10))
    tunnel.close()
    with pytest.raises(ConnectionRefused):
        TrainerClient("x", tunnel.server.address, config)


# --- inlets -------------------------------------------------------------------------------------------------------------------


def test_a_batch_that_comes_again_or_overlaps_inserts_what_is_new() -> None:
    store = QueuedDataStore(100)
    inlet = _inlets.Inlet(store)
    request: dict[str, Any] = {"store": "s", "client": "c", "incarnation": b"i", "evicted": 0}
    request["learner_store"] = inlet.sync(request)["learner_store"]
    answers = [
        inlet.take({**request, "first_id": first, "items": list(range(first, end))})
        for first, end in [(5, 10), (5, 10), (7, 12), (6, 8), (15, 16)]
    ]
    assert [answer["next_id"] for answer, _ in answers] == [10, 10, 12, 12, 16]
    assert [new for _, new in answers] == [[5, 6, 7, 8, 9], [], [10, 11], [], [15]]
    assert store.get_latest_data(-1) == [5, 6, 7, 8, 9, 10, 11, 15]
    assert inlet.stats()["repeated"] == 5 + 3 + 2


def test_cursors_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_inlets, "MAX_CURSORS", 3)
    cursors = _inlets.Cursors()
    for i in range(5):
        cursors.move("actor", bytes([i]), i)
        cursors.next_id("actor", bytes([0]))
    assert [cursors.next_id("actor", bytes([i])) for i in range(5)] == [0, None, None, 3, 4]


@pytest.mark.parametrize("items", [None, "text", {"a": 1}, (1, 2), np.zeros(3)], ids=lambda items: type(items).__name__)
def test_a_batch_that_is_no_list_is_refused(items: Any) -> None:
    inlet = _inlets.Inlet(QueuedDataStore(100))
    request: dict[str, Any] = {"store": "s", "client": "c", "incarnation": b"i", "evicted": 0, "first_id": 0, "items": items}
    with pytest.raises(TypeError, match="is a list, not"):
        inlet.take({**request, "learner_store": inlet.sync(request)["learner_store"]})
    assert inlet.inserted == 0
