"""The parameters of the model, read from the JSON of a run. Nothing else is assumed about the program or the machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.document import Run
from benchmarks.harness import ANSWERING, Result
from benchmarks.ours.costs import ALLOWED, CLIENT_MEMORY, DESCRIPTORS, IDLE, MEMORY, WAKE_UPS, WIRE
from benchmarks.payloads import NETWORK_BYTES

COMMAND = "python -m benchmarks run --only scale --json FILE"
OPTIONAL = ("scale.cost.call.tcp.jpeg",)  # needs simplejpeg
CALLS = ("tcp.64B", "tcp.921kB", "tcp.jpeg", "shm.64B", "shm.921kB")
UPLOADS = ("tcp.1kB", "tcp.921kB")
SCHEMES = ("tcp", "shm")


@dataclass(frozen=True)
class Cost:
    """What one call, or one transition, costs.

    Attributes:
        server_s, client_s: CPU time of either side. wire_bytes: that cross the network.
    """

    server_s: float
    client_s: float
    wire_bytes: float


@dataclass(frozen=True)
class Connection:
    """What a silent connection costs its server, and how many descriptors that may have.

    Attributes:
        wakeups_per_second, idle_percent: of the whole server with all its silent connections.
    """

    descriptors: float
    memory_bytes: float
    client_memory_bytes: float
    allowed_descriptors: float
    wakeups_per_second: float
    idle_percent: float


@dataclass(frozen=True)
class Parameters:
    """All that the model knows.

    Attributes:
        calls, uploads: by name as in `costs.CALLS` and `costs.UPLOADS`. connections: by scheme.
        publish_s: CPU time of a server over tcp to send one network of 50 MB to one subscriber more.
        alone_s: by scheme, from a call of 64 bytes to the next, of a client that is alone.
        cpus, memory_bytes: of the machine.
    """

    calls: dict[str, Cost]
    uploads: dict[str, Cost]
    connections: dict[str, Connection]
    publish_s: float
    alone_s: dict[str, float]
    cpus: int
    memory_bytes: float

    @property
    def publish_s_per_mb(self) -> float:
        """CPU time of a server over tcp for a megabyte to one subscriber."""
        return self.publish_s / (NETWORK_BYTES / 1e6)


def measured(run: Run, name: str) -> Result | None:
    """Return the unpinned result of a case, if the run has it and it has rounds."""
    return next((r for r in run.results if r.case == name and r.placement == "unpinned" and r.rounds), None)


def subscribers(run: Run, scheme: str) -> dict[int, Result]:
    """Return the results of publishing 50 MB, by the number of subscribers."""
    found = {}
    for result in run.results:
        if result.case.startswith(f"scale.{scheme}.50MB.to-") and result.placement == "unpinned" and result.is_timed():
            found[int(result.case.rpartition("-")[2])] = result
    return dict(sorted(found.items()))


def parameters(run: Run) -> Parameters:
    """Read them.

    Raises:
        ValueError: cases are missing, or were measured by an older version; the message names them, and the command.
    """
    calls = {name: f"scale.cost.call.{name}" for name in CALLS}
    uploads = {name: f"scale.cost.upload.{name}" for name in UPLOADS}
    idle = {scheme: f"scale.cost.connections.{scheme}" for scheme in SCHEMES}
    alone = {scheme: f"scale.clients.{scheme}.1" for scheme in SCHEMES}
    published = subscribers(run, "tcp")
    most = max(published, default=0)
    needed = [*calls.values(), *uploads.values(), *idle.values(), *alone.values()]
    missing = [name for name in needed if name not in OPTIONAL and measured(run, name) is None]
    missing += ["scale.tcp.50MB.to-1 and one to more subscribers"] if 1 not in published or most < 2 else []
    if missing:
        raise ValueError(f"the run lacks {', '.join(missing)}; what is needed: {COMMAND}")
    more = _figure(published[most], ANSWERING) - _figure(published[1], ANSWERING)
    if more <= 0:
        raise ValueError(f"{published[most].case} cost its server no more than {published[1].case}: measure again, {COMMAND}")
    return Parameters(
        {name: _cost(run, case) for name, case in calls.items() if measured(run, case)},
        {name: _cost(run, case) for name, case in uploads.items()},
        {scheme: _connection(_result(run, case)) for scheme, case in idle.items()},
        more / 1e6 / (most - 1),
        {scheme: _figure(_result(run, case), "p50_us") / 1e6 for scheme, case in alone.items()},
        int(run.machine["cpus"]),
        1024.0 * float(str(run.machine["memory"]).split()[0]),
    )


def _result(run: Run, name: str) -> Result:
    result = measured(run, name)
    assert result is not None  # what is missing was looked for
    return result


def _figure(result: Result, key: str) -> float:
    if not result.has(key):
        raise ValueError(f"{result.case} has no figure {key!r}: measure again, {COMMAND}")
    return result.median(key)


def _figures(result: Result, keys: Sequence[str]) -> list[float]:
    return [_figure(result, key) for key in keys]


def _cost(run: Run, name: str) -> Cost:
    both_us, server_us, wire_bytes = _figures(_result(run, name), ("cpu_us", ANSWERING, WIRE))
    return Cost(server_us / 1e6, max(0.0, both_us - server_us) / 1e6, wire_bytes)


def _connection(result: Result) -> Connection:
    descriptors, kb, client_kb, allowed, wakeups, idle = _figures(
        result, (DESCRIPTORS, MEMORY, CLIENT_MEMORY, ALLOWED, WAKE_UPS, IDLE)
    )
    return Connection(descriptors, 1e3 * kb, 1e3 * client_kb, allowed, wakeups, idle)
