"""The processes of a `RemoteVectorEnv`, as its parent sees them: told something, they answer once each, or are found dead."""

from __future__ import annotations

import secrets
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final

from gymnasium import Env

from edgeml_ipc import codec, transports
from edgeml_ipc._deadline import Deadline
from edgeml_ipc.errors import EdgeMLError, PeerDied, RemoteError, TimeoutError, TransportUnavailable
from edgeml_ipc.gym_env.worker import FAILED, SEND_SECONDS, work
from edgeml_ipc.launch import spawn
from edgeml_ipc.protocol import failure_error
from edgeml_ipc.transports.base import Buffer, Connection, HandshakeRejected, Listener

CONNECT_SECONDS: Final = 60.0
_LOOK_EVERY_SECONDS: Final = 0.2  # for a process that ended before it connected
_STOP_SECONDS: Final = 5.0
_TOKEN_BYTES: Final = 16


class Worker:
    """One process.

    Attributes:
        rows: of its environments.
        connection: None until it has connected.
    """

    def __init__(self, number: int, rows: slice, process: Any) -> None:
        self.number = number
        self.rows = rows
        self.connection: Connection | None = None
        self.process = process

    def __str__(self) -> str:
        last = self.rows.stop - 1
        which = f"environment {last}" if self.rows.start == last else f"environments {self.rows.start} to {last}"
        return f"worker {self.number} (pid {self.process.pid}, {which})"


class Crew:
    """Spawned processes that step environments. For one thread at a time, but `close`.

    Args:
        factories: one for each environment. num_workers: that they are spread over, in order.
        mode: gymnasium's autoreset mode.
    """

    def __init__(self, factories: Sequence[Callable[[], Env[Any, Any]]], num_workers: int, mode: str) -> None:
        if not 1 <= num_workers <= len(factories):
            raise ValueError(f"num_workers must be from 1 to the number of environments, {len(factories)}, got {num_workers}")
        self._token = secrets.token_bytes(_TOKEN_BYTES)
        self._listener = _listen(self._welcome)
        self._by_connection: dict[Connection, Worker] = {}
        self._answers: dict[int, Any] = {}  # worker's number -> what it answered
        self._pending: set[Worker] = set()
        self._failed: EdgeMLError | None = None  # the first error of this round
        self._dead: PeerDied | None = None
        self._workers: list[Worker] = []
        try:
            for number in range(num_workers):
                rows = slice(number * len(factories) // num_workers, (number + 1) * len(factories) // num_workers)
                hello = self._token + number.to_bytes(4, "little")
                arguments = (self._listener.address, hello, CONNECT_SECONDS, list(factories[rows]), rows.start, mode)
                process = spawn(work, *arguments, name=f"edgeml_ipc-env-{number}")
                self._workers.append(Worker(number, rows, process))
        except BaseException:
            self.close()
            raise
        self._pending.update(self._workers)

    def _welcome(self, hello: bytes) -> bytes:
        """Let in whoever was told our token. On a thread of the listener's."""
        if not secrets.compare_digest(hello[:_TOKEN_BYTES], self._token):
            raise HandshakeRejected(b"not a worker of this vector of environments")
        return b""

    # --- told and answered --------------------------------------------------------------------------------------------------

    def tell_all(self, parts: list[Buffer]) -> None:
        """Send a message to every worker."""
        for worker in self._workers:
            self._tell(worker, parts)

    def tell_each(self, parts_for: Callable[[slice], list[Buffer]]) -> None:
        """Send every worker the message for its rows."""
        for worker in self._workers:
            self._tell(worker, parts_for(worker.rows))

    def _tell(self, worker: Worker, parts: list[Buffer]) -> None:
        self._pending.add(worker)
        assert worker.connection is not None
        with suppress(PeerDied):  # `collect` finds it, and says which exit code it had
            worker.connection.send(parts, SEND_SECONDS)

    def collect(self, timeout: float) -> list[Any]:
        """Wait until all workers that were told something have answered; return the answers in their order.

        Raises:
            RemoteError: an environment raised, after all have answered. PeerDied: a worker ended.
            TimeoutError: not in time; this may be called again.
        """
        deadline = Deadline(timeout)
        while self._pending:
            remaining = deadline.remaining()
            assert remaining is not None
            for connection, parts in self._listener.poll(min(remaining, _LOOK_EVERY_SECONDS)):
                worker = self._by_connection.get(connection) or self._recognised(connection)
                if parts is None:
                    raise self._found_dead(worker)
                self._take(worker, parts)
            for worker in self._pending:
                if worker.connection is None and worker.process.exitcode is not None:
                    raise self._found_dead(worker)
            if self._pending and deadline.expired:
                late = ", ".join(map(str, sorted(self._pending, key=lambda worker: worker.number)))
                raise TimeoutError(f"no answer within {timeout:g} s from {late}")
        answers, self._answers = self._answers, {}
        error, self._failed = self._failed, None
        if error is not None:
            raise error
        return [answers[worker.number] for worker in self._workers]

    def _recognised(self, connection: Connection) -> Worker:
        worker = self._workers[int.from_bytes(connection.hello[_TOKEN_BYTES:], "little")]
        worker.connection = connection
        self._by_connection[connection] = worker
        return worker

    def _take(self, worker: Worker, parts: list[Buffer]) -> None:
        self._pending.discard(worker)
        if bytes(parts[0]) != FAILED:
            self._answers[worker.number] = codec.decode(parts[1:], copy=True) if len(parts) > 1 else None
        elif self._failed is None:
            error = failure_error(parts[1], str(worker))
            if isinstance(error, RemoteError):
                trace = error.remote_traceback
                error = RemoteError(
                    f"an environment of {worker} raised {error.remote_type}",
                    remote_type=error.remote_type,
                    remote_traceback=trace,
                )
            self._failed = error

    def check(self) -> None:
        """Raise PeerDied if a worker ended."""
        if self._dead is not None:
            raise self._dead

    def _found_dead(self, worker: Worker) -> PeerDied:
        """Return the error that says how it died; from now on `check` raises it."""
        worker.process.join(_STOP_SECONDS)
        code = worker.process.exitcode
        how = "closed its connection, and lives" if code is None else f"ended with exit code {code}{_signal_name(code)}"
        self._dead = PeerDied(f"{worker} {how}; make the vector of environments anew", outcome_unknown=True)
        self._pending.clear()
        self._answers.clear()
        return self._dead

    # --- life ---------------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """End the processes: they close their environments, or are killed if that takes over 5 s. Idempotent."""
        self._listener.close()
        deadline = Deadline(_STOP_SECONDS)
        for worker in self._workers:
            worker.process.join(deadline.remaining())
            if worker.process.exitcode is None:
                worker.process.kill()
                worker.process.join()


def _listen(welcome: Callable[[bytes], bytes]) -> Listener:
    """Listen in shared memory, or on loopback where the core is not built."""
    try:
        return transports.listen(f"shm://envs-{secrets.token_hex(8)}", welcome=welcome)
    except TransportUnavailable:
        return transports.listen("tcp://127.0.0.1:0", welcome=welcome)


def _signal_name(exit_code: int) -> str:
    with suppress(ValueError):
        return f" ({signal.Signals(-exit_code).name})"
    return ""
