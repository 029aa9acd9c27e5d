"""All ways and cases, what they should reach, and which of them a run has."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks import floors, gym_vectors, replay
from benchmarks.harness import Case, Mark
from benchmarks.ours import codec, costs, idle, publish, ring, scale, uploads
from benchmarks.ours.ways import ServiceWay, TransportWay, UploadWay
from benchmarks.peers import casters
from benchmarks.peers.edgeml_peer import EdgemlWay
from benchmarks.peers.faster_fifo_peer import FasterFifoWay
from benchmarks.peers.grpc_peer import GrpcWay
from benchmarks.peers.iceoryx_peer import IceoryxWay
from benchmarks.peers.portal_peer import PortalWay
from benchmarks.peers.ray_peer import RayWay
from benchmarks.peers.standard import PickledPipeWay, PipeWay, QueueWay
from benchmarks.peers.websockets_peer import WebsocketsWay
from benchmarks.peers.zenoh_peer import ZenohWay
from benchmarks.peers.zmq_peer import OutOfBandWay, PickledWay, RawWay
from benchmarks.shapes import cases
from benchmarks.way import Way

PEERS: tuple[Way, ...] = (
    PipeWay(),
    PickledPipeWay(),
    QueueWay(),
    FasterFifoWay(),
    RawWay("ipc"),
    RawWay("tcp"),
    PickledWay("ipc"),
    PickledWay("tcp"),
    OutOfBandWay("ipc"),
    OutOfBandWay("tcp"),
    EdgemlWay(),
    IceoryxWay("spin"),
    IceoryxWay("event"),
    ZenohWay("tcp"),
    ZenohWay("shm"),
    PortalWay(),
    GrpcWay(),
    WebsocketsWay(),
    RayWay(),
)
MARKS: dict[str, dict[str, tuple[Mark, ...]]] = {
    "transport.shm": {
        "64B": (Mark("p50_us", at_most=2.5), Mark("p50_us", at_least=0.5, of="floor.pingpong.python")),
        "stream.single": (Mark("per_second", at_least=200_000), Mark("p99_us", at_most=1000)),
    },
    "transport.tcp": {"6MB": (Mark("p50_us", at_least=1.0, of="peer.zmq-tcp-multipart.6MB"),)},
    "call.tcp": {"6MB": (Mark("p50_us", at_least=1.0, of="peer.zmq-tcp-multipart.6MB"),)},
    "call.shm": {
        "64B": (Mark("p50_us", at_most=8.0),),
        "921kB": (Mark("per_second", at_least=9000),),
        "921kB.asleep": (Mark("per_second", at_least=3000),),
        "6MB": (Mark("p50_us", at_least=1 / 1.1, of_floor=True, allowance_us=20),),
    },
    "update.shm": {
        "stream.single": (Mark("per_second", at_least=200_000), Mark("p99_us", at_most=1000)),
        "stream.list50": (Mark("per_second", at_least=1_000_000),),
        "stream.stacked50": (Mark("per_second", at_least=3_000_000),),
    },
}
OURS: tuple[Way, ...] = (
    TransportWay("shm"),
    TransportWay("tcp"),
    ServiceWay("shm"),
    ServiceWay("tcp"),
    UploadWay("shm"),
    UploadWay("tcp"),
)
CASES: list[Case] = [
    *floors.CASES,
    *(case for way in PEERS for case in cases(way, {})),
    *casters.CASES,
    *ring.CASES,
    *codec.CASES,
    *(case for way in OURS for case in cases(way, MARKS.get(way.name, {}))),
    *uploads.CASES,
    *publish.CASES,
    *idle.CASES,
    *scale.CASES,
    *costs.CASES,
    *gym_vectors.CASES,
    *replay.CASES,
]


def chosen(cases: Sequence[Case], only: Sequence[str], without: Sequence[str] = (), *, full: bool) -> list[Case]:
    """Return the cases whose names contain one of the words, and the floors that they are compared with.

    Args:
        only: words; none means all, but for what is heavy unless `full`.
        without: words; cases whose names contain one are left out.
    """
    wanted = [case for case in cases if (any(word in case.name for word in only) if only else full or not case.heavy)]
    wanted = [case for case in wanted if not any(word in case.name for word in without)]
    compared = {mark.of for case in wanted for mark in case.marks}
    needed = {case.name for case in wanted} | {case.floor for case in wanted} | compared
    return [case for case in cases if case.name in needed]
