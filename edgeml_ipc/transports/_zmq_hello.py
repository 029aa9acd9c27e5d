"""The first message of a connection: what a client says of itself, as bytes. No sockets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import zmq

from edgeml_ipc.transports import _zmq_frames as wire
from edgeml_ipc.transports.base import MAX_HELLO_BYTES, MAX_TOPICS

BOOT_ID_BYTES: Final = 16
_WANTS_SHM: Final = 1
_PARTS: Final = 4


@dataclass(frozen=True, slots=True)
class HelloInfo:
    """What a client said when it connected.

    Attributes:
        hello: the blob of the layer above.
        boot_id: 16 bytes, equal to `boot_id()` here if the client says that it runs on this kernel. A claim, not a proof.
        wants_shm: the client would rather talk through shared memory.
        topics: to which it subscribes.
    """

    hello: bytes
    boot_id: bytes
    wants_shm: bool
    topics: tuple[int, ...]


Offer: TypeAlias = Callable[[HelloInfo], bytes]


def boot_id() -> bytes:
    """Return 16 bytes that every process of this running kernel shares, and no other machine has."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return bytes.fromhex(file.read().strip().replace("-", ""))


def write_hello(hello: bytes, topics: Sequence[int], wants_shm: bool) -> list[bytes]:
    """Return the parts of a HELLO."""
    return [boot_id(), bytes([_WANTS_SHM * wants_shm]), bytes(topics), hello]


def read_hello(first: bytes, rest: Sequence[zmq.Frame]) -> HelloInfo:
    """Read a HELLO from its head frame and the frames after it.

    Raises:
        Malformed: it is not one.
    """
    head = wire.read_head(first)
    parts, _ = wire.unpack(head.part_count, first, rest, 2 * MAX_HELLO_BYTES)
    if len(parts) != _PARTS:
        raise wire.Malformed(f"a HELLO of {len(parts)} parts")
    boot, wishes, topics, hello = map(bytes, parts)
    if len(boot) != BOOT_ID_BYTES or len(wishes) != 1 or len(hello) > MAX_HELLO_BYTES:
        raise wire.Malformed(f"a HELLO with parts of {len(boot)}, {len(wishes)} and {len(hello)} bytes")
    if len(set(topics)) != len(topics) or any(topic >= MAX_TOPICS for topic in topics):
        raise wire.Malformed(f"a HELLO with topics {list(topics)}")
    return HelloInfo(hello, boot, bool(wishes[0] & _WANTS_SHM), tuple(topics))
