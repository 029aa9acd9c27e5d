"""The frames of the `tcp` transport as bytes: heads, inline parts, limits. No sockets.

One message is one zmq message: a head frame, then one frame for each part of `INLINE_LIMIT` bytes or more. A head frame, all
little-endian:

    0       2         3      4       8         16               24            32      34      40
    | magic | version | kind | count | session | taken_messages | taken_bytes | topic | zeros | u32 sizes[count] | inline parts
    | u16   | u8      | u8   | u32   | u64     | u64            | u64         | u16   |

A size of 0xFFFFFFFF says that the part is the next frame; each inline part begins at a multiple of 64. Small parts share the
head frame, so that a message of ten arrays does not cost ten frames. zmq may cut frames under 8 KiB out of its read buffer at
any alignment, hence the limit: one over it is allocated on its own, aligned to 8 bytes, and inline parts are aligned to 16.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

import zmq

from edgeml_ipc.errors import MessageTooLarge
from edgeml_ipc.transports.base import MAX_HELLO_BYTES, MAX_PARTS, Buffer, Parts

MAGIC: Final = 0x6DE5
VERSION: Final = 1

HELLO: Final = 1
WELCOME: Final = 2
REJECT: Final = 3
INCOMPATIBLE: Final = 4
DATA: Final = 5
TOPIC: Final = 6
CREDIT: Final = 7
BYE: Final = 8
FAILED: Final = 9

HEAD: Final = struct.Struct("<HBBIQQQH6x")
PREFIX: Final = struct.Struct("<HBB")  # the same in every version
INLINE_LIMIT: Final = 8192
# Below, a copy is no slower than what pyzmq does to learn that zmq lets go, on a thread of its own: measured at 0.9 MB.
REFERENCED_FROM_BYTES: Final = 1 << 20
OWN_FRAME: Final = 0xFFFFFFFF
ALIGNMENT: Final = 64
PART_COST_BYTES: Final = 128
NO_TOPIC: Final = 0xFFFF
MAX_ANSWER_BYTES: Final = 1 << 20  # to a HELLO
# What one frame may hold beside the parts' own bytes: the table, and up to ALIGNMENT bytes of padding for each part.
FRAME_OVERHEAD_BYTES: Final = HEAD.size + MAX_PARTS * (4 + ALIGNMENT) + MAX_HELLO_BYTES
_ZEROS: Final = bytes(ALIGNMENT)


class Malformed(Exception):
    """A peer sent bytes that this format does not allow. Never leaves the transport."""


class Head(NamedTuple):
    """The fixed part of a head frame."""

    kind: int
    part_count: int
    session: int
    taken_messages: int
    taken_bytes: int
    topic: int


class Packed(NamedTuple):
    """One message, copied and ready for any number of receivers.

    Attributes:
        part_count: number of parts.
        body: what follows the fixed head in the head frame.
        frames: one for each part that is not inline.
        lent: tells of each frame that refers to the owner's memory when zmq has let go of it; see `pack`.
        payload_bytes: sum over the parts.
        cost_bytes: what it counts against a window; both sides compute it alike.
    """

    part_count: int
    body: bytes
    frames: list[zmq.Frame]
    lent: list[zmq.MessageTracker]
    payload_bytes: int
    cost_bytes: int


def cost(payload_bytes: int, count: int) -> int:
    """Return what a message counts against a window: its bytes, and what keeping its parts costs the receiver."""
    return payload_bytes + PART_COST_BYTES * count


def flat_part(part: Buffer) -> bytes | memoryview:
    """Return a part as flat bytes, without a copy unless its item format forbids to look at it that way."""
    if type(part) is bytes:
        return part
    view = memoryview(part)
    if view.nbytes == 0:
        return b""
    if view.ndim == 1 and view.itemsize == 1 and view.c_contiguous:
        return view
    if not view.c_contiguous:
        raise ValueError(f"a part must be C-contiguous; this one has shape {view.shape} and strides {view.strides}")
    try:
        return view.cast("B")
    except TypeError:  # formats that memoryview does not know, such as complex numbers
        return view.tobytes()


def checked_size(flat: Sequence[bytes | memoryview], max_message_bytes: int, address: str) -> int:
    """Return the sum of the bytes of flat parts.

    Raises:
        MessageTooLarge: over `max_message_bytes` or MAX_PARTS.
    """
    if not 1 <= len(flat) <= MAX_PARTS:
        raise MessageTooLarge(f"{address}: a message has 1 to {MAX_PARTS} parts, this one has {len(flat)}")
    payload_bytes = sum(map(len, flat))
    if payload_bytes > max_message_bytes:
        raise MessageTooLarge(f"{address}: a message of {payload_bytes} bytes, the limit is {max_message_bytes}")
    return payload_bytes


def pack(parts: Parts, max_message_bytes: int, address: str, *, owned: bool = False, lent: bool = False) -> Packed:
    """Copy `parts` into one message; large `bytes`, which cannot change, are referenced.

    Args:
        owned: the parts will never change; those that are not inline are then referenced, not copied.
        lent: the parts will not change while zmq has them; large ones are then referenced, and `Packed.lent` tells.
    Raises:
        MessageTooLarge: over `max_message_bytes` or MAX_PARTS.
    """
    flat = [flat_part(part) for part in parts]
    payload_bytes = checked_size(flat, max_message_bytes, address)
    sizes: list[int] = []
    frames: list[zmq.Frame] = []
    trackers: list[zmq.MessageTracker] = []
    table_end = HEAD.size + 4 * len(flat)
    blocks: list[bytes | memoryview] = [b"", _ZEROS[: -table_end % ALIGNMENT]]
    for part in flat:
        size = len(part)
        if size >= INLINE_LIMIT:
            sizes.append(OWN_FRAME)
            if owned or size < REFERENCED_FROM_BYTES:
                frames.append(zmq.Frame(part, copy=not owned))
            elif type(part) is bytes:
                frames.append(zmq.Frame(part, copy=False))
            elif lent:
                frames.append(frame := zmq.Frame(part, copy=False, track=True))
                trackers.append(frame.tracker)
            else:
                frames.append(zmq.Frame(part, copy=True))
        else:
            sizes.append(size)
            blocks += (part, _ZEROS[: -size % ALIGNMENT])
    blocks[0] = struct.pack(f"<{len(sizes)}I", *sizes)
    return Packed(len(flat), b"".join(blocks), frames, trackers, payload_bytes, cost(payload_bytes, len(flat)))


def head(kind: int, session: int = 0, taken: tuple[int, int] = (0, 0), topic: int = NO_TOPIC, count: int = 0) -> bytes:
    """Return the fixed part of a head frame, which is all of it for a message without parts."""
    return HEAD.pack(MAGIC, VERSION, kind, count, session, *taken, topic)


def read_prefix(frame: bytes) -> tuple[int, int]:
    """Return (version, kind) of a head frame of whatever version."""
    if len(frame) < PREFIX.size:
        raise Malformed(f"a head frame of {len(frame)} bytes")
    magic, version, kind = PREFIX.unpack_from(frame)
    if magic != MAGIC:
        raise Malformed(f"magic {magic:#06x}, expected {MAGIC:#06x}")
    return version, kind


def read_head(frame: bytes) -> Head:
    """Read the fixed part of a head frame of this version."""
    if len(frame) < HEAD.size:
        raise Malformed(f"a head frame of {len(frame)} bytes, expected at least {HEAD.size}")
    magic, version, kind, count, session, taken_messages, taken_bytes, topic = HEAD.unpack_from(frame)
    if magic != MAGIC or version != VERSION:
        raise Malformed(f"magic {magic:#06x} and version {version}, expected {MAGIC:#06x} and {VERSION}")
    if count > MAX_PARTS:
        raise Malformed(f"{count} parts, at most {MAX_PARTS} are allowed")
    return Head(kind, count, session, taken_messages, taken_bytes, topic)


def unpack(count: int, frame: bytes, rest: Sequence[zmq.Frame], max_message_bytes: int) -> tuple[list[memoryview], int]:
    """Return the parts of a message as read-only views, and the sum of their bytes.

    Args:
        count: number of parts, from the head.
        frame: the head frame.
        rest: the frames after it, which the views keep alive.
    Raises:
        Malformed: sizes, frames and count do not fit together, or the sum is over `max_message_bytes`.
    """
    table_end = HEAD.size + 4 * count
    if len(frame) < table_end:
        raise Malformed(f"a head frame of {len(frame)} bytes cannot hold {count} sizes")
    offset = table_end + -table_end % ALIGNMENT
    inline = memoryview(frame)
    own = iter(rest)
    parts: list[memoryview] = []
    payload_bytes = 0
    for size in struct.unpack_from(f"<{count}I", frame, HEAD.size):
        if size == OWN_FRAME:
            following = next(own, None)
            if following is None:
                raise Malformed(f"{len(rest)} frames after the head, more were announced")
            part = following.buffer.toreadonly()
        elif size < INLINE_LIMIT and offset + size <= len(frame):
            part = inline[offset : offset + size]
            offset += size + -size % ALIGNMENT
        else:
            raise Malformed(f"an inline part of {size} bytes at {offset} in a head frame of {len(frame)}")
        payload_bytes += len(part)
        parts.append(part)
    if next(own, None) is not None:
        raise Malformed(f"{len(rest)} frames after the head, fewer were announced")
    if payload_bytes > max_message_bytes:
        raise Malformed(f"a message of {payload_bytes} bytes, the limit is {max_message_bytes}")
    return parts, payload_bytes
