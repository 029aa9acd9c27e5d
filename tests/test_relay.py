"""One subscription for a whole machine: versions cross the network once, and whoever dies, the others go on."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import pytest

from edgeml_ipc import ActionClient, ActionConfig, ActionServer, TrainerClient, TrainerConfig, TrainerServer
from edgeml_ipc.security import Keys
from tests.conftest import eventually

pytestmark = pytest.mark.usefixtures("no_threads_left")

SPAWN = multiprocessing.get_context("spawn")
NETWORK_BYTES = 4 << 20
SECONDS = 30


def subscriber(port: int, pipe: Connection) -> None:
    """Subscribe, and tell each version with the sum of its values; on any word say whether this process runs the relay."""
    with TrainerClient("actor", f"tcp://127.0.0.1:{port}", TrainerConfig(), wait_for_server=True, relay=True) as client:
        client.recv_network_callback(lambda params: pipe.send((client.policy_version, float(params["w"][-1]))))
        while pipe.recv() != "stop":
            pipe.send((os.getpid(), client.stats()["relay"]))


class Actor:
    """A process that subscribes through the relay."""

    def __init__(self, port: int) -> None:
        self.pipe, child = SPAWN.Pipe()
        self.process = SPAWN.Process(target=subscriber, args=(port, child))
        self.process.start()
        child.close()

    def next(self) -> Any:
        assert self.pipe.poll(SECONDS), "nothing came"
        return self.pipe.recv()

    def until(self, version: int) -> float:
        """Return the last value of that version; older ones may come before."""
        while (got := self.next())[0] != version:
            assert got[0] < version
        return float(got[1])

    def relay_stats(self) -> dict[str, int]:
        self.pipe.send("stats")
        pid, stats = self.next()
        assert pid == self.process.pid
        return dict(stats)


@contextmanager
def actors(count: int, port: int) -> Iterator[list[Actor]]:
    started = [Actor(port) for _ in range(count)]
    try:
        yield started
        for actor in started:
            if actor.process.is_alive():
                actor.pipe.send("stop")
                actor.process.join(SECONDS)
                assert actor.process.exitcode == 0
    finally:
        for actor in started:
            actor.process.kill()
            actor.process.join()


def network(value: float) -> dict[str, Any]:
    return {"w": np.full(NETWORK_BYTES // 4, value, np.float32)}


def learner(port: int = 0) -> TrainerServer:
    server = TrainerServer(TrainerConfig(port_number=port), host=f"tcp://127.0.0.1:{port}")
    server.start(threaded=True)
    return server


def tcp_subscribers(server: TrainerServer) -> int:
    return len(server.stats()["lag"])


def test_each_version_crosses_the_network_once_and_everybody_reads_it() -> None:
    with learner() as server, actors(5, server.port) as crew:
        for version in range(1, 4):
            server.publish_network(network(version))
            assert [actor.until(version) for actor in crew] == [version] * 5
        relays = [stats for actor in crew if (stats := actor.relay_stats())]
        assert len(relays) == 1
        assert relays[0]["subscribers"] == 5
        assert relays[0]["versions_pulled"] == 3
        assert 3 * NETWORK_BYTES <= relays[0]["bytes_pulled"] <= 3 * NETWORK_BYTES + 3000
        assert tcp_subscribers(server) == 1
        assert server.stats()["transport"]["bytes_sent"] < 4 * NETWORK_BYTES


def test_a_relay_that_is_killed_is_replaced_and_the_newest_version_reaches_all() -> None:
    with learner() as server, actors(4, server.port) as crew:
        version = 0
        for _ in range(3):
            version = server.publish_network(network(version + 1))
            for actor in crew:
                actor.until(version)
            [head] = [actor for actor in crew if actor.relay_stats()]
            assert head.process.pid is not None
            os.kill(head.process.pid, signal.SIGKILL)
            head.process.join(SECONDS)
            crew.remove(head)
        version = server.publish_network(network(9))
        assert [actor.until(version) for actor in crew] == [9.0]
        assert crew[0].relay_stats()["subscribers"] == 1


def test_another_life_of_the_server_is_found_through_the_relay() -> None:
    first = learner()
    port = first.port
    with actors(2, port) as crew:
        first.publish_network(network(1))
        for actor in crew:
            actor.until(1)
        first.stop()
        with learner(port) as second:
            second.publish_network(network(5))
            for actor in crew:
                assert actor.until(1) == 5


def test_clients_of_another_config_have_another_relay_and_requests_go_straight_to_the_server() -> None:
    def config(keys: list[str]) -> ActionConfig:
        return ActionConfig(0, action_keys=["move"], observation_keys=keys)

    def client(server: ActionServer) -> ActionClient:
        return ActionClient(f"tcp://127.0.0.1:{server.port}", config(["a"]), relay=True)

    def served() -> ActionServer:
        server = ActionServer(config(["a"]), lambda keys: {"a": 1}, lambda key, payload: {"done": key}, host="tcp://127.0.0.1")
        server.start(threaded=True)
        return server

    with served() as one, served() as other, client(one) as near, client(one) as far, client(other) as apart:
        got: dict[str, list[Any]] = {"near": [], "far": [], "apart": []}
        near.register_obs_callback(got["near"].append)
        far.register_obs_callback(got["far"].append)
        apart.register_obs_callback(got["apart"].append)
        one.publish_obs({"a": 1})
        other.publish_obs({"a": 2})
        eventually(lambda: all(got.values()))
        assert got == {"near": [{"a": 1}], "far": [{"a": 1}], "apart": [{"a": 2}]}
        assert near.act("move") == {"done": "move"}
        assert [len(server.stats()["lag"]) for server in (one, other)] == [1, 1]
        near.close()
        far.close()
        one.publish_obs({"a": 3})


def test_keys_and_the_relay() -> None:
    server_keys, client_keys = Keys.generate()
    config = TrainerConfig(0)
    with TrainerServer(config, host="tcp://127.0.0.1:0", keys=server_keys) as server:
        server.start(threaded=True)
        address = f"tcp://127.0.0.1:{server.port}"
        with TrainerClient("a", address, config, keys=client_keys, relay=True) as client:
            got: list[Any] = []
            client.recv_network_callback(got.append)
            server.publish_network({"w": 1})
            eventually(lambda: got)
            assert client.policy_version == 1
            assert client.stats()["relay"]["versions_pulled"] == 1


def test_no_relay_where_the_server_is_reached_through_memory() -> None:
    config = TrainerConfig(0)
    with TrainerServer(config) as server:
        server.start(threaded=True)
        with TrainerClient("a", f"auto://127.0.0.1:{server.port}", config, relay=True) as client:
            assert client.transport == "shm"
            got: list[Any] = []
            client.recv_network_callback(got.append)
            server.publish_network({"w": 1})
            eventually(lambda: got)
            assert "relay" not in client.stats()
