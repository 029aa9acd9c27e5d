"""Where the time of a call goes: client and server in turns on one thread, each step timed by itself, the least of many.

Two processes would take these steps after one another too, and wait for a cache line twice in between; what is left out here is
that, and what waiting costs. The steps are those of `Client.call` and of the server's loop, called one by one.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.payloads import act
from edgeml_ipc.codec.decoder import decode
from edgeml_ipc.codec.encoder import encode
from edgeml_ipc.inference import InferenceClient, InferenceServer
from edgeml_ipc.protocol import ENVELOPE, MAGIC, REPLY, REQUEST, open_envelope

SECONDS = 5.0
STEPS = (
    "client: encode the payload",
    "client: envelope, send",
    "server: poll",
    "server: admit, decode, call the function, encode, send, remember",
    "client: receive",
    "client: open the envelope, decode",
    "both: let go of what was received",
)


def _least(action: Callable[[], object], repeats: int = 5000) -> int:
    """Return the least of many times, in ns, the clock's own included."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter_ns()
        action()
        times.append(time.perf_counter_ns() - began)
    return min(times)


def call_steps(nbytes: int, repeats: int) -> dict[str, int]:
    """Return step -> the least of `repeats` times in ns, of calls that send an array of so many bytes over shared memory."""
    with InferenceServer(0, host=f"shm://steps-{secrets.token_hex(8)}") as front:
        front.register_interface("act", lambda payload: {"action": act(payload["image"])})
        server = front._server
        with InferenceClient(front.address, 0, timeout_ms=int(SECONDS * 1000)) as asker:
            client, link = asker._client, asker._client._link
            assert link is not None
            method, connection, clock = link.methods["call"], link.connection, time.perf_counter_ns
            request = ("act", {"image": np.zeros(nbytes, np.uint8)})
            least = [1 << 60] * len(STEPS)
            for sequence in range(1, repeats + 1):
                at = [clock()]
                body = client._outgoing.encode(request)
                at.append(clock())
                connection.lend([ENVELOPE.pack(MAGIC, REQUEST, 0, method, sequence, sequence), *body], SECONDS)
                at.append(clock())
                ((peer, parts),) = server._listener.poll(SECONDS)
                at.append(clock())
                assert parts is not None
                server._take(server._sessions.get(peer) or server._begin(peer), parts)
                at.append(clock())
                reply = connection.recv(SECONDS)
                at.append(clock())
                open_envelope(reply[0])
                result = decode(reply, 1, False)
                at.append(clock())
                del parts, reply, result
                at.append(clock())
                least = [min(known, end - begin) for known, begin, end in zip(least, at, at[1:], strict=False)]
    reading = _least(lambda: None) - 20  # the clock, without the call of the empty function
    return {name: max(0, ns - max(0, reading)) for name, ns in zip(STEPS, least, strict=True)}


def parts_of_steps() -> dict[str, int]:
    """Return part -> ns: what the steps of a small call are made of, each in a loop of its own."""
    request: Any = ("act", {"image": np.zeros(64, np.uint8)})
    answer = {"action": np.zeros(6)}
    sent = [bytes(memoryview(part)) for part in encode(request)]
    replied = [bytes(memoryview(part)) for part in encode(answer)]
    envelope = ENVELOPE.pack(MAGIC, REPLY, 0, 0, 1, 1)
    actions: dict[str, Callable[[], object]] = {
        "encode the request": lambda: encode(request),
        "decode the request": lambda: decode(sent, 0, False),
        "encode the reply": lambda: encode(answer),
        "decode the reply": lambda: decode(replied, 0, False),
        "pack an envelope": lambda: ENVELOPE.pack(MAGIC, REPLY, 0, 0, 1, 1),
        "open an envelope": lambda: open_envelope(envelope),
        "call a Python function": lambda: None,
    }
    return {name: _per_call(action) for name, action in actions.items()}


def _per_call(action: Callable[[], object], inner: int = 2000, outer: int = 15) -> int:
    def many() -> None:
        for _ in range(inner):
            action()

    return _least(many, outer) // inner


def page(sizes: tuple[int, ...] = (64, 921_600), repeats: int = 5000) -> str:
    """Return both as Markdown tables, in ns."""
    columns = {size: call_steps(size, repeats) for size in sizes}
    lines = [f"| step of a call, ns | {' | '.join(f'{size:,} bytes' for size in sizes)} |", f"| --- |{' --: |' * len(sizes)}"]
    lines += [f"| {name} | {' | '.join(f'{columns[size][name]:,}' for size in sizes)} |" for name in STEPS]
    lines.append(f"| **sum** | {' | '.join(f'{sum(columns[size].values()):,}' for size in sizes)} |")
    lines += ["", "| of a small call, in a loop of its own | ns |", "| --- | --: |"]
    lines += [f"| {name} | {ns:,} |" for name, ns in parts_of_steps().items()]
    return "\n".join(lines)
