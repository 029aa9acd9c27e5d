"""Images as JPEG, trees as bytes, hashes. Nothing is pickled."""

from __future__ import annotations

import hashlib
import struct
import sys
import zlib
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edgeml_ipc import codec
from edgeml_ipc.errors import CodecError

_JPEG_QUALITY: Final = 95
_COUNT: Final = struct.Struct("<I")
_LENGTH: Final = struct.Struct("<Q")
_MAX_PARTS: Final = 16384
_MAX_BYTES: Final = 1 << 30  # that compressed bytes may grow to

Image = npt.NDArray[np.uint8]


def mat_to_jpeg(img: Image) -> bytes:
    """Return an image `(height, width, 3)`, blue first as OpenCV has it, or `(height, width)`, as JPEG of quality 95."""
    jpeg = _simplejpeg()
    image = np.ascontiguousarray(img if img.ndim == 3 else img[..., None])
    space = "BGR" if image.shape[2] == 3 else "GRAY"
    encoded: bytes = jpeg.encode_jpeg(image, quality=_JPEG_QUALITY, colorspace=space, colorsubsampling="420")
    return encoded


def jpeg_to_mat(buf: bytes) -> Image:
    """Return what `mat_to_jpeg` encoded as `(height, width, 3)` uint8, blue first."""
    decoded: Image = _simplejpeg().decode_jpeg(buf, colorspace="BGR")
    return decoded


def _simplejpeg() -> Any:
    try:
        import simplejpeg
    except ImportError as error:
        raise ImportError("JPEG needs simplejpeg: pip install 'edgeml_ipc[video]'") from error
    return simplejpeg


def compute_hash(obj: Any) -> str:
    """Return the MD5 of a tree as hexadecimal digits; not those that edgeml computed, which depend on pickle."""
    return hashlib.md5(tree_to_bytes(obj), usedforsecurity=False).hexdigest()


def make_compression_method(compression: str) -> tuple[Callable[[Any], bytes], Callable[[bytes], Any]]:
    """Return a function from a tree to compressed bytes, and the one back.

    Args:
        compression: "lz4", which is faster, or "zlib", which compresses more.
    Raises:
        ValueError: another one. ImportError: "lz4" without the extra `compress`. The second function raises `CodecError` for
            bytes that are none of the first's.
    """
    if compression == "zlib":
        return lambda tree: zlib.compress(tree_to_bytes(tree)), lambda data: bytes_to_tree(_inflated(data))
    if compression != "lz4":
        raise ValueError(f"compression must be 'lz4' or 'zlib', got {compression!r}")
    try:
        import lz4.frame as lz4
    except ImportError as error:
        raise ImportError("compression='lz4' needs lz4: pip install 'edgeml_ipc[compress]'") from error

    def decompress(data: bytes) -> Any:
        frame = lz4.LZ4FrameDecompressor()
        try:
            raw = frame.decompress(data, max_length=_MAX_BYTES)
        except RuntimeError as error:
            raise CodecError(f"the bytes are not compressed by lz4: {error}") from error
        return bytes_to_tree(_whole(raw, frame.eof))

    return lambda tree: lz4.compress(tree_to_bytes(tree)), decompress


def _inflated(data: bytes) -> bytes:
    stream = zlib.decompressobj()
    try:
        raw = stream.decompress(data, _MAX_BYTES)
    except zlib.error as error:
        raise CodecError(f"the bytes are not compressed by zlib: {error}") from error
    return _whole(raw, stream.eof)


def _whole(raw: bytes, at_end: bool) -> bytes:
    if not at_end:
        raise CodecError(f"the compressed bytes are cut off, or grow past the limit of {_MAX_BYTES} bytes")
    return raw


def tree_to_bytes(tree: Any) -> bytes:
    """Return a tree as one piece of bytes: the number of parts, their lengths, the parts."""
    parts = [memoryview(part).cast("B") for part in codec.encode(tree)]
    return b"".join([_COUNT.pack(len(parts)), *(_LENGTH.pack(len(part)) for part in parts), *parts])


def bytes_to_tree(data: bytes) -> Any:
    """Return the tree of `tree_to_bytes`; its arrays are writable copies.

    Raises:
        CodecError: the bytes are none of it.
    """
    view = memoryview(data)
    if len(view) < _COUNT.size:
        raise CodecError(f"{len(view)} bytes are no tree")
    (count,) = _COUNT.unpack_from(view)
    at = _COUNT.size + count * _LENGTH.size
    if count > _MAX_PARTS or at > len(view):
        raise CodecError(f"{len(view)} bytes cannot be a tree of {count} parts")
    parts = []
    for (length,) in _LENGTH.iter_unpack(view[_COUNT.size : at]):
        parts.append(view[at : at + length])
        at += length
    if at != len(view):
        raise CodecError(f"the parts have {at} bytes, and there are {len(view)}")
    return codec.decode(parts, copy=True)


def print_size(obj: Any) -> None:
    """Print how much memory an object takes, without what it refers to."""
    sys.stdout.write(f"{type(obj).__name__}: {sys.getsizeof(obj) / 2**20:g} MB\n")


def print_error(text: object) -> None:
    """Print in red."""
    sys.stdout.write(f"\033[91m{text}\033[0m\n")


def print_warning(text: object) -> None:
    """Print in yellow."""
    sys.stdout.write(f"\033[93m{text}\033[0m\n")
