"""A server and its clients that have nothing to say use no processor time to speak of."""

from __future__ import annotations

import os
import threading
from typing import Any

import multiprocess
import pytest

from edgeml_ipc.service import Client, Server

CLIENTS = 8
INTERVAL_S = 4.0
SPAWN = multiprocess.get_context("spawn")


def serve(tell: Any) -> None:
    server = Server("auto://127.0.0.1:0", service="idle", config={}, handlers={"echo": lambda x: x})
    tell.send(server.port)
    server.start()


def hold(address: str, tell: Any) -> None:
    """Be all the clients: each with a call behind it and a subscription."""
    clients = [Client(address, service="idle", config={}, timeout=20) for _ in range(CLIENTS)]
    for client in clients:
        client.subscribe(lambda value, version: None)
        client.call("echo", 1)
    tell.send(clients[0].transport)
    threading.Event().wait()


def cpu_seconds(pid: int) -> float:
    """Return the processor time that a process has used so far, in user and in kernel mode."""
    with open(f"/proc/{pid}/stat", encoding="ascii") as stat:
        fields = stat.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize("transport", ["shm", "tcp"])
def test_idle(transport: str, capsys: pytest.CaptureFixture[str]) -> None:
    ours, theirs = SPAWN.Pipe()
    server = SPAWN.Process(target=serve, args=(theirs,))
    server.start()
    port = ours.recv()
    scheme = "auto" if transport == "shm" else "tcp"
    clients = SPAWN.Process(target=hold, args=(f"{scheme}://127.0.0.1:{port}", theirs))
    clients.start()
    try:
        assert ours.recv() == transport
        pids = (server.pid, clients.pid)
        threading.Event().wait(1.0)  # what start-up leaves to do
        before = sum(map(cpu_seconds, pids))
        threading.Event().wait(INTERVAL_S)  # the interval that is measured
        used = sum(map(cpu_seconds, pids)) - before
    finally:
        for process in (clients, server):
            process.kill()
            process.join()
    with capsys.disabled():
        print(f"\n{transport}: a server and {CLIENTS} clients used {used / INTERVAL_S:.2%} of a core")
    assert used < 0.01 * INTERVAL_S + 0.02  # the clock has ticks of 10 ms, and there are two processes
