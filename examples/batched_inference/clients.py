"""The clients' side: processes that each ask, wait for the answer, and ask again."""

import time

import numpy as np

from edgeml_ipc import InferenceClient
from edgeml_ipc.launch import pipe, spawn


def ask(ip, port, payload, seconds, orders, report):
    """For each interface that is ordered: call it for so many seconds, report latencies (s) and the batches that one was in."""
    observation = np.random.default_rng().normal(size=payload).astype(np.float32)
    with InferenceClient(ip, port, timeout_ms=20_000) as client:
        report.send(client.transport)
        while name := orders.recv():
            latencies, batches = [], []
            end = time.perf_counter() + seconds
            while (began := time.perf_counter()) < end:
                answer = client.call(name, observation)
                latencies.append(time.perf_counter() - began)
                batches.append(answer["batch"])
            report.send((np.array(latencies), np.array(batches)))


def start(ip, port, payload, seconds, number):
    """Start a client; return its process and the ends of two pipes."""
    orders_reader, orders = pipe()
    reports, reports_writer = pipe()
    client = spawn(ask, ip, port, payload, seconds, orders_reader, reports_writer, name=f"client-{number}")
    orders_reader.close()
    reports_writer.close()
    return client, orders, reports


def measure(ip, port, clients, payload, seconds):
    """Yield for each largest batch that the server offers: batch, p50_ms, p99_ms and the rate of requests."""
    with InferenceClient(ip, port, wait_for_server=True, timeout_ms=20_000) as client:
        sizes = sorted(int(name.rpartition("/")[2]) for name in client.interfaces())
    crew = [start(ip, port, payload, seconds, number) for number in range(clients)]
    try:
        transports = {reports.recv() for _, _, reports in crew}
        print(f"connected over {' and '.join(sorted(transports))}")
        for size in sizes:
            for _, orders, _ in crew:
                orders.send(f"policy/{size}")
            latencies, batches = map(np.concatenate, zip(*[reports.recv() for _, _, reports in crew], strict=True))
            p50, p99 = np.percentile(latencies, [50, 99]) * 1e3
            rate = len(latencies) / seconds
            # A batch of n is seen n times, once by each of its clients: the mean over batches, not over requests.
            yield {"size": size, "batch": len(batches) / (1 / batches).sum(), "p50_ms": p50, "p99_ms": p99, "rate": rate}
    finally:
        for process, _, _ in crew:
            process.kill()
            process.join()
