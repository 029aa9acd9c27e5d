"""PNG files, which keep images without loss."""

from __future__ import annotations

import struct
import zlib
from typing import Any, Final

import numpy as np
import numpy.typing as npt

_COLOUR_TYPES: Final = {1: 0, 3: 2, 4: 6}
CHANNELS: Final = frozenset(_COLOUR_TYPES)
_UP: Final = 2  # filter: each row less the row above
_LEVEL: Final = 1  # of zlib: a camera frame takes milliseconds, and higher ones many times as long


def encode_png(image: npt.NDArray[np.uint8]) -> bytes:
    """Encode an image `(height, width, channels)` of uint8 with 1, 3 or 4 channels.

    Source: https://www.w3.org/TR/png-3/
    """
    height, width, channels = image.shape
    rows: npt.NDArray[Any] = np.empty((height, 1 + width * channels), np.uint8)
    pixels = image.reshape(height, width * channels)
    rows[:, 0] = _UP
    rows[0, 1:] = pixels[0]
    np.subtract(pixels[1:], pixels[:-1], out=rows[1:, 1:])
    header = struct.pack(">IIBBBBB", width, height, 8, _COLOUR_TYPES[channels], 0, 0, 0)
    body = zlib.compress(rows.data, _LEVEL)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", body) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(content, zlib.crc32(kind)))
