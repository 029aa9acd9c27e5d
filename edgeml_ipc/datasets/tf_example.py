"""TFRecords of tf.train.Examples, written without TensorFlow.

    record    length u64 | masked crc32c of these 8 bytes u32 | Example | masked crc32c of the Example u32
    Example   1: Features { 1: map of name -> Feature, each entry { 1: name, 2: Feature } }
    Feature   1: BytesList { 1: bytes, each by itself } or 2: FloatList { 1: packed } or 3: Int64List { 1: packed }

Source: tensorflow/core/example/{example,feature}.proto and tensorflow/core/lib/io/record_writer.h.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edgeml_ipc.datasets.needs import needed

BYTES: Final = 1
FLOATS: Final = 2
INTS: Final = 3
_MASK_DELTA: Final = 0xA282EAD8
_LONGEST_VARINT: Final = 10


def packed_floats(values: npt.NDArray[Any]) -> bytes:
    """Return the content of a FloatList: what fits float32 exactly goes in without loss."""
    return bytes(np.ascontiguousarray(values, "<f4"))


def packed_ints(values: npt.NDArray[Any]) -> bytes:
    """Return the content of an Int64List: varints, negative numbers as their two's complement."""
    flat = np.ascontiguousarray(values).reshape(-1)
    numbers = flat.view(np.uint64) if flat.dtype == np.uint64 else flat.astype(np.int64).view(np.uint64)
    if not len(numbers) or numbers.max() < 1 << 7:
        return bytes(numbers.astype(np.uint8))
    shifted = numbers[:, None] >> (np.arange(_LONGEST_VARINT, dtype=np.uint64) * np.uint64(7))
    used = np.maximum((shifted != 0).sum(axis=1), 1)
    places = np.arange(_LONGEST_VARINT)
    groups = (shifted & np.uint64(0x7F)).astype(np.uint8) | ((places < used[:, None] - 1) << 7).astype(np.uint8)
    return bytes(groups[places < used[:, None]])


def listed_bytes(values: Iterable[bytes]) -> bytes:
    """Return the content of a BytesList."""
    return b"".join(_field(1, value) for value in values)


def example(features: Mapping[str, tuple[int, bytearray]]) -> bytes:
    """Return a serialized Example.

    Args:
        features: for each name the kind of its list, and the list's content.
    """
    entries = []
    for name, (kind, content) in features.items():
        values = content if kind == BYTES else _field(1, content)
        entries.append(_field(1, _field(1, name.encode()) + _field(2, _field(kind, values))))
    return _field(1, b"".join(entries))


def record(data: bytes) -> tuple[bytes, bytes, bytes]:
    """Return what a TFRecord file has for `data`, in parts.

    Raises:
        ImportError: google-crc32c is missing.
    """
    length = struct.pack("<Q", len(data))
    return length + _masked_crc(length), data, _masked_crc(data)


def check_installed() -> None:
    """Raise `ImportError` if `record` would."""
    needed("google_crc32c", "rlds")


def _masked_crc(data: bytes) -> bytes:
    crc = needed("google_crc32c", "rlds").value(data)
    return struct.pack("<I", (((crc >> 15) | (crc << 17)) + _MASK_DELTA) & 0xFFFFFFFF)


def _field(number: int, content: bytes | bytearray) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    found = bytearray()
    while value >= 1 << 7:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)
