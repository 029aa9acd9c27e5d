"""Edge clients that ask, upload and subscribe at their own pace: what one server is asked for, and what breaks first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from benchmarks.capacity.formulas import levels, mean_wait, seconds_to_the_last
from benchmarks.capacity.parameters import Connection, Parameters
from benchmarks.payloads import NETWORK_BYTES
from edgeml_ipc.transports._zmq_door import MAX_CONNECTIONS

FULL = 0.8  # of what comes at random: past that, waiting grows faster than clients
PERIOD_SECONDS = 10.0  # between two networks
TRANSITIONS_PER_SECOND = 20.0


class Resource(Enum):
    """What can run out; the value says what a user does then."""

    CALLBACKS = "batch them (`max_batch_size`), or run one server for each device that computes"
    CPU = "more servers, each a process with a port of its own, and a share of the clients each"
    LINK = "send less (`policies`: resize, jpeg, lz4; one relay for each host), or a faster link"
    DESCRIPTORS = "raise the limit (`ulimit -n`)"
    MEMORY = "more servers on other machines"
    CONNECTIONS = f"more servers: one accepts {MAX_CONNECTIONS} connections over tcp"

    @property
    def title(self) -> str:
        """Its name in a table."""
        return "CPU" if self is Resource.CPU else self.name.lower()

    @property
    def limit(self) -> float:
        """The share of it that may be used."""
        return FULL if self in (Resource.CALLBACKS, Resource.CPU, Resource.LINK) else 1.0


@dataclass(frozen=True)
class Server:
    """Where the server is, and how far away its clients.

    Attributes:
        link_bits: per second, each way. connection: what each client costs it while silent.
    """

    link_bits: float
    connection: Connection
    memory_bytes: float

    def standing(self, clients: float) -> dict[Resource, float]:
        """Return the share of what is needed though nothing happens."""
        return {
            Resource.DESCRIPTORS: clients * self.connection.descriptors / self.connection.allowed_descriptors,
            Resource.MEMORY: clients * self.connection.memory_bytes / self.memory_bytes,
            Resource.CONNECTIONS: clients / MAX_CONNECTIONS,
        }


@dataclass(frozen=True)
class Load:
    """What each client does again and again, at random moments.

    Attributes:
        per_second: how often. server_s: CPU time of the server, each time, what the program itself does not included.
        callback_s: that the program itself takes. wire_bytes: towards the server; what comes back is small.
        answered: the client waits for the answer.
    """

    name: str
    per_second: float
    server_s: float
    callback_s: float
    wire_bytes: float
    answered: bool = True

    def shares(self, server: Server, clients: float) -> dict[Resource, float]:
        """Return the share of each resource that so many clients need; 1 is all of it.

        A server runs callbacks one after the other in the thread that also reads and answers, so the two add up; they are
        called by the greater one. zmq's own thread does a part of `server_s` beside it: the server is less busy than this says.
        """
        rate = clients * self.per_second
        thread = Resource.CALLBACKS if self.callback_s > self.server_s else Resource.CPU
        busy = {thread: rate * (self.server_s + self.callback_s), Resource.LINK: rate * 8 * self.wire_bytes / server.link_bits}
        return busy | server.standing(clients)

    def answer_s(self, server: Server, clients: float) -> float:
        """Return the mean time to an answer, without the network's own delay: two queues of M/D/1, the link and the server."""
        rate, wire_s = clients * self.per_second, 8 * self.wire_bytes / server.link_bits
        service_s = self.server_s + self.callback_s
        return wire_s + mean_wait(rate, wire_s) + service_s + mean_wait(rate, service_s)


def fullest(shares: dict[Resource, float]) -> tuple[Resource, float]:
    """Return the resource that is nearest to its limit, or furthest beyond it, and the share of the limit that is used."""
    used = {resource: share / resource.limit for resource, share in shares.items()}
    worst = max(used, key=lambda resource: used[resource])
    return worst, used[worst]


def most_clients(load: Load, server: Server) -> tuple[int, Resource]:
    """Return how many clients the server carries, and what would break with more: all shares grow with the clients."""
    resource, used = fullest(load.shares(server, 1.0))
    return math.floor(1 / used), resource


def usual_loads(known: Parameters, calls_per_second: float, callback_s: float) -> list[Load]:
    """Return what edge clients do: calls with little and much in them, uploads of rows and of images."""

    def call(words: str, name: str, callback: float = 0.0) -> Load:
        cost = known.calls[name]
        return Load(f"call, {words}", calls_per_second, cost.server_s, callback, cost.wire_bytes)

    def upload(words: str, name: str) -> Load:
        cost = known.uploads[name]
        return Load(f"upload, {words}", TRANSITIONS_PER_SECOND, cost.server_s, 0.0, cost.wire_bytes, answered=False)

    calls = [
        call("64 B", "tcp.64B"),
        call(f"64 B, callback {1e3 * callback_s:g} ms", "tcp.64B", callback_s),
        call("image, raw", "tcp.921kB"),
        *([call("image, JPEG", "tcp.jpeg")] if "tcp.jpeg" in known.calls else []),
    ]
    return [*calls, upload("1 kB", "tcp.1kB"), upload("image, raw", "tcp.921kB")]


@dataclass(frozen=True)
class Spreading:
    """A way of getting 50 MB to all clients every ten seconds.

    Attributes:
        fan_out: how many a node of the tree sends to; None: the server sends to all.
        clients_per_host: that share what comes to their host once.
    """

    name: str
    fan_out: int | None
    clients_per_host: int = 1

    def _members(self, clients: int) -> int:
        return math.ceil(clients / self.clients_per_host)

    def _children(self, clients: int) -> int:
        members = self._members(clients)
        return members if self.fan_out is None else min(self.fan_out, members)

    def depth(self, clients: int) -> int:
        """Return how many times the value is passed on over the network before the last has it."""
        return levels(self._members(clients), self._children(clients))

    def shares(self, known: Parameters, server: Server, clients: int) -> dict[Resource, float]:
        """Return the share of each resource that the busiest node needs: the server, or whoever has as many children."""
        children = self._children(clients)
        busy = {
            Resource.CPU: children * known.publish_s / PERIOD_SECONDS,
            Resource.LINK: children * 8 * NETWORK_BYTES / server.link_bits / PERIOD_SECONDS,
        }
        return busy | server.standing(children)

    def last_s(self, known: Parameters, server: Server, clients: int) -> float:
        """Return when the last client has it, if nobody skips a version: what a node needs for one child is link or CPU."""
        each_s = max(8 * NETWORK_BYTES / server.link_bits, known.publish_s)
        return seconds_to_the_last(self._members(clients), self._children(clients), each_s)


def usual_spreadings(clients_per_host: int, fan_outs: Sequence[int]) -> list[Spreading]:
    """Return what is built, direct and by one relay for each host, and what is not: trees of relays on several hosts."""
    return [
        Spreading("direct", None),
        Spreading(f"one relay per host of {clients_per_host}", None, clients_per_host),
        *(Spreading(f"tree of {fan_out} (not built)", fan_out) for fan_out in fan_outs),
    ]
