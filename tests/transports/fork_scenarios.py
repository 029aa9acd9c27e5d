"""What fork() may and may not do to a shared-memory connection; each scenario is a run of this module by its name."""

from __future__ import annotations

import os
import signal
import sys

from edgeml_ipc import transports
from edgeml_ipc.errors import ConnectionClosed

PATIENCE_S = 20.0
LARGE = 200_000


def body(number: int) -> bytes:
    """Return a message that travels in a slot."""
    return bytes([number]) * LARGE


def child_can_neither_use_a_connection_nor_harm_it() -> None:
    """The child's objects refuse; dropping a view there leaves the parent's pin alone."""
    with transports.listen(f"shm://fork-{os.getpid()}", welcome=bytes) as listener:
        client = transports.connect(listener.address, timeout=PATIENCE_S)
        client.send([b"hello"], PATIENCE_S)
        ((server, _),) = listener.poll(PATIENCE_S)
        server.send([body(1)], PATIENCE_S)
        held = client.recv(PATIENCE_S)
        pid = os.fork()
        if pid == 0:
            refusals = 0
            for attempt in (lambda: client.send([b"x"], 1), lambda: client.recv(0), lambda: server.send([b"x"], 1)):
                try:
                    attempt()
                except ConnectionClosed as error:
                    refusals += "fork" in str(error)
            held.clear()
            client.close()
            os._exit(0 if refusals == 3 else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        for number in range(2, 6):
            server.send([body(number)], PATIENCE_S)
            assert memoryview(client.recv(PATIENCE_S)[0])[0] == number
        assert bytes(held[0]) == body(1)


def inherited_socket_does_not_hide_a_death() -> None:
    """A child of the dead client holds its socket open; the pidfd tells all the same."""
    reader, writer = os.pipe()
    address = f"shm://fork-{os.getpid()}"
    pid = os.fork()
    if pid == 0:
        os.read(reader, 1)
        client = transports.connect(address, timeout=PATIENCE_S)
        child = os.fork()
        if child == 0:
            signal.pause()
        client.send([str(child).encode()], PATIENCE_S)
        signal.pause()
    with transports.listen(address, welcome=bytes) as listener:
        os.write(writer, b"x")
        ((server, parts),) = listener.poll(PATIENCE_S)
        assert parts is not None
        os.kill(pid, signal.SIGKILL)
        try:
            assert listener.poll(PATIENCE_S) == [(server, None)]
        finally:
            os.kill(int(parts[0]), signal.SIGKILL)


ALL = (child_can_neither_use_a_connection_nor_harm_it.__name__, inherited_socket_does_not_hide_a_death.__name__)

if __name__ == "__main__":
    globals()[sys.argv[1]]()
