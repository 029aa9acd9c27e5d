"""Saved files: named sections of bytes in one file, of which every byte is checked before any is used.

    0x0000  magic "MLERPSAV"   version u32, 0 u32   header_at u64, header_bytes u64, file_bytes u64   digest [16]
    0x1000  columns            each from a multiple of 4096 on, all rows one after the other, so that it can be mapped
            parts              each from a multiple of 64 on; those of one name follow on from one another
            header             JSON: what the columns are, and of each section: name, offset, bytes, crc32

All integers of the file are little-endian, and so is the data on the machines that this runs on; the header says it. Bytes
between sections are zeros. The digest is blake2b of the 40 bytes before it and of the header. Knows nothing of rows' meaning.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import struct
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from edgeml_ipc.data.columns import Array
from edgeml_ipc.errors import SegmentError

MAGIC: Final = b"MLERPSAV"
VERSION: Final = 1
_PREFIX: Final = struct.Struct("<8sIIQQQ")
_DIGEST_BYTES: Final = 16
_PAGE: Final = 4096
_PART_ALIGNMENT: Final = 64
_MAX_HEADER_BYTES: Final = 1 << 28
_PIECE_BYTES: Final = 1 << 22
_NO_LIMIT: Final = 1 << 62

Bytes = npt.NDArray[np.uint8]


class Section(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """One run of bytes of a file.

    Attributes:
        name: sections of one name are parts of one whole, in order.
        at: offset in the file. bytes: length. crc: crc32 of them.
    """

    name: str
    at: int
    bytes: int
    crc: int


class Maker:
    """Writes a file aside and puts it in its place when it is whole: others see the old file or the new one, nothing else.

    A context manager: a file that was not finished leaves nothing behind.
    """

    def __init__(self, path: str) -> None:
        """Open a file in the same folder, of mode 0600.

        Raises:
            SegmentError: the folder is not there, or may not be written.
        """
        self.path = path
        self._folder = os.path.dirname(os.path.abspath(path))
        self._sections: list[Section] = []
        self._columns: dict[str, tuple[int, int]] = {}  # next byte, and the end of what is set aside
        self._crcs: dict[str, int] = {}
        self._starts: dict[str, int] = {}
        self._end = _PAGE
        self._aside: str | None = None
        try:
            self._fd = self._opened()
        except OSError as error:
            raise SegmentError(f"{path!r} cannot be written: {error}") from error

    def _opened(self) -> int:
        try:  # without a name: a process that is killed leaves nothing
            return os.open(self._folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except (OSError, AttributeError):  # a file system that knows no such files
            self._aside = self._name_aside()
            return os.open(self._aside, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)

    def _name_aside(self) -> str:
        return os.path.join(self._folder, f".{os.path.basename(self.path)}.{secrets.token_hex(8)}.part")

    def column(self, name: str, nbytes: int) -> None:
        """Set a place of at most `nbytes` aside, to be filled by `extend`."""
        self._columns[name] = self._end, self._end + nbytes
        self._starts[name], self._crcs[name] = self._end, 0
        self._end = -(-(self._end + nbytes) // _PAGE) * _PAGE

    def extend(self, name: str, array: Array) -> None:
        """Add to a column."""
        at, end = self._columns[name]
        data = bytes_of(array)
        assert at + data.size <= end, name
        self._write(data, at)
        self._columns[name] = at + data.size, end
        self._crcs[name] = zlib.crc32(data.data, self._crcs[name])

    def part(self, name: str, array: Array) -> None:
        """Write a section, or the next part of one; all columns are set aside by now."""
        data = bytes_of(array)
        if data.size:
            self._end = -(-self._end // _PART_ALIGNMENT) * _PART_ALIGNMENT
            self._write(data, self._end)
            self._sections.append(Section(name, self._end, data.size, zlib.crc32(data.data)))
            self._end += data.size

    def finish(self, header: Mapping[str, Any]) -> None:
        """Write the header, and put the file in its place once the disk has all of it."""
        columns = [
            Section(name, self._starts[name], at - self._starts[name], self._crcs[name])
            for name, (at, _) in self._columns.items()
        ]
        text = msgspec.json.encode({**header, "byte_order": sys.byteorder, "sections": [*columns, *self._sections]})
        prefix = _PREFIX.pack(MAGIC, VERSION, 0, self._end, len(text), self._end + len(text))
        self._write(np.frombuffer(text, np.uint8), self._end)
        self._write(np.frombuffer(prefix + _digest(prefix, text), np.uint8), 0)
        try:
            os.fsync(self._fd)
            folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                if self._aside is None:
                    aside = self._name_aside()
                    # With a folder's descriptor, since Python follows the link only then.
                    os.link(f"/proc/self/fd/{self._fd}", aside, src_dir_fd=folder, follow_symlinks=True)
                    self._aside = aside
                os.replace(self._aside, self.path)
                self._aside = None
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise SegmentError(f"{self.path!r} cannot be written: {error}") from error

    def _write(self, data: Bytes, at: int) -> None:
        view = data.data
        try:
            while view:
                written = os.pwrite(self._fd, view, at)
                view, at = view[written:], at + written
        except OSError as error:
            raise SegmentError(f"{self.path!r} cannot be written, what was there stays: {error.strerror}") from error

    def __enter__(self) -> Maker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        os.close(self._fd)
        if self._aside is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._aside)


class SavedFile:
    """A file that `Maker` wrote, open to be read. A context manager.

    Attributes:
        path: of the file.
        header: its JSON, as bytes; not checked beyond its digest.
    """

    def __init__(self, path: str) -> None:
        """Open a file and check its header.

        Raises:
            SegmentError: there is none, or it is foreign, of another version, shorter than it says, or its header is damaged.
        """
        self.path = path
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise SegmentError(f"{path!r} cannot be read: {error.strerror}") from error
        try:
            self.header = self._checked_header()
        except BaseException:
            os.close(self._fd)
            raise
        self._parts: dict[str, list[Section]] = {}

    def _checked_header(self) -> bytes:
        size = os.fstat(self._fd).st_size
        raw = self._read(0, min(size, _PAGE)).tobytes()
        if raw[: len(MAGIC)] != MAGIC:
            raise self.damaged(f"it begins with {raw[: len(MAGIC)]!r}, a saved buffer with {MAGIC!r}")
        if len(raw) < _PAGE:
            raise self.damaged(f"it has {size} bytes, fewer than the shortest saved buffer")
        prefix = raw[: _PREFIX.size]
        _, version, _, at, nbytes, file_bytes = _PREFIX.unpack(prefix)
        if version != VERSION:
            raise self.damaged(f"it is of version {version}, this program reads version {VERSION}")
        if file_bytes != size:
            raise self.damaged(f"it has {size:,} bytes, and says that it has {file_bytes:,}")
        if not (_PAGE <= at <= size and at + nbytes == size and nbytes <= _MAX_HEADER_BYTES):
            raise self.damaged(f"its header of {nbytes:,} bytes lies at {at:,}, which is not at its end")
        text = self._read(at, nbytes).tobytes()
        if _digest(prefix, text) != raw[_PREFIX.size : _PREFIX.size + _DIGEST_BYTES]:
            raise self.damaged("the digest of its header is another")
        if any(raw[_PREFIX.size + _DIGEST_BYTES :]):
            raise self.damaged("there is something between its beginning and its first column")
        self._header_at = at
        return text

    def check(self, sections: list[Section], is_bool: Callable[[str], bool]) -> None:
        """Read all bytes once; afterwards `parts` are known and `read` works.

        Args:
            is_bool: tells of which sections each byte must be 0 or 1.
        Raises:
            SegmentError: sections overlap or lie outside, a checksum is another, or there is something between them.
        """
        end = _PAGE
        for section in sections:
            if not end <= section.at <= section.at + section.bytes <= self._header_at:
                raise self.damaged(f"its section {section.name!r} of {section.bytes:,} bytes lies at {section.at:,}")
            if any(piece.any() for piece in self._pieces(end, section.at)):
                raise self.damaged(f"there is something before its section {section.name!r}")
            crc = 0
            flags = is_bool(section.name)
            for piece in self._pieces(section.at, section.at + section.bytes):
                crc = zlib.crc32(piece.data, crc)
                if flags and piece.max() > 1:
                    raise self.damaged(f"its section {section.name!r} of bool has the byte {piece.max()}")
            if crc != section.crc:
                raise self.damaged(f"the checksum of its section {section.name!r} is another")
            end = section.at + section.bytes
            self._parts.setdefault(section.name, []).append(section)
        if any(piece.any() for piece in self._pieces(end, self._header_at)):
            raise self.damaged("there is something before its header")

    def bytes_in(self, name: str) -> int:
        """Return how many bytes the sections of a name have."""
        return sum(section.bytes for section in self._parts.get(name, ()))

    def read(self, name: str, begin: int, end: int) -> Bytes:
        """Return the bytes `[begin, end)` of what has a name, all its parts taken together."""
        out = np.empty(end - begin, np.uint8)
        part_begin = 0
        for section in self._parts.get(name, ()):
            low, high = max(begin, part_begin), min(end, part_begin + section.bytes)
            if low < high:
                out[low - begin : high - begin] = self._read(section.at + low - part_begin, high - low)
            part_begin += section.bytes
        return out

    def damaged(self, why: str) -> SegmentError:
        """Return the error that this file cannot be loaded."""
        return SegmentError(f"{self.path!r} cannot be loaded: {why}")

    def _pieces(self, begin: int, end: int) -> Iterator[Bytes]:
        for at in range(begin, end, _PIECE_BYTES):
            yield self._read(at, min(_PIECE_BYTES, end - at))

    def _read(self, at: int, nbytes: int) -> Bytes:
        out = np.empty(nbytes, np.uint8)
        view, done = out.data, 0
        while done < nbytes:
            try:
                got = os.preadv(self._fd, [view[done:]], at + done)
            except OSError as error:
                raise SegmentError(f"{self.path!r} cannot be read: {error.strerror}") from error
            if not got:
                raise self.damaged(f"it ends at {at + done:,}, where {nbytes - done:,} bytes more should be")
            done += got
        return out

    def __enter__(self) -> SavedFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        os.close(self._fd)


def bytes_of(array: Array) -> Bytes:
    """Return a view of an array's bytes, whatever its dtype."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _digest(prefix: bytes, text: bytes) -> bytes:
    return hashlib.blake2b(prefix + text, digest_size=_DIGEST_BYTES).digest()
