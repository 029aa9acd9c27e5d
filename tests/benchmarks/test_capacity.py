"""The model of scale: formulas against hand-made figures and a simulated loop; what is read, foretold, refused and drawn."""

from __future__ import annotations

import heapq
import json
import math
import random
from pathlib import Path

import pytest

from benchmarks.capacity.checks import checks, free_cores
from benchmarks.capacity.formulas import closed_loop, knee, levels, mean_wait, seconds_to_the_last
from benchmarks.capacity.loads import Load, Resource, Server, Spreading, fullest, most_clients
from benchmarks.capacity.page import Question, page
from benchmarks.capacity.parameters import Connection, Parameters, parameters
from benchmarks.document import Run
from benchmarks.harness import ANSWERING, Result
from benchmarks.ours import costs, scale
from edgeml_ipc.transports._zmq_door import MAX_CONNECTIONS
from tests.benchmarks.test_command_line import benchmarks

SEED = 7
CHEAP = Connection(1.0, 30e3, 100e3, 20_000.0, 20.0, 0.1)


def result(case: str, foreign: float = 0.0, **figures: float) -> Result:
    return Result(case, "ours", case, "unpinned", None, rounds=[figures] * 3, foreign_cores=[foreign] * 3)


def a_run() -> Run:
    """Return a run of a machine on which 64 bytes over tcp cost 20 µs on either side, and clients think 60 µs."""
    connection = {costs.DESCRIPTORS: 1.0, costs.MEMORY: 30.0, costs.CLIENT_MEMORY: 100.0, costs.ALLOWED: 20_000.0}
    connection |= {costs.WAKE_UPS: 20.0, costs.IDLE: 0.1, costs.CALL_OF_FEW: 20.0, costs.CALL_OF_MANY: 25.0}
    results = [result(f"scale.cost.connections.{scheme}", **connection) for scheme in ("tcp", "shm")]
    priced = [*(f"call.{name}" for name in costs.CALLS), *(f"upload.{name}" for name in costs.UPLOADS)]
    for name in priced:
        timed = {"p50_us": 80.0, "p99_us": 90.0, "per_second": 12_500.0, "cpu_us": 40.0}
        results.append(result(f"scale.cost.{name}", **timed, **{ANSWERING: 20.0, costs.WIRE: 1000.0}))
    for scheme in ("tcp", "shm"):
        for clients, p50, rate in ((1, 80.0, 12_500.0), (64, 1280.0, 50_000.0)):
            results.append(
                result(f"scale.clients.{scheme}.{clients}", p50_us=p50, p99_us=2 * p50, per_second=rate, cpu_us=40.0)
            )
        for number in (1, 4, 16):
            timed = {"p50_us": 1e3 * number, "p99_us": 1e3 * number, "per_second": 1.0, "cpu_us": 2000.0 + 2000.0 * number}
            results.append(result(f"scale.{scheme}.50MB.to-{number}", **timed, **{ANSWERING: 500.0 + 1000.0 * number}))
    for number, rate in ((1, 1e6), (2, 1.9e6), (4, 1.9e6)):
        results.append(result(f"scale.actors.{number}", p50_us=1.0, p99_us=1.0, per_second=rate, cpu_us=1.0))
    for number in (1, 2):
        results.append(result(f"scale.device.tcp.{number}", p50_us=1.0, p99_us=1.0, **{scale.MEAN: 2500.0}))
    machine = {"cpus": 2, "memory": "8000000 kB", "cpu": "none", "load_average_before": 0.0}
    return Run(machine, {"size": "quick", "rounds": 3, "seconds": 0.1, "only": ["scale"]}, results)


# ---- formulas


def simulated(clients: int, service_s: float, think_s: float, asked: int = 40_000) -> float:
    """Return the answers per second of clients that think exponential times, at a server that takes the same for each."""
    rng = random.Random(SEED)
    arrivals = [rng.expovariate(1 / think_s) for _ in range(clients)]
    heapq.heapify(arrivals)
    free = 0.0
    for _ in range(asked):
        free = max(free, heapq.heappop(arrivals)) + service_s
        heapq.heappush(arrivals, free + rng.expovariate(1 / think_s))
    return asked / free


