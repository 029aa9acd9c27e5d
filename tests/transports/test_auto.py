"""`auto` takes shared memory where it is proven, tcp elsewhere, and says why."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from edgeml_ipc import transports
from edgeml_ipc.service import Client, Server
from edgeml_ipc.transports import auto as auto_module
from edgeml_ipc.transports.base import Connection, Listener
from tests.conftest import eventually

PATIENCE_S = 20.0
ADDRESS = "auto://127.0.0.1:0"


@pytest.fixture
def listener() -> Iterator[Listener]:
    with transports.listen(ADDRESS, welcome=bytes) as made:
        yield made


def connect(listener: Listener) -> Connection:
    return transports.connect(listener.address, topics=(0,), timeout=PATIENCE_S)


def test_shared_memory_between_processes_of_one_host(listener: Listener, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "edgeml_ipc"), connect(listener) as connection:
        assert connection.transport == "shm"
    assert [r.message for r in caplog.records if "proven" in r.message] != []


@pytest.mark.parametrize(
    "spoil",
    [
        lambda offer: offer[:2] + bytes(16) + offer[18:],  # a nonce that the server did not give
        lambda offer: offer[:-1] + b"?",  # a door that does not exist
    ],
    ids=["wrong nonce", "no such door"],
)
def test_an_offer_that_proves_nothing_means_tcp(
    listener: Listener, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, spoil: object
) -> None:
    real = auto_module.connect_tcp

    def tampered(*args: object, **kwargs: object) -> Connection:
        connection = real(*args, **kwargs)  # type: ignore[arg-type]
        connection.offer = spoil(connection.offer)  # type: ignore[operator]
        return connection

    monkeypatch.setattr(auto_module, "connect_tcp", tampered)
    listener.publish(0, [b"newest"])
    with connect(listener) as connection:
        assert connection.transport == "tcp"
        connection.send([b"question"], PATIENCE_S)
        ((peer, parts),) = listener.poll(PATIENCE_S)
        assert [bytes(part) for part in parts or []] == [b"question"]
        assert [bytes(part) for part in connection.recv(PATIENCE_S)] == [b"newest"]  # topics work after the change of mind
        peer.send([b"answer"], PATIENCE_S)
        assert [bytes(part) for part in connection.recv(PATIENCE_S)] == [b"answer"]
    assert len([r for r in caplog.records if "tcp, because" in r.message]) == 1


def test_another_boot_id_is_offered_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto_module, "boot_id", lambda: bytes(16))  # the server's: the client's is this kernel's
    with transports.listen(ADDRESS, welcome=bytes) as listener, connect(listener) as connection:
        assert connection.transport == "tcp"


WITHOUT_THE_CORE = """
import logging, sys
logging.basicConfig(format="%(levelname)s %(message)s")
sys.modules["edgeml_ipc.transports._core"] = None
from edgeml_ipc import transports
with transports.listen("auto://127.0.0.1:0", welcome=bytes) as listener:
    for _ in range(2):
        with transports.connect(listener.address, timeout=20) as connection:
            print(connection.transport)
try:
    transports.listen("shm://name", welcome=bytes)
except Exception as error:
    print(type(error).__name__)
"""


def test_without_the_core_auto_means_tcp_and_one_line_says_so() -> None:
    run = subprocess.run([sys.executable, "-c", WITHOUT_THE_CORE], capture_output=True, text=True, check=True, timeout=60)
    assert run.stdout.split() == ["tcp", "tcp", "TransportUnavailable"]
    assert len(run.stderr.splitlines()) == 1
    assert "tcp only, because shared memory needs the C core" in run.stderr


def test_a_busy_server_does_not_push_clients_to_tcp() -> None:
    release, busy = threading.Event(), threading.Event()

    def compile_for_long(_: object) -> None:
        busy.set()
        release.wait(PATIENCE_S)

    with Server(ADDRESS, service="t", config={}, handlers={"compile": compile_for_long, "echo": lambda x: x}) as server:
        server.start(threaded=True)
        first = Client(server.address, service="t", config={}, timeout=PATIENCE_S)
        future = first.submit("compile", None)
        assert busy.wait(PATIENCE_S)
        second = Client(server.address, service="t", config={}, timeout=PATIENCE_S)  # its handshake is answered meanwhile
        assert second.transport == "shm"
        assert not future.done()
        release.set()
        assert second.call("echo", 1) == 1
        future.result(PATIENCE_S)
        first.close()
        second.close()


def test_one_loop_serves_both_kinds_of_clients() -> None:
    with Server(ADDRESS, service="t", config={}, handlers={"echo": lambda x: x}) as server:
        server.start(threaded=True)
        near = Client(server.address, service="t", config={}, timeout=PATIENCE_S)
        far = Client(server.address.replace("auto://", "tcp://"), service="t", config={}, timeout=PATIENCE_S)
        assert (near.transport, far.transport) == ("shm", "tcp")
        seen: dict[str, list[int]] = {"near": [], "far": []}
        near.subscribe(lambda value, version: seen["near"].append(int(value["w"][-1])))
        far.subscribe(lambda value, version: seen["far"].append(int(value["w"][-1])))
        for number in range(50):
            assert np.array_equal(near.call("echo", np.full(50_000, number)), np.full(50_000, number))
            assert np.array_equal(far.call("echo", np.full(50_000, number)), np.full(50_000, number))
            server.publish({"w": np.full(50_000, number)})
        eventually(lambda: seen["near"][-1:] == [49] and seen["far"][-1:] == [49])
        assert all(values == sorted(set(values)) for values in seen.values())
        near.close()
        far.close()


def test_tcp_clients_are_served_while_shared_memory_is_hot(listener: Listener) -> None:
    """A client that never lets the loop find an empty ring must not starve the other transport."""
    with connect(listener) as near, transports.connect(listener.address.replace("auto", "tcp"), timeout=PATIENCE_S) as far:
        near.send([b"x"], PATIENCE_S)
        far.send([b"far"], PATIENCE_S)
        served: list[str] = []
        while "tcp" not in served and len(served) < 2000:
            served += [connection.transport for connection, _ in listener.poll(PATIENCE_S)]
            near.send([b"x"], PATIENCE_S)
        assert "tcp" in served, "2000 messages came from shared memory alone"
