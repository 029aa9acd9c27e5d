"""What one more client costs a server: CPU for a call and for an upload, and descriptors and memory of a connection.

The parameters of the model in `benchmarks.capacity`, which tells what follows for more clients than there are processes here.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import payloads
from benchmarks.harness import Case, Placement, Round, Sample, timed
from benchmarks.load import cpu_ns
from benchmarks.ours.ways import STORE, TIMEOUT_MS, address_for
from benchmarks.processes import ANSWER_SECONDS, ask_until_stopped, asked_by, launched, receive, spawned
from edgeml_ipc.codec import images
from edgeml_ipc.data import QueuedDataStore
from edgeml_ipc.errors import CodecError, TransportUnavailable
from edgeml_ipc.inference import InferenceClient, InferenceServer
from edgeml_ipc.trainer import TrainerClient, TrainerConfig, TrainerServer

CALLERS = 4  # that keep the server busy, so that it does not spin in between
JPEG = "jpeg:90"
CALLS = {  # name -> scheme, policy for images
    "tcp.64B": ("tcp", None),
    "tcp.921kB": ("tcp", None),
    "tcp.jpeg": ("tcp", JPEG),
    "shm.64B": ("shm", None),
    "shm.921kB": ("shm", None),
}
UPLOADS = {
    "tcp.1kB": (1000, 200),
    "tcp.921kB": (payloads.OBSERVATION_BYTES, 20),
}  # name -> bytes of each, how many in an update
FEW, CONNECTIONS = 10, 200
CALLS_IN_TURN = 2000
NEEDED_DESCRIPTORS = 4096  # for a process with so many clients
MIN_IDLE_SECONDS = 2.0
SETTLE_SECONDS = 0.5  # what a connection starts is over by then

WIRE, DESCRIPTORS, MEMORY = "bytes go there", "descriptors per connection", "kB of memory per connection"
ALLOWED, WAKE_UPS, IDLE = "descriptors allowed", "wake-ups per second when idle", "% of a core when idle"
CLIENT_DESCRIPTORS, CLIENT_MEMORY = "descriptors of a client", "kB of memory of a client"
CALL_OF_FEW = f"µs of the server's CPU for a call, with {FEW} connections"
CALL_OF_MANY = f"µs of the server's CPU for a call, with {FEW + CONNECTIONS} connections"


def scene() -> np.ndarray:
    """Return an image of 640x480 that JPEG makes some 30 kB of, as it does of a room: smooth, with edges and a little noise."""
    down, across = np.mgrid[0:480, 0:640].astype(np.float32)
    light = 110 + 60 * np.sin(down / 90) * np.cos(across / 130)
    boxes = 40 * (((down // 60).astype(int) * 7 + (across // 80).astype(int) * 5) % 3)
    noise = np.random.default_rng(0).normal(0, 3, (480, 640))
    image: np.ndarray = (
        np.stack([light + boxes + noise, light - boxes / 2, light + noise], axis=-1).clip(0, 255).astype(np.uint8)
    )
    return image


def image_for(name: str) -> tuple[np.ndarray, float]:
    """Return what is sent by the calls of that name, and how many bytes of it cross the network.

    Raises:
        TransportUnavailable: simplejpeg is not installed.
    """
    if CALLS[name][1] is None:
        nbytes = payloads.SMALL_BYTES if name.endswith("64B") else payloads.OBSERVATION_BYTES
        return payloads.block(nbytes), nbytes
    image = scene()
    try:
        return image, len(images.to_jpeg(image, int(JPEG.partition(":")[2])))
    except CodecError as error:
        raise TransportUnavailable(str(error)) from error


# ---- calls


def serving(pipe: Any, scheme: str) -> None:
    """Answer 48 bytes to each image, after a look at each of its pages."""
    with InferenceServer(port_num=0, host=address_for(scheme)) as server:
        server.register_interface("act", lambda payload: {"action": payloads.act(payload["image"])})
        server.start(threaded=True)
        pipe.send(server.address)
        pipe.recv()


@contextmanager
def calling(address: str, name: str) -> Iterator[Callable[[], object]]:
    """Enter with one call."""
    image, _ = image_for(name)
    policy = CALLS[name][1]
    with InferenceClient(address, 0, timeout_ms=TIMEOUT_MS, policies={"image": policy} if policy else None) as client:
        yield lambda: client.call("act", {"image": image})


@contextmanager
def calls(placement: Placement, name: str) -> Iterator[Round]:
    """Some clients that call without a pause."""
    _, wire_bytes = image_for(name)
    with ExitStack() as stack:
        server = stack.enter_context(spawned(placement, 0, serving, CALLS[name][0]))
        askers = [
            stack.enter_context(launched(placement.cpu_of_asker(index), {}, ask_until_stopped, calling, (name,)))
            for index in range(CALLERS)
        ]
        for index, asker in enumerate(askers):
            asker.tell(server.said, [server.pid] if index == 0 else [])
        asked = asked_by(askers)

        def run(seconds: float) -> Sample:
            sample = asked(seconds)
            sample.figures[WIRE] = wire_bytes
            return sample

        yield run


# ---- uploads


def learning(pipe: Any, host: str) -> None:
    """Take what is uploaded, and keep the newest."""
    with TrainerServer(TrainerConfig(port_number=0), host=host) as server:
        server.register_data_store(STORE, QueuedDataStore(200))
        server.start(threaded=True)
        pipe.send(server.address)
        pipe.recv()


@contextmanager
def uploads(placement: Placement, name: str) -> Iterator[Round]:
    """`update()` with some transitions in the queue; putting them there is not timed."""
    nbytes, count = UPLOADS[name]
    queue = QueuedDataStore(2 * count)
    row = {**payloads.transition(), "observations": payloads.block(nbytes)}
    row["next_observations"] = row["observations"][:0]  # the next transition has it

    def fill() -> None:
        for _ in range(count):
            queue.insert(row)

    config = TrainerConfig()
    with (
        spawned(placement, 0, learning, address_for(name.partition(".")[0])) as server,
        TrainerClient("bench", server.said, config, data_stores={STORE: queue}, timeout_ms=TIMEOUT_MS) as client,
    ):

        def run(seconds: float) -> Sample:
            sample = timed(client.update, seconds, things=count, prepare=fill, others=[server.pid])
            sample.figures[WIRE] = nbytes
            return sample

        yield run


# ---- connections


def used(pid: int) -> tuple[int, float]:
    """Return (descriptors, kB of memory) of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return len(os.listdir(f"/proc/{pid}/fd")), pages * resource.getpagesize() / 1e3