def test_a_closed_loop_by_hand() -> None:
    assert closed_loop(1, 1.0, 1.0) == (0.5, 1.0, 0.5)
    two = closed_loop(2, 1.0, 1.0)  # the second meets half a client: R = 1.5, X = 2 / 2.5
    assert two.per_second == pytest.approx(0.8)
    assert two.response_s == pytest.approx(1.5)
    assert two.busy == pytest.approx(0.8)


@pytest.mark.parametrize("clients", [1, 2, 4, 8, 16, 32])
def test_a_closed_loop_is_the_machine_repairman(clients: int) -> None:
    """Erlang's finite-source formula, in which p0 is the share of the time that nobody asks: X = (1 - p0) / S."""
    service, think = 1.0, 7.0
    weights = [math.perm(clients, k) * (service / think) ** k for k in range(clients + 1)]
    assert closed_loop(clients, service, think).per_second == pytest.approx((1 - weights[0] / sum(weights)) / service)


@pytest.mark.parametrize("clients", [1, 2, 4, 8, 16, 32])
def test_a_closed_loop_with_constant_service_is_a_little_faster(clients: int) -> None:
    ratio = simulated(clients, 1.0, 7.0) / closed_loop(clients, 1.0, 7.0).per_second
    assert 0.98 < ratio < 1.12, f"seed {SEED}"


def test_a_closed_loop_keeps_to_its_bounds() -> None:
    for clients in (1, 5, 50, 500):
        rate = closed_loop(clients, 0.002, 0.01).per_second
        assert rate <= min(clients / 0.012, 1 / 0.002) + 1e-9
    assert closed_loop(500, 0.002, 0.01).per_second == pytest.approx(500)
    assert knee(0.012, 500.0) == pytest.approx(6.0)
    with pytest.raises(ValueError, match="0 clients"):
        closed_loop(0, 1.0, 1.0)


def test_a_wait_at_random_arrivals() -> None:
    assert mean_wait(0.5, 1.0) == pytest.approx(0.5)  # 0.5 * 1 / (2 * 0.5)
    assert mean_wait(0.8, 1.0) == pytest.approx(2.0)
    assert mean_wait(0.0, 1.0) == 0.0
    assert mean_wait(1.0, 1.0) == math.inf
    rng, clock, free, waited = random.Random(SEED), 0.0, 0.0, 0.0
    for _ in range(100_000):
        clock += rng.expovariate(0.7)
        waited += max(0.0, free - clock)
        free = max(free, clock) + 1.0
    assert waited / 100_000 == pytest.approx(mean_wait(0.7, 1.0), rel=0.05), f"seed {SEED}"


def test_trees_by_hand() -> None:
    assert [levels(members, 2) for members in (1, 2, 3, 6, 7, 14)] == [1, 1, 2, 2, 3, 3]
    assert levels(100_000, 8) == 6  # 8 + 64 + ... + 8^5 = 37,448; with 8^6 it is 299,592
    assert seconds_to_the_last(100_000, 8, 0.4) == pytest.approx(19.2)
    assert seconds_to_the_last(5, 64, 0.4) == pytest.approx(2.0)  # the server sends to each
    with pytest.raises(ValueError, match="fan-out"):
        levels(3, 0)


# ---- what breaks first


def test_what_breaks_first() -> None:
    server = Server(1e9, CHEAP, 8e9)
    large = Load("image", 10.0, 0.0002, 0.0, 1e6)
    assert most_clients(large, server) == (10, Resource.LINK)  # 10 * 8 Mbit a second each, of 800 Mbit/s
    slow = Load("policy", 10.0, 0.0001, 0.0079, 100.0)
    assert most_clients(slow, server) == (10, Resource.CALLBACKS)  # 10 * 8 ms a second each, of 800 ms
    assert most_clients(Load("small", 10.0, 0.0001, 0.0, 100.0), server) == (800, Resource.CPU)
    silent = Load("silent", 1e-3, 1e-5, 0.0, 10.0)
    assert most_clients(silent, server) == (MAX_CONNECTIONS, Resource.CONNECTIONS)
    tight = Server(1e9, Connection(1.0, 30e3, 100e3, 1000.0, 20.0, 0.1), 8e9)
    assert most_clients(silent, tight) == (1000, Resource.DESCRIPTORS)
    poor = Server(1e9, Connection(1.0, 1e6, 100e3, 20_000.0, 20.0, 0.1), 1e9)
    assert most_clients(silent, poor) == (1000, Resource.MEMORY)
    assert fullest(silent.shares(poor, 2000)) == (Resource.MEMORY, pytest.approx(2.0))


