"""What the model says of cases that were measured in the same run, beside what was measured."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.capacity.formulas import closed_loop
from benchmarks.capacity.parameters import SCHEMES, Parameters, measured, subscribers
from benchmarks.document import Run
from benchmarks.harness import Result
from benchmarks.ours.costs import CALL_OF_FEW, CALL_OF_MANY
from benchmarks.ours.scale import DEVICE_CLIENTS, DEVICE_SECONDS, MEAN, THINK_SECONDS

CLIENTS, ACTORS = (1, 2, 4, 8, 16, 32, 64), (2, 4, 8)
FITTED = (1, 4)  # numbers of subscribers whose CPU time is used to predict the others


@dataclass(frozen=True)
class Check:
    """One figure of one case.

    Attributes:
        used: the case gave a parameter, so it is not foretold.
    """

    case: str
    figure: str
    predicted: float
    measured: float
    used: bool = False

    @property
    def ratio(self) -> float:
        """Predicted over measured."""
        return self.predicted / self.measured


def free_cores(cpus: int, result: Result) -> float:
    """Return the cores that others left to a case; half of the machine at least, for the kernel shares."""
    return max(cpus / 2, cpus - result.foreign())


def calls_per_second(known: Parameters, scheme: str, clients: int, cores: float) -> float:
    """Return what clients get that call without a pause, on the same machine as their server.

    The least of two bounds: the closed loop, in which a client "thinks" for all that is not the server's CPU time when it is
    alone; and the CPUs, which all together are asked for the CPU time of both sides with each call.
    """
    cost = known.calls[f"{scheme}.64B"]
    think_s = max(0.0, known.alone_s[scheme] - cost.server_s)
    return min(closed_loop(clients, cost.server_s, think_s).per_second, most_per_second(known, scheme, cores))


def most_per_second(known: Parameters, scheme: str, cores: float) -> float:
    """Return the most calls per second on one machine: by the server, which is one process, or by all CPUs."""
    cost = known.calls[f"{scheme}.64B"]
    return min(1 / cost.server_s, cores / (cost.server_s + cost.client_s))


def checks(run: Run, known: Parameters) -> list[Check]:
    """Compare what there is."""
    found: list[Check] = []
    for scheme in SCHEMES:
        for number in CLIENTS:
            result = measured(run, f"scale.clients.{scheme}.{number}")
            if result:
                rate = calls_per_second(known, scheme, number, free_cores(known.cpus, result))
                used = number == 1
                found.append(Check(result.case, "calls per second", rate, result.median("per_second"), used))
                found.append(Check(result.case, "p50, µs", 1e6 * number / rate, result.median("p50_us"), used))
        found += _publishing(run, known, scheme)
    return found + _on_one_device(run, known) + _inserting(run, known) + _connected(run)


def device_loop_s(known: Parameters) -> tuple[float, float, float]:
    """Return service, think time, and what a call takes beside its service, where a callback waits for a device."""
    server_s = known.calls["tcp.64B"].server_s
    beside_s = max(0.0, known.alone_s["tcp"] - server_s)
    return DEVICE_SECONDS + server_s, THINK_SECONDS + beside_s, beside_s


def device_answer_ms(known: Parameters, clients: int) -> float:
    """Return how long clients wait on average that think between calls."""
    service_s, think_s, beside_s = device_loop_s(known)
    return 1e3 * (closed_loop(clients, service_s, think_s).response_s + beside_s)


def _on_one_device(run: Run, known: Parameters) -> list[Check]:
    results = {number: measured(run, f"scale.device.tcp.{number}") for number in DEVICE_CLIENTS}
    return [
        Check(result.case, "mean to an answer, ms", device_answer_ms(known, number), result.median(MEAN) / 1e3)
        for number, result in results.items()
        if result
    ]


def _publishing(run: Run, known: Parameters, scheme: str) -> list[Check]:
    """Say how long 50 MB take to n subscribers on one machine: (a + b n) of CPU time, over the cores."""
    results = subscribers(run, scheme)
    if not all(number in results for number in FITTED):
        return []
    few, many = FITTED
    each_us = (results[many].median("cpu_us") - results[few].median("cpu_us")) / (many - few)
    once_us = results[few].median("cpu_us") - few * each_us
    found = []
    for number, result in results.items():
        us = (once_us + each_us * number) / min(1 + number, free_cores(known.cpus, result))
        found.append(Check(result.case, "p50, ms", us / 1e3, result.median("p50_us") / 1e3, number in FITTED))
    return found


def _connected(run: Run) -> list[Check]:
    """Say what a call costs a server with many connections: what it costs one with few."""
    results = [measured(run, f"scale.cost.connections.{scheme}") for scheme in SCHEMES]
    return [
        Check(result.case, "µs of the server for a call", result.median(CALL_OF_FEW), result.median(CALL_OF_MANY))
        for result in results
        if result and result.has(CALL_OF_MANY)
    ]


def _inserting(run: Run, known: Parameters) -> list[Check]:
    """Say how many rows n actors insert: n times what one does, but no more than the cores have time for."""
    alone = measured(run, "scale.actors.1")
    found = []
    for number in ACTORS if alone else ():
        result = measured(run, f"scale.actors.{number}")
        if alone and result:
            bound = free_cores(known.cpus, result) / (alone.median("cpu_us") / 1e6)
            rate = min(number * alone.median("per_second"), bound)
            found.append(Check(result.case, "rows per second", rate, result.median("per_second")))
    return found
