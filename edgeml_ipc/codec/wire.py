"""The codec's wire form: node codes, limits, and the dtypes that may travel. `transports/WIRE.md` draws the bytes."""

from __future__ import annotations

import importlib
import re
from functools import lru_cache
from typing import Any

import numpy as np

from edgeml_ipc.errors import CodecError

# Extension types of the header. Leaves first; the data of a nested one is msgpack again.
PACKED_ARRAY = 1  # dtype and shape as text; its bytes lie in the shared part
OWN_ARRAY = 2  # dtype and shape as text; its bytes are the next part
SCALAR = 3  # dtype as text; a numpy scalar whose bytes lie in the shared part
OWN_BYTES = 4  # no data; the bytes are the next part
COMPLEX = 5  # two little-endian float64
BIG_INT = 6  # two's complement, little-endian
SURROGATE_STR = 7  # UTF-8 that may hold lone surrogates
COMPRESSED_ARRAY = 8  # codec, dtype and shape as text; what the codec made of its bytes is the next part
TUPLE = 0x10  # [item ...]
SET = 0x11  # [item ...]
FROZENSET = 0x12  # [item ...]
PAIRS = 0x13  # [key, value, ...]: a dict with a key that msgpack has no form for
ORDERED_DICT = 0x14  # [key, value, ...]
NAMEDTUPLE = 0x15  # [type name, "field field ...", item ...]
FROZEN_DICT = 0x16  # map: flax's
REGISTERED = 0x17  # [registered name, tree]
ROWS = 0x18  # [count, kinds, map of columns, node ...]: a list of dicts that are alike; see rows.py

MAX_DEPTH = 64  # containers within containers
MAX_PARTS = 16384 - 1  # what a transport carries in one message, less the protocol's envelope
MAX_NDIM = 32
MAX_BIG_INT_BYTES = 1024
MAX_NAME_CHARS = 256  # of a registered type, a namedtuple or one of its fields
MAX_NAMEDTUPLE_FIELDS = 256
MAX_CACHED = 4096  # entries of each cache
MAX_INFLATED_BYTES = 1 << 30  # what the compressed arrays of one message may yield

OWN_PART_BYTES = 4096  # arrays and bytes from this size on are parts of their own, never copied by the codec
ALIGNMENT = 8  # of each array in the shared part; no dtype below needs more

# fmt: off
NUMPY_DTYPES = (
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
    "float16", "float32", "float64", "complex64", "complex128",
)
ML_DTYPES = (
    "bfloat16", "float8_e3m4", "float8_e4m3", "float8_e4m3b11fnuz", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2",
    "float8_e5m2fnuz", "float8_e8m0fnu",
)
# fmt: on

_ARRAY_TEXT = re.compile(rf"([a-z0-9_]{{1,32}}):((?:[0-9]{{1,19}}(?:,[0-9]{{1,19}}){{0,{MAX_NDIM - 1}}})?)")


def array_text(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    """Describe an array as `float32:480,640,3`; a scalar or an array without dimensions as `float32:`."""
    return f"{dtype.name}:{','.join(map(str, shape))}".encode()


def parse_array_text(text: bytes) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """Return dtype and shape of what `array_text` described. Whether memory can hold it is for numpy to say.

    Raises:
        CodecError: not such a text, or a dtype that is not in the list.
    """
    match = _ARRAY_TEXT.fullmatch(text.decode("ascii", "replace"))
    if match is None:
        raise CodecError(f"array description {text[:64]!r} is not 'dtype:dim,dim,...' with at most {MAX_NDIM} dimensions")
    return dtype_named(match[1]), tuple(map(int, match[2].split(","))) if match[2] else ()


@lru_cache(maxsize=64)
def dtype_named(name: str) -> np.dtype[Any]:
    """Return the little-endian dtype of that name; those of ml_dtypes are imported when first asked for.

    Raises:
        CodecError: the name is not in the list, or ml_dtypes is missing or too old.
    """
    if name in NUMPY_DTYPES:
        return np.dtype(name).newbyteorder("<")
    if name not in ML_DTYPES:
        raise CodecError(f"dtype {name!r} cannot travel; these can: {', '.join(NUMPY_DTYPES + ML_DTYPES)}")
    try:
        dtype: np.dtype[Any] = np.dtype(getattr(importlib.import_module("ml_dtypes"), name))
    except (ImportError, AttributeError) as error:
        raise CodecError(f"the message holds {name}, which needs `pip install -U ml_dtypes` here") from error
    return dtype


def is_ml_dtype(dtype: np.dtype[Any]) -> bool:
    """Tell whether `dtype` is one of ml_dtypes that may travel. They export no buffer, so they travel as uint8."""
    return dtype.name in ML_DTYPES and dtype.type.__module__.partition(".")[0] == "ml_dtypes"