def test_an_answer_waits_for_link_and_server() -> None:
    load, server = Load("call", 10.0, 0.001, 0.001, 125_000.0), Server(1e9, CHEAP, 8e9)  # 2 ms of server, 1 ms of link
    wait = mean_wait(200.0, 0.002) + mean_wait(200.0, 0.001)
    assert load.answer_s(server, 20) == pytest.approx(0.003 + wait)
    assert load.answer_s(server, 50) == math.inf


def test_a_tree_spreads_the_work() -> None:
    known = parameters(a_run())
    server = Server(1e9, CHEAP, 8e9)
    direct, shared, tree = Spreading("direct", None), Spreading("relay", None, 8), Spreading("tree", 8)
    assert direct.shares(known, server, 1000)[Resource.LINK] == pytest.approx(40.0)  # 400 Gbit in 10 s, of 10 Gbit
    assert shared.shares(known, server, 1000)[Resource.LINK] == pytest.approx(5.0)
    assert tree.shares(known, server, 1000)[Resource.LINK] == pytest.approx(0.32)
    assert (direct.depth(1000), shared.depth(1000), tree.depth(1000)) == (1, 1, 4)
    assert tree.last_s(known, server, 1000) == pytest.approx(4 * 8 * 0.4)
    assert direct.last_s(known, server, 10) == pytest.approx(4.0)


# ---- a run


def test_parameters_are_read() -> None:
    known = parameters(a_run())
    assert isinstance(known, Parameters)
    assert (known.calls["tcp.64B"].server_s, known.calls["tcp.64B"].client_s) == pytest.approx((20e-6, 20e-6))
    assert known.publish_s == pytest.approx(1e-3)
    assert known.publish_s_per_mb == pytest.approx(20e-6)
    assert known.memory_bytes == 8_000_000 * 1024
    assert known.connections["tcp"].memory_bytes == 30e3


def test_a_run_is_foretold() -> None:
    run = a_run()
    found = {(check.case, check.figure): check for check in checks(run, parameters(run))}
    assert found["scale.clients.tcp.1", "calls per second"].ratio == pytest.approx(1.0)
    assert found["scale.clients.tcp.1", "calls per second"].used
    assert found["scale.clients.tcp.64", "calls per second"].predicted == pytest.approx(50_000)  # two cores, 40 µs a call
    assert found["scale.tcp.50MB.to-16", "p50, ms"].predicted == pytest.approx(17.0)  # (2 + 2 * 16) ms on two cores
    assert not found["scale.tcp.50MB.to-16", "p50, ms"].used
    assert found["scale.actors.4", "rows per second"].predicted == pytest.approx(2e6)
    device = found["scale.device.tcp.2", "mean to an answer, ms"]  # 2.02 ms of service, 10.06 in between, 0.06 of them to wait
    assert (device.predicted, device.measured) == pytest.approx((2.02 * (1 + 2.02 / 12.08) + 0.06, 2.5))
    assert found["scale.cost.connections.tcp", "µs of the server for a call"].ratio == pytest.approx(0.8)
    assert free_cores(2, result("x", foreign=0.5)) == pytest.approx(1.5)
    assert free_cores(2, result("x", foreign=1.9)) == pytest.approx(1.0)


def test_a_page_says_what_breaks_and_that_trees_are_not_built() -> None:
    run = a_run()
    text = page(run, parameters(run), Question(callback_s=0.01))
    assert "| call, 64 B, callback 10 ms | 1 Gbit/s | 7 | callbacks |" in text
    assert "**Trees over several hosts are not built**" in text
    assert "taken on a quiet machine" in text
    assert f"accepts {MAX_CONNECTIONS} connections" in text
    for one in run.results:
        one.foreign_cores = [0.9]
    assert "**taken on a busy machine**" in page(run, parameters(run), Question())


