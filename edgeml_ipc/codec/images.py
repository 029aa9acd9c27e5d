"""Images as JPEG and back, and smaller ones out of larger ones. What arrives is not trusted.

An array of images is uint8 with the shape `(height, width)`, which is grey, or `(..., height, width, channels)` with 1 channel,
grey, or 3, red, green and blue. In a message it is one part:

    u32 sizes[n] | JPEG stream 0 | JPEG stream 1 ...     n is the product of the dimensions before `height`, 1 without any

Each stream is baseline JPEG with one scan. Others are refused before they are decoded: a progressive one may have thousands of
scans of a few bytes, and each costs the work of a whole image.
"""

from __future__ import annotations

import math
import struct
from typing import Any, Final

import numpy as np

from edgeml_ipc.codec.libraries import library
from edgeml_ipc.errors import CodecError

MAX_JPEG_PIXELS: Final = 65_500  # per side; libjpeg's own limit
_MOST_YIELD: Final = 256  # bytes of image per byte of stream; one colour all over yields less than 200
_SUBSAMPLING: Final = "420"  # half the colour resolution each way, as most writers do
_START_OF_FRAME: Final = 0xC0  # of baseline JPEG
_START_OF_SCAN: Final = 0xDA
_OTHER_FRAMES: Final = frozenset({*range(0xC1, 0xD0)} - {0xC4, 0xC8, 0xCC})  # progressive, lossless, arithmetic ...

Array = np.ndarray[Any, Any]


def split_shape(shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """Return (images, height, width, channels) of an array of images.

    Raises:
        CodecError: the shape is not that of images.
    """
    if len(shape) == 2:
        return 1, shape[0], shape[1], 1
    if len(shape) < 3 or shape[-1] not in (1, 3):
        raise CodecError(f"images have the shape (height, width) or (..., height, width, 1 or 3), not {shape}")
    return math.prod(shape[:-3]), shape[-3], shape[-2], shape[-1]


def to_jpeg(images: Array, quality: int) -> bytes:
    """Return the part that holds `images`, uint8 of a shape that `split_shape` takes."""
    count, height, width, channels = split_shape(images.shape)
    encode = library("simplejpeg").encode_jpeg
    space = "RGB" if channels == 3 else "GRAY"
    subsampling = _SUBSAMPLING if channels == 3 else "Gray"
    flat = np.ascontiguousarray(images).reshape(count, height, width, channels)
    streams = [encode(image, quality, space, subsampling) for image in flat]
    return b"".join([struct.pack(f"<{count}I", *map(len, streams)), *streams])


def from_jpeg(part: Any, shape: tuple[int, ...]) -> Array:
    """Return the images that a part holds, writable and of that shape.

    Raises:
        CodecError: the part holds something else, or other sizes, or simplejpeg is missing.
    """
    count, height, width, channels = split_shape(shape)
    data = memoryview(part).cast("B")
    begin = 4 * count
    if len(data) < begin:
        raise CodecError(f"a part of {len(data)} bytes cannot hold the sizes of {count} JPEG streams")
    sizes = struct.unpack_from(f"<{count}I", data)
    if begin + sum(sizes) != len(data):
        raise CodecError(f"JPEG streams of {sum(sizes)} bytes in a part that has {len(data) - begin} for them")
    streams = []
    for size in sizes:
        streams.append(bytes(data[begin : begin + size]))
        begin += size
        there = _measured(streams[-1])
        if there != (height, width, channels):
            raise CodecError(f"a JPEG stream of {there} where one of {(height, width, channels)} belongs")
        if math.prod(there) > _MOST_YIELD * size:
            raise CodecError(f"a JPEG stream of {size} bytes cannot hold an image of {there}")
    decode = library("simplejpeg").decode_jpeg
    images: Array = np.empty((count, height, width, channels), np.uint8)
    space = "RGB" if channels == 3 else "GRAY"
    for stream, image in zip(streams, images, strict=True):
        try:
            decode(stream, space, buffer=image)
        except ValueError as error:
            raise CodecError(f"a JPEG stream of {len(stream)} bytes is damaged: {error}") from error
    return images.reshape(shape)


def _measured(stream: bytes) -> tuple[int, int, int]:
    """Return (height, width, channels) as the header of a baseline JPEG stream says.

    Raises:
        CodecError: no such stream, or of more than one scan.
    """
    offset = 2 if stream.startswith(b"\xff\xd8\xff") else len(stream)
    while offset + 10 <= len(stream) and stream[offset] == 0xFF:
        marker = stream[offset + 1]
        if marker == _START_OF_FRAME:
            bits, height, width, channels = struct.unpack_from(">BHHB", stream, offset + 4)
            if bits != 8 or stream.count(b"\xff\xda") != 1:  # within a scan 0xFF is followed by other bytes
                break
            return height, width, channels
        if marker in _OTHER_FRAMES or marker == _START_OF_SCAN:
            break
        offset += 2 + int.from_bytes(stream[offset + 2 : offset + 4], "big")
    raise CodecError(f"{len(stream)} bytes beginning with {stream[:4].hex()} are not a baseline JPEG stream of one scan")


def resize(images: Array, height: int, width: int) -> Array:
    """Return images of another size: the mean of the whole pixels that fall into each new one, the nearest where none does.

    Args:
        images: uint8, of a shape that `split_shape` takes.
    """
    count, old_height, old_width, channels = split_shape(images.shape)
    flat = images.reshape(count, old_height, old_width, channels)
    rows, columns = np.arange(height) * old_height // height, np.arange(width) * old_width // width
    down, across = max(1, old_height // height), max(1, old_width // width)
    kind = np.uint16 if down * across <= 256 else np.uint32  # what the sum of so many uint8 fits in
    tall = sum((flat.take(rows + i, axis=1).astype(kind) for i in range(1, down)), flat.take(rows, axis=1).astype(kind))
    total = sum((tall.take(columns + i, axis=2) for i in range(1, across)), tall.take(columns, axis=2))
    shape = (height, width) if images.ndim == 2 else (*images.shape[:-3], height, width, channels)
    return (total // (down * across)).astype(np.uint8).reshape(shape)
