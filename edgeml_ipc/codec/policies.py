"""How the arrays of a message travel where bytes are dear: by key, as the sender wishes.

A policy is one of

    raw                     as they are; an exception to "*"
    jpeg:90                 images as JPEG of that quality, 1 to 100
    resize:240x320          images of that height and width; smaller ones are means, larger ones repeat the nearest pixel
    lz4, zstd, zstd:9       any array, without loss; those under 4 KiB, and those that would not get shorter, stay as they are
    resize:240x320+jpeg:90  one after the other; also +lz4 and +zstd

The key is that of the dict in which an array lies ("image"), or more of the keys on the way to it, joined by dots
("observations.image"); of several that fit, the longest counts. "*" is every array that no other key names. Lists, tuples and
objects on the way have no name. Only arrays are meant: numbers, texts and bytes stay as they are.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import numpy as np

from edgeml_ipc.codec import images, wire
from edgeml_ipc.codec.compression import LIBRARIES, CompressedArray, compress
from edgeml_ipc.codec.decoder import decode_in_python
from edgeml_ipc.codec.encoder import encode, exportable
from edgeml_ipc.codec.libraries import library
from edgeml_ipc.codec.registry import Expanded
from edgeml_ipc.errors import CodecError

EVERY_OTHER: Final = "*"
_RESIZE: Final = re.compile(r"resize:([0-9]{1,5})x([0-9]{1,5})")
_CODEC: Final = re.compile(r"(jpeg):([0-9]{1,3})|(lz4)|(zstd)(?::([0-9]{1,2}))?")
_FORMS: Final = "raw, jpeg:QUALITY, lz4, zstd, zstd:LEVEL, resize:HEIGHTxWIDTH, or that with + and jpeg, lz4 or zstd behind it"
_DEFAULT_ZSTD_LEVEL: Final = 3
_MAX_ZSTD_LEVEL: Final = 22
_MAX_CHECKED: Final = 64
_MAX_CHECKED_HEADER_BYTES: Final = 1 << 16

Array = np.ndarray[Any, Any]


class Policy(NamedTuple):
    """One policy, understood. `codec` is empty where the array stays an array; `level` is the quality, or zstd's level."""

    text: str
    size: tuple[int, int] | None
    codec: str
    level: int

    def check(self, array: Array) -> None:
        """Raise `CodecError` if the policy does not fit the array."""
        if self.size is None and self.codec != "jpeg":
            return
        if array.dtype != np.uint8:
            raise CodecError(f"it takes images of dtype uint8, not {array.dtype.name}{list(array.shape)}")
        _, *there, _ = images.split_shape(array.shape)
        height, width = self.size or there
        if self.codec == "jpeg" and max(height, width) > images.MAX_JPEG_PIXELS:
            raise CodecError(f"JPEG takes images of up to {images.MAX_JPEG_PIXELS} pixels a side, not {height} x {width}")

    def apply(self, array: Array) -> Array | CompressedArray:
        """Return what travels in the array's place."""
        if not array.size:
            return array
        if self.size is not None:
            array = images.resize(array, *self.size)
        if not self.codec:
            return array
        if self.codec == "jpeg":
            return compress(array, "jpeg", self.level)
        if array.nbytes < wire.OWN_PART_BYTES:
            return array
        shorter = compress(exportable(array), self.codec, self.level)
        return shorter._replace(dtype=array.dtype, shape=array.shape) if len(shorter.data) < array.nbytes else array


def parse(key: str, text: str) -> Policy:
    """Understand one policy.

    Raises:
        ValueError: it is none, or a number in it is out of range. CodecError: the library that it needs is not installed.
    """
    if text == "raw":
        return Policy(text, None, "", 0)
    place = f"policies[{key!r}]"
    first, plus, rest = text.partition("+")
    resized = _RESIZE.fullmatch(first)
    coded = _CODEC.fullmatch(rest if resized else text)
    if coded is None and (resized is None or plus):
        raise ValueError(f"{place} must be {_FORMS}; got {text!r}")
    size = (int(resized[1]), int(resized[2])) if resized else None
    if size is not None and not all(1 <= pixels <= images.MAX_JPEG_PIXELS for pixels in size):
        raise ValueError(f"{place}: height and width must be 1 to {images.MAX_JPEG_PIXELS} pixels, got {text!r}")
    jpeg, quality, lz4, zstd, level = coded.groups() if coded else (None,) * 5
    if quality is not None and not 1 <= int(quality) <= 100:
        raise ValueError(f"{place}: the quality of JPEG must be 1 to 100, got {text!r}")
    if level is not None and not 1 <= int(level) <= _MAX_ZSTD_LEVEL:
        raise ValueError(f"{place}: zstd's level must be 1 to {_MAX_ZSTD_LEVEL}, got {text!r}")
    codec = jpeg or lz4 or zstd or ""
    if codec:
        library(LIBRARIES[codec])
    return Policy(text, size, codec, int(quality or level or _DEFAULT_ZSTD_LEVEL))