def test_without_jpeg_the_others_stay() -> None:
    run = a_run()
    run.results[:] = [one for one in run.results if not one.case.endswith("jpeg")]
    text = page(run, parameters(run), Question())
    assert "image, JPEG" not in text
    assert "| call, image, raw |" in text


@pytest.mark.parametrize("gone", ["scale.cost.call.tcp.64B", "scale.cost.connections.tcp", "scale.clients.shm.1"])
def test_what_is_missing_is_named(gone: str) -> None:
    run = a_run()
    run.results[:] = [one for one in run.results if one.case != gone]
    with pytest.raises(ValueError, match=rf"{gone}.*python -m benchmarks run --only scale --json FILE"):
        parameters(run)


def test_an_older_run_is_refused() -> None:
    run = a_run()
    for one in run.results:
        one.rounds = [{key: value for key, value in figures.items() if key != ANSWERING} for figures in one.rounds]
    with pytest.raises(ValueError, match="measure again"):
        parameters(run)


# ---- the command


def test_the_command_prints_and_draws(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    a_run().write(path)
    printed = benchmarks("capacity", str(path), "--link-gbit", "2.5", "--callback-ms", "5", "--clients-per-host", "4")
    assert printed.returncode == 0, printed.stderr
    assert "callback 5 ms | 2.5 Gbit/s |" in printed.stdout
    assert "| one relay per host of 4 | 2.5 Gbit/s |" in printed.stdout
    wrote = benchmarks("capacity", str(path), "--out", str(tmp_path / "out"))
    assert wrote.returncode == 0, wrote.stderr
    assert "![capacity](capacity.svg)" in (tmp_path / "out" / "capacity.md").read_text(encoding="utf-8")
    assert "knee: 4.0" in (tmp_path / "out" / "capacity.svg").read_text(
        encoding="utf-8"
    )  # 80 µs alone, 50,000 a second at most


def test_the_command_refuses_what_is_no_run(tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    for text in (
        "",
        "{}",
        "[1]",
        "no JSON",
        json.dumps({"format": 2}),
        json.dumps({"format": 2, "machine": {}, "settings": {}}),
    ):
        path.write_text(text, encoding="utf-8")
        done = benchmarks("capacity", str(path))
        assert (done.returncode, done.stdout) == (2, ""), text
        assert f"{path} was not written by `python -m benchmarks run --json`" in done.stderr
        assert done.stderr.count("\n") == 1, done.stderr
    for word in ("--link-gbit=0", "--calls-per-second=nan", "--callback-ms=-1", "--clients-per-host=0"):
        assert benchmarks("capacity", str(path), word).returncode == 2


def test_help_says_what_it_needs() -> None:
    told = benchmarks("capacity", "--help")
    assert told.returncode == 0
    assert "python -m benchmarks run --only scale --json FILE" in " ".join(told.stdout.split())


def test_what_a_connection_costs_is_measured(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    only = (
        "--only",
        "scale.cost.connections.tcp",
        "--only",
        "scale.cost.upload.tcp.1kB",
        "--only",
        "scale.cost.call.shm.64B",
        "--only",
        "scale.device.tcp.2",
    )
    done = benchmarks("run", "--quick", "--json", str(path), *only)
    assert done.returncode == 0, done.stdout + done.stderr
    found = {one["case"]: one["rounds"][0] for one in json.loads(path.read_text(encoding="utf-8"))["results"]}
    silent = found["scale.cost.connections.tcp"]
    assert silent[costs.DESCRIPTORS] == 1.0
    assert 1 < silent[costs.MEMORY] < 1000
    assert silent[costs.CALL_OF_FEW] > 0
    assert silent[costs.CALL_OF_MANY] > 0
    assert silent[costs.ALLOWED] >= costs.NEEDED_DESCRIPTORS
    for name in ("scale.cost.upload.tcp.1kB", "scale.cost.call.shm.64B"):
        assert 0 < found[name][ANSWERING] < found[name]["cpu_us"]
    assert found["scale.device.tcp.2"][scale.MEAN] > 1e6 * scale.DEVICE_SECONDS
    refused = benchmarks("capacity", str(path))
    assert refused.returncode == 2
    assert "the run lacks scale.cost.call.tcp.64B, " in refused.stderr
