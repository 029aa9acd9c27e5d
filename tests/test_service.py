"""The core that the services stand on, over every transport."""

from __future__ import annotations

import contextlib
import logging
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import multiprocess
import numpy as np
import pytest

from edgeml_ipc.errors import (
    AddressInUse,
    BufferFull,
    CodecError,
    ConfigMismatch,
    ConnectionClosed,
    ConnectionRefused,
    EdgeMLError,
    IncompatiblePeer,
    RateLimited,
    RemoteError,
    TimeoutError,
)
from edgeml_ipc.service import Client, Guest, Server, complete_address, set_log_level
from tests.conftest import eventually
from tests.service_processes import CONFIG, call_often

pytestmark = pytest.mark.usefixtures("no_threads_left")


class Gate:
    """A handler that waits until the test opens it."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.open = threading.Event()

    def __call__(self, payload: Any) -> Any:
        self.entered.set()
        assert self.open.wait(20)
        return payload


def fail(payload: Any) -> Any:
    raise ZeroDivisionError(f"no {payload}")


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def server(address: str, gate: Gate) -> Iterator[Server]:
    handlers = {"echo": lambda x: x, "fail": fail, "gate": gate, "bad": lambda _: np.array([object()])}
    with Server(address, service="test", config=CONFIG, handlers=handlers) as server:
        server.start(threaded=True)
        yield server
        gate.open.set()


def connect(server: Server, **options: Any) -> Client:
    return Client(server.address, service="test", config=CONFIG, **{"timeout": 20, **options})


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with connect(server) as client:
        yield client


# --- calls ------------------------------------------------------------------------------------------------------------------


def test_call(client: Client) -> None:
    payload = {"image": np.arange(300_000, dtype=np.uint8).reshape(100, 3000), "n": (1, None, "x")}
    result = client.call("echo", payload)
    np.testing.assert_array_equal(result["image"], payload["image"])
    assert result["n"] == (1, None, "x")
    assert client.stats()["calls"] == 1


@pytest.mark.parametrize("size", [10, 1_000_000])
def test_received_arrays_are_read_only_unless_copied(server: Server, client: Client, size: int) -> None:
    assert not client.call("echo", np.zeros(size)).flags.writeable
    with connect(server, copy=True) as copying:
        assert copying.call("echo", np.zeros(size)).flags.writeable
        assert copying.submit("echo", np.zeros(size)).result(20).flags.writeable


@pytest.mark.parametrize("copy", [False, True])
@pytest.mark.parametrize("size", [3, 1_000_000])
def test_handlers_get_read_only_views_or_copies(address: str, size: int, copy: bool) -> None:
    handlers = {"writable": lambda array: bool(array.flags.writeable)}
    with Server(address, service="test", config=CONFIG, handlers=handlers, copy=copy) as server:
        server.start(threaded=True)
        with connect(server) as client:
            assert client.call("writable", np.zeros(size)) is copy


def test_calls_of_many_threads(client: Client) -> None:
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda i: int(client.call("echo", np.full(50, i))[7]), range(200)))
    assert results == list(range(200))


def test_callback_that_raises_reaches_the_caller_and_the_server_goes_on(client: Client) -> None:
    with pytest.raises(RemoteError, match="no luck") as caught:
        client.call("fail", "luck")
    assert caught.value.remote_type == "ZeroDivisionError"
    assert "in fail" in caught.value.remote_traceback
    assert client.call("echo", 1) == 1


def test_object_array_in_a_request_is_refused_here(client: Client) -> None:
    with pytest.raises(CodecError):
        client.call("echo", np.array([object()]))
    assert client.call("echo", 1) == 1


def test_object_array_in_a_result_is_a_remote_error(client: Client) -> None:
    with pytest.raises(RemoteError) as caught:
        client.call("bad", None)
    assert caught.value.remote_type == "CodecError"
    assert client.call("echo", 1) == 1


def test_unknown_method(client: Client) -> None:
    with pytest.raises(ValueError, match="'echo'"):
        client.call("nothing", None)


def test_late_reply_is_not_taken_for_another(client: Client, gate: Gate) -> None:
    with pytest.raises(TimeoutError, match=r"'gate' within 0\.1 s"):
        client.call("gate", "late", timeout=0.1)
    gate.open.set()
    assert client.call("echo", "mine") == "mine"
    assert client.stats()["late_replies"] == 1
    assert client.stats()["timeouts"] == 1


def test_a_thread_waits_for_anothers_call_no_longer_than_its_own_deadline(client: Client, gate: Gate) -> None:
    other = threading.Thread(target=client.call, args=("gate", 1))
    other.start()
    assert gate.entered.wait(20)
    with pytest.raises(TimeoutError, match="other threads"):
        client.call("echo", 1, timeout=0.05)
    gate.open.set()
    other.join()


def test_version_and_counters_of_the_server(client: Client, server: Server) -> None:
    client.call("echo", 1)
    with pytest.raises(RemoteError):
        client.call("fail", 1)
    stats = server.stats()
    assert (stats["requests"], stats["replies"], stats["errors"], stats["sessions"]) == (2, 1, 1, 1)


# --- futures ----------------------------------------------------------------------------------------------------------------


def test_futures_complete_out_of_the_way(client: Client) -> None:
    futures = [client.submit("echo", np.full(10, i)) for i in range(100)]
    assert [int(future.result(20)[0]) for future in futures] == list(range(100))


def test_future_carries_the_error(client: Client) -> None:
    with pytest.raises(RemoteError, match="no luck"):
        client.submit("fail", "luck").result(20)


def test_future_times_out(client: Client, gate: Gate) -> None:
    future = client.submit("gate", 1, timeout=0.05)
    with pytest.raises(TimeoutError, match="'gate'"):
        future.result(20)
    gate.open.set()
    assert client.submit("echo", 2).result(20) == 2


def test_outstanding_futures_are_bounded(client: Client, gate: Gate) -> None:
    first = client.submit("gate", 0)
    assert gate.entered.wait(20)
    futures = [client.submit("echo", i) for i in range(255)]
    with pytest.raises(BufferFull, match="256"):
        client.submit("echo", 256)
    gate.open.set()
    assert [future.result(20) for future in [first, *futures]] == [0, *range(255)]


def test_closing_ends_futures_and_calls(server: Server, gate: Gate) -> None:
    client = connect(server)
    future = client.submit("gate", 1)
    assert gate.entered.wait(20)
    client.close()
    with pytest.raises(EdgeMLError):
        future.result(20)
    with pytest.raises(ConnectionClosed):
        client.call("echo", 1)
    with pytest.raises(ConnectionClosed):
        client.submit("echo", 1)
    client.close()


def test_closing_ends_a_call_of_another_thread(server: Server, gate: Gate) -> None:
    client = connect(server)
    caught: list[BaseException] = []

    def call() -> None:
        try:
            client.call("gate", 1)
        except EdgeMLError as error:
            caught.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    assert gate.entered.wait(20)
    client.close()
    thread.join(10)
    assert isinstance(caught[0], ConnectionClosed)


# --- publishing -------------------------------------------------------------------------------------------------------------


class Subscriber:
    """Keeps what it is called with, and can be held back."""

    def __init__(self) -> None:
        self.values: list[tuple[Any, int]] = []
        self.arrived = threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()

    def __call__(self, value: Any, version: int) -> None:
        self.values.append((value, version))
        self.arrived.set()
        assert self.go_on.wait(20)


def test_published_values_arrive_with_versions(server: Server, client: Client) -> None:
    subscriber = Subscriber()
    client.subscribe(subscriber)
    assert server.publish({"w": np.ones(10)}) == 1
    assert subscriber.arrived.wait(20)
    value, version = subscriber.values[0]
    np.testing.assert_array_equal(value["w"], np.ones(10))
    assert version == client.version == server.version == 1
    eventually(lambda: list(server.stats()["lag"].values()) == [0])


def test_late_joiner_gets_the_newest_at_once(server: Server, client: Client) -> None:
    for i in range(5):
        server.publish(i)
    subscriber = Subscriber()
    client.subscribe(subscriber)
    assert subscriber.arrived.wait(20)
    assert subscriber.values == [(4, 5)]


def test_slow_subscriber_skips_and_both_ends_see_its_lag(server: Server, client: Client) -> None:
    subscriber = Subscriber()
    subscriber.go_on.clear()
    client.subscribe(subscriber)
    server.publish(1)
    assert subscriber.arrived.wait(20)
    for i in range(2, 52):
        server.publish(i)
    client.call("echo", None)  # its reply tells the newest version
    assert client.lag == 50
    assert [lag >= 50 for lag in server.stats()["lag"].values()] == [True]
    subscriber.go_on.set()
    eventually(lambda: subscriber.values[-1] == (51, 51))
    versions = [version for _, version in subscriber.values]
    assert versions == sorted(set(versions))
    assert len(versions) < 51
    assert client.stats()["versions_skipped"] == 51 - len(versions)
    eventually(lambda: client.lag == 0 and list(server.stats()["lag"].values()) == [0])


def test_subscriber_that_raises_is_logged_and_called_again(
    server: Server, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    values: list[int] = []

    def callback(value: int, version: int) -> None:
        values.append(value)
        raise RuntimeError("a user's mistake")

    with caplog.at_level(logging.ERROR, logger="edgeml_ipc"):
        client.subscribe(callback)
        server.publish(1)
        eventually(lambda: values == [1])
        server.publish(2)
        eventually(lambda: values == [1, 2])
        eventually(lambda: client.stats()["callback_errors"] == 2)
    assert "a user's mistake" in caplog.text
    assert client.submit("echo", 3).result(20) == 3


def test_subscribing_after_futures_were_used(server: Server, client: Client) -> None:
    assert client.submit("echo", 1).result(20) == 1
    subscriber = Subscriber()
    client.subscribe(subscriber)
    server.publish("news")
    assert subscriber.arrived.wait(20)
    assert client.submit("echo", 2).result(20) == 2


def test_publishing_from_many_threads(server: Server, client: Client) -> None:
    with ThreadPoolExecutor(4) as pool:
        versions = list(pool.map(lambda _: server.publish(np.zeros(1000)), range(100)))
    assert sorted(versions) == list(range(1, 101))


def test_calling_from_a_callback(server: Server, client: Client) -> None:
    results: list[Any] = []
    client.subscribe(lambda value, _: results.append(client.call("echo", value)))
    server.publish("round")
    eventually(lambda: results == ["round"])


def test_closing_from_a_callback(server: Server, client: Client) -> None:
    closed = threading.Event()

    def callback(value: Any, version: int) -> None:
        client.close()
        closed.set()

    client.subscribe(callback)
    server.publish(1)
    assert closed.wait(20)


# --- rates and life -----------------------------------------------------------------------------------------------------------


def test_rate_limit(address: str) -> None:
    handlers = {"limited": lambda x: x, "free": lambda x: x}
    with Server(address, service="test", config=CONFIG, handlers=handlers, rate_limit=0.5, limited=["limited"]) as server:
        server.start(threaded=True)
        with connect(server) as client:
            assert client.call("limited", 1) == 1
            with pytest.raises(RateLimited, match=r"0\.5 requests per second"):
                client.call("limited", 2)
            assert client.call("free", 3) == 3
            assert server.stats()["rate_limited"] == 1


def test_rate_limit_must_be_positive() -> None:
    with pytest.raises(ValueError, match="rate_limit"):
        Server("inproc://rate", service="test", config={}, handlers={}, rate_limit=0)


def test_stopping_twice_and_starting_again(address: str) -> None:
    server = Server(address, service="test", config=CONFIG, handlers={})
    server.start(threaded=True)
    with pytest.raises(RuntimeError, match="runs already"):
        server.start(threaded=True)
    server.stop()
    server.stop()
    with pytest.raises(ConnectionClosed):
        server.start()
    with pytest.raises(ConnectionRefused, match="refused"):
        connect(server)


def test_stopping_without_starting_frees_the_address(address: str) -> None:
    server = Server(address, service="test", config=CONFIG, handlers={})
    server.stop()
    with Server(server.address, service="test", config=CONFIG, handlers={}):
        pass


def test_stopping_from_a_handler(address: str) -> None:
    servers: list[Server] = []
    server = Server(address, service="test", config=CONFIG, handlers={"stop": lambda _: servers[0].stop()})
    servers.append(server)
    thread = threading.Thread(target=server.start)
    thread.start()
    client = connect(server, timeout=5)
    with contextlib.suppress(EdgeMLError):  # whether the reply overtakes the end is the transport's matter
        client.call("stop", None)
    thread.join(10)
    assert not thread.is_alive()
    client.close()


def test_stopping_a_blocking_start_from_another_thread(address: str) -> None:
    server = Server(address, service="test", config=CONFIG, handlers={"echo": lambda x: x})
    thread = threading.Thread(target=server.start)
    thread.start()
    with connect(server) as client:
        assert client.call("echo", 1) == 1
    server.stop()
    thread.join(10)
    assert not thread.is_alive()


def test_port_in_use(server: Server) -> None:
    with pytest.raises(AddressInUse):
        Server(server.address, service="test", config=CONFIG, handlers={})


def test_other_service_is_refused(server: Server) -> None:
    with pytest.raises(IncompatiblePeer, match="'test'"):
        Client(server.address, service="other", config=CONFIG)


def test_waiting_for_a_server_that_comes_later(address: str) -> None:
    with Server(address, service="test", config=CONFIG, handlers={}) as first:
        place = first.address
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(Client, place, service="test", config=CONFIG, wait_for_server=True)
        with Server(place, service="test", config=CONFIG, handlers={"echo": lambda x: x}) as server:
            server.start(threaded=True)
            with future.result(60) as client:
                assert client.call("echo", 1, timeout=20) == 1


def test_waiting_for_a_server_has_an_end(address: str) -> None:
    with Server(address, service="test", config=CONFIG, handlers={}) as server:
        place = server.address
    with pytest.raises(TimeoutError, match="no test server came up") as caught:
        Client(place, service="test", config=CONFIG, wait_for_server=True, wait_timeout=2)
    assert isinstance(caught.value.__cause__, ConnectionRefused)


# --- processes --------------------------------------------------------------------------------------------------------------


def test_clients_in_processes_of_their_own(process_address: str) -> None:
    spawn = multiprocess.get_context("spawn")
    with Server(process_address, service="test", config=CONFIG, handlers={"echo": lambda x: x}) as server:
        server.start(threaded=True)
        pipes, processes = [], []
        for _ in range(2):
            ours, theirs = spawn.Pipe()
            process = spawn.Process(target=call_often, args=(server.address, 500, theirs))
            process.start()
            pipes.append(ours)
            processes.append(process)
        for pipe, process in zip(pipes, processes, strict=True):
            assert pipe.poll(60)
            assert pipe.recv() == []
            process.join(20)
        assert server.stats()["requests"] == 1000
        eventually(lambda: server.stats()["sessions"] == 0)


def test_ctrl_c_stops_a_blocking_start_cleanly(process_address: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "tests.service_processes", process_address],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        place = process.stdout.readline().strip()
        with Client(place, service="test", config=CONFIG, timeout=20) as client:
            assert client.call("echo", 1) == 1
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=30)
    assert out == "clean\n"
    assert err == ""
    assert process.returncode == 0


# --- addresses --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "transport", "address"),
    [
        ("localhost", None, "auto://localhost:5"),
        ("10.0.0.5", "tcp", "tcp://10.0.0.5:5"),
        ("10.0.0.5:7", None, "auto://10.0.0.5:7"),
        ("::1", "tcp", "tcp://[::1]:5"),
        ("tcp://[::1]:7", None, "tcp://[::1]:7"),
        ("auto://robot", None, "auto://robot:5"),
        ("auto://robot:7", "tcp", "tcp://robot:7"),
        ("tcp://robot", "tcp", "tcp://robot:5"),
        ("shm://robot", None, "shm://robot"),
        ("inproc://robot", "inproc", "inproc://robot"),
        ("robot", "shm", "shm://robot:5"),
    ],
)
def test_complete_address(host: str, transport: str | None, address: str) -> None:
    assert complete_address(host, 5, transport) == address


@pytest.mark.parametrize(("host", "transport"), [("", None), ("tcp://", None), ("shm://robot", "tcp")])
def test_impossible_addresses(host: str, transport: str | None) -> None:
    with pytest.raises(ValueError, match="address"):
        complete_address(host, 5, transport)


def test_log_level_concerns_this_librarys_logger_only() -> None:
    before, root = logging.getLogger("edgeml_ipc").level, logging.getLogger().level
    try:
        set_log_level("DEBUG")
        assert logging.getLogger("edgeml_ipc").level == logging.DEBUG
        assert logging.getLogger().level == root
        set_log_level(None)
        assert logging.getLogger("edgeml_ipc").level == logging.DEBUG
    finally:
        logging.getLogger("edgeml_ipc").setLevel(before)


# --- guests -----------------------------------------------------------------------------------------------------------------


def test_a_guest_is_reached_by_its_own_name_config_and_methods(address: str) -> None:
    gone: list[bytes] = []
    callers: list[Any] = []

    def who(_: Any) -> bytes:
        callers.append(server.caller())
        return callers[-1].client

    server = Server(
        address,
        service="host",
        config={"secret": 1},
        handlers={"echo": lambda x: x, "who": who},
        guests={"guest": Guest({"version": "2"}, {"who": who})},
        on_gone=gone.append,
    )
    with server:
        server.start(threaded=True)
        with Client(server.address, service="guest", config={"version": "2"}, timeout=20) as guest:
            name = guest.call("who", None)
            assert guest.submit("who", None).result(20) == name
            with pytest.raises(ValueError, match=r"it has \['who'\]"):
                guest.call("echo", 1)
            with Client(server.address, service="host", config={"secret": 1}, timeout=20) as other:
                assert other.call("echo", 1) == 1
                assert other.call("who", None) != name
            eventually(lambda: gone == [callers[-1].client])
        eventually(lambda: gone[1:] == [name])
        assert {caller.transport for caller in callers} == {guest.transport}
        with pytest.raises(ConfigMismatch, match="version"):
            Client(server.address, service="guest", config={"version": "1"})
        with pytest.raises(RuntimeError, match="no request"):
            server.caller()
