"""Kill one side with SIGKILL at random moments under load: nothing committed is lost, nothing comes twice, nothing is left."""

from __future__ import annotations

import mmap
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeml_ipc import transports
from edgeml_ipc.errors import ConnectionRefused, PeerDied
from edgeml_ipc.transports.base import Connection
from tests.anomaly import kill_nursery
from tests.conftest import eventually, new_address

KILLS_PER_ROLE = {"shm": 120, "tcp": 20}
DEADLINE_S = 20.0


class Nursery:
    """Children to kill, and the page on which they note how far they came."""

    def __init__(self) -> None:
        page_fd = os.memfd_create("kills")
        os.ftruncate(page_fd, kill_nursery.PAGE_BYTES)
        self.page = mmap.mmap(page_fd, kill_nursery.PAGE_BYTES)
        self._orders, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        fds = (theirs.fileno(), page_fd)
        command = [sys.executable, "-m", "tests.anomaly.kill_nursery", *map(str, fds)]
        self._process = subprocess.Popen(command, pass_fds=fds, cwd=Path(__file__).parents[2])
        theirs.close()
        os.close(page_fd)

    def bear(self, role: str, address: str) -> int:
        kill_nursery.note(self.page, 0)
        self._orders.send(f"{role} {address}".encode())
        return int(self._orders.recv(100))

    def close(self) -> None:
        self._orders.close()
        self._process.wait(DEADLINE_S)


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    made = Nursery()
    yield made
    made.close()


def leftovers() -> set[str]:
    """Names that we left where names can be left, and mappings of our own that should be gone."""
    ours = f"edgeml_ipc/{os.getuid()}/test-{os.getpid()}"  # other tests may run beside this one
    abstract = [line.split()[-1] for line in Path("/proc/net/unix").read_text().splitlines() if ours in line]
    mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if "memfd:edgeml_ipc" in line]
    return {name for name in os.listdir("/dev/shm") if "edgeml" in name}.union(abstract, mapped)


def report(capsys: pytest.CaptureFixture[str], role: str, seed: int, notices_ms: list[float], messages: int) -> None:
    notices_ms.sort()
    with capsys.disabled():
        print(
            f"\n{role}: {len(notices_ms)} kills, seed {seed}, {messages} messages; from kill to notice: "
            f"median {notices_ms[len(notices_ms) // 2]:.2f} ms, worst {notices_ms[-1]:.2f} ms"
        )


@pytest.mark.timeout(300)
@pytest.mark.parametrize("scheme", KILLS_PER_ROLE)
def test_killed_clients(scheme: str, nursery: Nursery, capsys: pytest.CaptureFixture[str]) -> None:
    seed = random.SystemRandom().randrange(10**6)
    rng = random.Random(seed)
    before = leftovers()  # of tests that ran before this one in this process
    notices_ms, messages = [], 0
    with transports.listen(new_address(scheme), welcome=bytes, options=kill_nursery.OPTIONS) as listener:
        for kill in range(KILLS_PER_ROLE[scheme]):
            pid = nursery.bear("stream", listener.address)
            received, ended, killed_at = 0, False, 0.0
            lethal = rng.randrange(1, 400)  # messages before the kill; it strikes while more are on their way
            start = time.monotonic()
            while not ended:
                assert time.monotonic() - start < DEADLINE_S, f"seed {seed}, kill {kill}: no end"
                for _, parts in listener.poll(1.0):
                    if parts is None:
                        ended = True
                        notices_ms.append((time.monotonic() - killed_at) * 1e3)
                        continue
                    kill_nursery.check(parts, received)
                    received += 1
                    if received == lethal:
                        os.kill(pid, signal.SIGKILL)
                        killed_at = time.monotonic()
            if scheme == "shm":
                assert received >= kill_nursery.noted(nursery.page), f"seed {seed}, kill {kill}: lost what was sent"
            messages += received
    report(capsys, f"{scheme}, client killed", seed, notices_ms, messages)
    del listener
    assert leftovers() <= before, f"seed {seed}"


def connect_when_up(address: str, nursery: Nursery) -> Connection:
    eventually(lambda: kill_nursery.noted(nursery.page) == 1)
    return transports.connect(address, topics=[0], timeout=DEADLINE_S, options=kill_nursery.OPTIONS)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("scheme", KILLS_PER_ROLE)
def test_killed_servers(scheme: str, nursery: Nursery, capsys: pytest.CaptureFixture[str]) -> None:
    seed = random.SystemRandom().randrange(10**6)
    rng = random.Random(seed)
    before = leftovers()  # of tests that ran before this one in this process
    notices_ms, messages = [], 0
    for kill in range(KILLS_PER_ROLE[scheme]):
        address = new_address("shm") if scheme == "shm" else f"tcp://127.0.0.1:{free_port()}"
        pid = nursery.bear("echo", address)
        connection = connect_when_up(address, nursery)
        lethal = rng.randrange(1, 300)
        sent, newest, killed_at = 0, -1, 0.0
        echoed: list[int] = []
        try:
            while True:
                if sent - len(echoed) < 20:
                    connection.send(kill_nursery.message(sent), DEADLINE_S)
                    sent += 1
                parts = connection.recv(DEADLINE_S)
                number = int.from_bytes(parts[0], "little")
                kill_nursery.check(parts[:3], number)
                if len(parts) == 3:
                    assert number == len(echoed), f"seed {seed}, kill {kill}"
                    echoed.append(number)
                else:
                    assert number > newest, f"seed {seed}, kill {kill}"
                    newest = number
                if len(echoed) == lethal and not killed_at:
                    os.kill(pid, signal.SIGKILL)
                    killed_at = time.monotonic()
        except PeerDied:
            notices_ms.append((time.monotonic() - killed_at) * 1e3)
        assert killed_at, f"seed {seed}, kill {kill}: the server ended before it was killed"
        assert echoed == list(range(len(echoed)))
        assert len(echoed) >= lethal
        messages += len(echoed)
        connection.close()
        with pytest.raises(ConnectionRefused):
            transports.connect(address, timeout=DEADLINE_S)
    report(capsys, f"{scheme}, server killed", seed, notices_ms, messages)
    del connection, parts  # which may lie in a slot
    assert leftovers() <= before, f"seed {seed}"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
