"""Make processes that are about to be killed: quick to make, since they are forked from one that has imported everything.

Run as a program with the descriptors of a socket and of a shared page. For each line `role address` that it reads it forks a
child and answers with its pid; the end of the socket ends it.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import socket
import sys
import zlib

from edgeml_ipc import transports
from edgeml_ipc.errors import ConnectionClosed, PeerDied
from edgeml_ipc.transports.base import Options

OPTIONS = Options(ring_bytes=1 << 14)  # small, so that it wraps and fills all the time
PR_SET_PDEATHSIG = 1
PAGE_BYTES = mmap.PAGESIZE
SIZES = (0, 1, 100, 1000, 5000, 70_000, 8, 300)


def message(number: int) -> list[bytes]:
    """Return the parts of message `number`: itself, a body that follows from it, and the body's checksum."""
    body = bytes([number % 251]) * SIZES[number % len(SIZES)]
    return [number.to_bytes(8, "little"), body, zlib.crc32(body).to_bytes(4, "little")]


def check(parts: list[bytes], number: int) -> None:
    """Fail unless these are the parts of message `number`, whole."""
    assert [bytes(part) for part in parts] == message(number), f"message {number} came as {int.from_bytes(parts[0], 'little')}"


def note(page: mmap.mmap, number: int) -> None:
    """Note that everything below `number` was sent."""
    page[:8] = number.to_bytes(8, "little")


def noted(page: mmap.mmap) -> int:
    """Return what the last process noted."""
    return int.from_bytes(page[:8], "little")


def stream(address: str, page: mmap.mmap) -> None:
    """Be a client that sends numbered messages until it is killed."""
    connection = transports.connect(address, timeout=20, options=OPTIONS)
    number = 0
    while True:
        connection.send(message(number), 20)
        number += 1
        note(page, number)


def echo(address: str, page: mmap.mmap) -> None:
    """Be a server that sends every message back, and publishes each, until it is killed."""
    listener = transports.listen(address, welcome=bytes, options=OPTIONS)
    note(page, 1)
    while True:
        for connection, parts in listener.poll(20):
            if parts is not None:
                listener.publish(0, [*parts, b"published"])
                connection.send(parts, 20)


def main() -> None:
    control, page_fd = (int(argument) for argument in sys.argv[1:])
    page = mmap.mmap(page_fd, PAGE_BYTES)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps
    with socket.socket(fileno=control) as orders:
        while order := orders.recv(1000).decode():
            role, address = order.split()
            pid = os.fork()
            if pid == 0:
                ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
                try:
                    {"stream": stream, "echo": echo}[role](address, page)
                except (PeerDied, ConnectionClosed):
                    os._exit(0)
            orders.send(str(pid).encode())


if __name__ == "__main__":
    main()
