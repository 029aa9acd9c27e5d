"""The patterns of edgeml's zmq_wrapper, between processes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import multiprocess
import numpy as np
import pytest

from edgeml_ipc.compat.zmq_wrapper.broadcast import BroadcastClient, BroadcastServer
from edgeml_ipc.compat.zmq_wrapper.pair import PairClient, PairServer
from edgeml_ipc.compat.zmq_wrapper.pipeline import Consumer, Producer
from edgeml_ipc.compat.zmq_wrapper.req_rep import ReqRepClient, ReqRepServer
from edgeml_ipc.errors import AuthenticationError, CodecError, ConnectionClosed
from tests.conftest import eventually

pytestmark = pytest.mark.usefixtures("no_threads_left")
SPAWN = multiprocess.get_context("spawn")


@pytest.fixture
def spawned() -> Iterator[Any]:
    """Start processes of functions that get a pipe; end those that still run."""
    processes: list[Any] = []

    def start(target: Any, *args: Any) -> Any:
        ours, theirs = SPAWN.Pipe()
        process = SPAWN.Process(target=target, args=(*args, theirs))
        process.start()
        theirs.close()
        processes.append(process)
        return ours

    yield start
    for process in processes:
        process.join(20)
        if process.is_alive():
            process.kill()
            process.join(20)
        assert process.exitcode == 0


def said(pipe: Any) -> Any:
    assert pipe.poll(30)
    return pipe.recv()


# --- request and reply ------------------------------------------------------------------------------------------------------


def ask(port: int, pipe: Any) -> None:
    client = ReqRepClient("localhost", port, timeout_ms=20_000)
    first = client.send_msg({"add": np.arange(3)})
    first += 1  # a copy of our own
    pipe.send([first.tolist(), client.send_msg({"add": np.ones(2)}).tolist()])
    client.stop()


def test_req_rep(spawned: Any) -> None:
    server = ReqRepServer(port=0, impl_callback=lambda message: message["add"] * 2)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    assert said(spawned(ask, server.port)) == [[1, 3, 5], [2, 2]]
    server.stop()
    thread.join(20)
    client = ReqRepClient("localhost", server.port)
    assert client.send_msg({"add": 1}) is None
    again = threading.Thread(target=server.run, daemon=True)  # it listens anew, at the same port
    again.start()
    eventually(lambda: client.send_msg({"add": 2}) == 4)
    client.reset_socket()
    assert client.send_msg({"add": 3}) == 6
    with pytest.raises(CodecError):
        client.send_msg({"add": object()})
    client.stop()
    server.stop()
    again.join(20)


def test_req_rep_without_waiting_or_callback() -> None:
    taken: list[Any] = []
    server = ReqRepServer(0, taken.append)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    client = ReqRepClient("localhost", server.port, timeout_ms=20_000)
    assert client.send_msg({"x": 1}, wait_for_response=False) is None
    eventually(lambda: taken == [{"x": 1}])
    server.impl_callback = None
    assert client.send_msg("hello") == b"World"
    client.timeout_ms = 50
    hold = threading.Event()
    server.impl_callback = lambda message: hold.wait(20)
    assert client.send_msg("slow") is None
    hold.set()
    client.stop()
    server.stop()
    thread.join(20)


# --- broadcast --------------------------------------------------------------------------------------------------------------


def listen(port: int, pipe: Any) -> None:
    client = BroadcastClient("localhost", port)
    enough = threading.Event()

    def take(message: Any) -> None:
        message["w"] += 1  # a copy of our own
        pipe.send(message["w"].tolist())
        if message["last"]:
            enough.set()

    client.async_start(take)
    assert enough.wait(30)
    client.stop()


def test_broadcast(spawned: Any) -> None:
    server = BroadcastServer(port=0)
    pipes = [spawned(listen, server.port) for _ in range(2)]
    server.broadcast({"w": np.zeros(2), "last": False})
    assert [said(pipe) for pipe in pipes] == [[1, 1]] * 2
    server.broadcast({"w": np.ones(2), "last": True})
    assert [said(pipe) for pipe in pipes] == [[2, 2]] * 2
    port = server.port
    server.stop()
    early = BroadcastClient("localhost", port)
    received: list[Any] = []
    early.async_start(received.append)
    late = BroadcastServer(port)
    late.broadcast("at last")
    eventually(lambda: received == ["at last"])
    early.stop()
    late.stop()


# --- pair -------------------------------------------------------------------------------------------------------------------


def partner(port: int, pipe: Any) -> None:
    client = PairClient("localhost", port)
    got: list[int] = []

    def take(message: Any) -> None:
        got.append(int(message["number"]))
        client.broadcast({"back": message["number"] * 10})
        if len(got) == 500:
            client.broadcast({"back": -1})
            pipe.send(got)
            client.stop()

    client.register_callback(take)
    client.broadcast({"back": "hello"})
    client.run()


def test_a_pair_loses_nothing_and_keeps_the_order(spawned: Any) -> None:
    server = PairServer(port=0)
    got: list[Any] = []
    done = threading.Event()

    def take(message: Any) -> None:
        got.append(message["back"])
        if message["back"] == -1:
            done.set()

    server.register_callback(take)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    pipe = spawned(partner, server.port)
    for number in range(500):  # the first one waits for the client to be there
        server.broadcast({"number": np.array(number)})
    assert done.wait(30)
    assert said(pipe) == list(range(500))
    assert got == ["hello", *range(0, 5000, 10), -1]
    server.stop()
    thread.join(20)
    with pytest.raises(ConnectionClosed):
        server.broadcast("nobody")


def test_a_pairs_client_may_come_first_and_a_server_may_come_back() -> None:
    with_port = PairServer(0)
    port = with_port.port
    with_port.stop()
    client = PairClient("localhost", port)
    got: list[Any] = []
    client.register_callback(got.append)
    thread = threading.Thread(target=client.run, daemon=True)
    thread.start()
    for turn in range(2):
        server = PairServer(port)
        server.broadcast(turn)
        eventually(lambda turn=turn: got == list(range(turn + 1)))  # type: ignore[misc]
        server.stop()
    client.stop()
    thread.join(20)
    with pytest.raises(ConnectionClosed):
        client.broadcast("nobody")


# --- pipeline ---------------------------------------------------------------------------------------------------------------


def produce(port: int, name: str, count: int, pipe: Any) -> None:
    producer = Producer("localhost", port)
    for number in range(count):
        producer.send_msg({"name": name, "id": number, "value": np.zeros(100)})
    producer.close()
    pipe.send("done")


def test_pipeline(spawned: Any) -> None:
    got: list[tuple[str, int]] = []
    late = Consumer(print, port=0)
    port = late.port
    late.stop()
    pipes = [spawned(produce, port, name, 700) for name in "ab"]  # they wait for the consumer
    consumer = Consumer(lambda message: got.append((message["name"], message["id"])), port=port)
    consumer.async_start()
    assert [said(pipe) for pipe in pipes] == ["done", "done"]
    consumer.stop()
    for name in "ab":
        assert [number for who, number in got if who == name] == list(range(700))


def test_a_message_whose_callback_raises_is_told(caplog: pytest.LogCaptureFixture) -> None:
    consumer = Consumer(lambda message: 1 / message, port=0)
    thread = threading.Thread(target=consumer.start, daemon=True)
    thread.start()
    producer = Producer(port=consumer.port)
    for number in (1, 0, 2):
        producer.send_msg(number)
    producer.close()
    consumer.stop()
    thread.join(20)
    assert caplog.text.count("a message was lost, or what took it raised") == 1


@pytest.mark.parametrize("kind", [ReqRepServer, BroadcastServer, PairServer, lambda **more: Consumer(print, **more)])
def test_listening_beyond_loopback_has_to_be_asked_for(kind: Any) -> None:
    with pytest.raises(AuthenticationError, match="insecure=True"):
        kind(port=0, host="0.0.0.0")
    kind(port=0, host="0.0.0.0", insecure=True).stop()