def slept(pid: int) -> int:
    """Return how often the threads of a process have gone to sleep."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        line = next(line for line in (task / "status").read_text(encoding="ascii").splitlines() if line.startswith("volunt"))
        total += int(line.split()[1])
    return total


def raise_limit() -> int:
    """Allow this process as many descriptors as it may allow itself, and return how many."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return most


def receiving(pipe: Any, scheme: str) -> None:
    """Be the server that many clients are connected to."""
    allowed = raise_limit()
    with InferenceServer(port_num=0, host=address_for(scheme)) as server:
        server.register_interface("act", lambda payload: payload)
        server.start(threaded=True)
        pipe.send((server.address, allowed))
        pipe.recv()


def connecting(pipe: Any, address: str) -> None:
    """Be asked for so many clients more, and for calls that all of them make in turn."""
    if raise_limit() < NEEDED_DESCRIPTORS:
        raise TransportUnavailable(f"{CONNECTIONS} clients in a process need a limit of {NEEDED_DESCRIPTORS} descriptors")
    clients: list[InferenceClient] = []
    with ExitStack() as stack:
        while (told := pipe.recv()) != "stop":
            wanted, asked = told
            clients += [stack.enter_context(InferenceClient(address, 0, timeout_ms=TIMEOUT_MS)) for _ in range(wanted)]
            for number in range(asked):
                clients[number % len(clients)].call("act", {"number": number})
            pipe.send("done")


@contextmanager
def connections(placement: Placement, scheme: str) -> Iterator[Round]:
    """A server with few clients and with many, which call in turn, and then are silent. Each round has a server of its own."""
    with (
        spawned(placement, 0, receiving, scheme) as server,
        launched(placement.cpu_of_asker(0), {}, connecting, server.said[0]) as clients,
    ):

        def told(number: int, asked: int) -> float:
            before = cpu_ns([server.pid])
            clients.pipe.send((number, asked))
            receive(clients.pipe, ANSWER_SECONDS, f"{number} clients to connect, {asked} calls to be answered")
            return (cpu_ns([server.pid]) - before) / 1e3

        def connected(number: int) -> tuple[tuple[int, float], tuple[int, float], float]:
            told(number, FEW + CONNECTIONS)  # each has called once at least
            call_us = told(0, CALLS_IN_TURN) / CALLS_IN_TURN
            time.sleep(SETTLE_SECONDS)
            return used(server.pid), used(clients.pid), call_us

        def run(seconds: float) -> Sample:
            few, own_few, call_of_few = connected(FEW)
            many, own_many, call_of_many = connected(CONNECTIONS)
            times, cpu, began = slept(server.pid), cpu_ns([server.pid]), time.monotonic()
            time.sleep(max(seconds, MIN_IDLE_SECONDS))
            spent = time.monotonic() - began
            figures = {
                DESCRIPTORS: (many[0] - few[0]) / CONNECTIONS,
                MEMORY: (many[1] - few[1]) / CONNECTIONS,
                CLIENT_DESCRIPTORS: (own_many[0] - own_few[0]) / CONNECTIONS,
                CLIENT_MEMORY: (own_many[1] - own_few[1]) / CONNECTIONS,
                CALL_OF_FEW: call_of_few,
                CALL_OF_MANY: call_of_many,
                ALLOWED: float(server.said[1]),
                WAKE_UPS: (slept(server.pid) - times) / spent,
                IDLE: 100 * (cpu_ns([server.pid]) - cpu) / 1e9 / spent,
            }
            return Sample(np.empty(0, np.int64), figures=figures)

        yield run


# ---- cases


def _case(kind: str, name: str, what: str, opened: Callable[[Placement, str], AbstractContextManager[Round]]) -> Case:
    case = f"scale.cost.{kind}.{name}"
    return Case(case, "ours", what, lambda p: opened(p, name), None, "scale.cost", reopen=True, heavy=True)


def _upload(name: str) -> Case:
    nbytes, count = UPLOADS[name]
    what = (
        f"update() with {count} transitions of {payloads.size_name(nbytes)} each over tcp; per second and CPU: of transitions"
    )
    return _case("upload", name, what, uploads)


CASES = [
    *(_case("call", name, f"{CALLERS} clients call one server: {name}, 48 bytes back", calls) for name in CALLS),
    *(_upload(name) for name in UPLOADS),
    *(
        _case("connections", scheme, f"{CONNECTIONS} clients more that are connected over {scheme}", connections)
        for scheme in ("tcp", "shm")
    ),
]
