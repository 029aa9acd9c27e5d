"""Arrays that travel as something shorter than their bytes: JPEG, lz4, zstd. A receiver needs no settings, the message says it.

What a message may yield is bounded before anything is decompressed, and each array must yield exactly what its shape says.
"""

from __future__ import annotations

import math
from typing import Any, Final, NamedTuple

import numpy as np

from edgeml_ipc.codec import images, wire
from edgeml_ipc.codec.libraries import library
from edgeml_ipc.errors import CodecError

LIBRARIES: Final = {"jpeg": "simplejpeg", "lz4": "lz4.block", "zstd": "zstandard"}

Array = np.ndarray[Any, Any]


class CompressedArray(NamedTuple):
    """What stands for an array in a tree that is about to be encoded.

    Attributes:
        codec: a key of `LIBRARIES`. data: what it made of the array. dtype, shape: of the array.
    """

    codec: str
    data: bytes
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


def compress(array: Array, codec: str, level: int) -> CompressedArray:
    """Compress an array.

    Args:
        array: C-contiguous and little-endian; for "jpeg" images as `images.split_shape` takes.
        level: quality of "jpeg", level of "zstd".
    Raises:
        CodecError: the codec's library is missing.
    """
    if codec == "jpeg":
        data = images.to_jpeg(array, level)
    elif codec == "lz4":
        data = library("lz4.block").compress(array.view(np.uint8), store_size=False)
    else:
        data = library("zstandard").ZstdCompressor(level=level).compress(array.view(np.uint8))
    return CompressedArray(codec, data, array.dtype, array.shape)


def decompress(text: bytes, part: Any, most_bytes: int) -> Array:
    """Return the array that `describe` told of, in memory of its own.

    Args:
        part: what `compress` made.
        most_bytes: how much it may yield.
    Raises:
        CodecError: anything does not fit: codec, dtype, shape, size; or the codec's library is missing.
    """
    codec, _, array_text = text.partition(b":")
    dtype, shape = wire.parse_array_text(array_text)
    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes > most_bytes:
        raise CodecError(f"compressed arrays of more than {wire.MAX_INFLATED_BYTES} bytes in one message; one is {shape}")
    if codec == b"jpeg":
        if dtype != np.uint8:
            raise CodecError(f"a JPEG image of dtype {dtype.name}")
        return images.from_jpeg(part, shape)
    if codec == b"lz4":
        data = _from_lz4(part, nbytes)
    elif codec == b"zstd":
        data = _from_zstd(part, nbytes)
    else:
        raise CodecError(f"an array compressed by {codec[:32]!r}; this version knows {', '.join(LIBRARIES)}")
    if len(data) != nbytes:
        raise CodecError(f"{dtype.name}{list(shape)} has {nbytes} bytes, but its part yields {len(data)}")
    return np.ndarray(shape, dtype, data)


def _from_lz4(part: Any, nbytes: int) -> bytes:
    lz4 = library("lz4.block")
    try:
        return lz4.decompress(part, uncompressed_size=nbytes)  # type: ignore[no-any-return]
    except lz4.LZ4BlockError as error:
        raise CodecError(f"lz4 data is damaged, or yields more than {nbytes} bytes: {error}") from error


def _from_zstd(part: Any, nbytes: int) -> bytes:
    zstd = library("zstandard")
    try:
        said = zstd.frame_content_size(part)
        if said != nbytes:  # checked first, because the size that a frame says is what the library allocates
            raise CodecError(f"zstd data that yields {said} bytes in the place of {nbytes}")
        return zstd.ZstdDecompressor().decompress(part, allow_extra_data=False)  # type: ignore[no-any-return]
    except zstd.ZstdError as error:
        raise CodecError(f"zstd data is damaged: {error}") from error


def describe(array: CompressedArray) -> bytes:
    """Return codec, dtype and shape as the header holds them, such as `jpeg:uint8:480,640,3`."""
    return f"{array.codec}:".encode() + wire.array_text(array.dtype, array.shape)