class Policies:
    """The policies of one sender. Any thread.

    Args:
        policies: key -> policy, as this module describes them.
    Raises:
        ValueError: a policy is wrong. CodecError: a library that one needs is not installed.
    """

    def __init__(self, policies: Mapping[str, str]) -> None:
        for key, text in policies.items():
            if not all(type(part) is str and part for part in (key, text)):
                raise ValueError(f"policies must be a dict from key to policy, both str and not empty, got {key!r}: {text!r}")
        self._policies = {key: parse(key, text) for key, text in policies.items()}
        self._longest_first = sorted(self._policies.keys() - {EVERY_OTHER}, key=len, reverse=True)
        self._keys: dict[str, str | None] = {}  # of the paths that were met
        self._checked: set[bytes] = set()  # headers; two messages of one header hold arrays of the same shapes and dtypes
        self._lock = threading.Lock()
        self._counted = {key: [0, 0, 0] for key in self._policies}

    def encode(self, tree: Any) -> list[Any]:
        """Do as `codec.encode`, and look whether each array fits its policy; none is applied yet.

        So a program finds out where it first runs, and not only where a network separates its parts.

        Raises:
            CodecError: as `codec.encode`, or an array does not fit its policy.
        """
        parts = encode(tree)
        header: bytes = parts[0]
        if header not in self._checked:
            _changed(decode_in_python(parts, objects=False), "", self._check)
            if len(header) <= _MAX_CHECKED_HEADER_BYTES:
                with self._lock:
                    if len(self._checked) >= _MAX_CHECKED:
                        self._checked.clear()
                    self._checked.add(header)
        return parts

    def shorten(self, parts: list[Any]) -> list[Any]:
        """Apply the policies to what `encode` made; return new parts, some of which may be the old ones.

        Raises:
            CodecError: the compressed arrays are more than a receiver takes.
        """
        tree = _changed(decode_in_python(parts, objects=False), "", self._apply)
        return encode(tree)

    def stats(self) -> dict[str, dict[str, int]]:
        """Return key -> how many arrays were sent by its policy, and their bytes before and after it."""
        names = ("arrays", "bytes_before", "bytes_after")
        with self._lock:
            return {key: dict(zip(names, counted, strict=True)) for key, counted in self._counted.items()}

    def _check(self, path: str, array: Array) -> Array:
        key = self._key_of(path)
        if key is not None:
            try:
                self._policies[key].check(array)
            except CodecError as error:
                policy = self._policies[key].text
                raise CodecError(
                    f"the policy {policy!r} of {key!r} does not fit the array {path or '(root)'}: {error}"
                ) from None
        return array

    def _apply(self, path: str, array: Array) -> Any:
        key = self._key_of(path)
        if key is None:
            return array
        applied = self._policies[key].apply(array)
        after = applied.nbytes if isinstance(applied, np.ndarray) else len(applied.data)
        with self._lock:
            counted = self._counted[key]
            counted[0] += 1
            counted[1] += array.nbytes
            counted[2] += after
        return applied

    def _key_of(self, path: str) -> str | None:
        try:
            return self._keys[path]
        except KeyError:
            pass
        found = next((key for key in self._longest_first if path == key or path.endswith(f".{key}")), None)
        if found is None and EVERY_OTHER in self._policies:
            found = EVERY_OTHER
        if len(self._keys) < wire.MAX_CACHED:
            self._keys[path] = found
        return found


def _changed(node: Any, path: str, change: Callable[[str, Array], Any]) -> Any:
    """Return a decoded tree with `change(path, array)` in the place of each array."""
    kind = type(node)
    if kind is np.ndarray:
        return change(path, node)
    if kind is list:
        return [_changed(item, path, change) for item in node]
    if kind is Expanded:
        return Expanded(node.name, _changed(node.tree, path, change))
    if issubclass(kind, tuple):
        items = [_changed(item, path, change) for item in node]
        return kind(*items) if hasattr(kind, "_fields") else tuple(items)
    if isinstance(node, Mapping):  # dict, OrderedDict, flax's FrozenDict
        prefix = f"{path}." if path else ""
        make: Callable[[Any], Any] = kind
        return make({key: _changed(value, f"{prefix}{key}", change) for key, value in node.items()})
    return node
