"""Files of edgeml, agentlace and jaxrl: arrays that `np.savez` wrote, as rows that can be loaded.

    edgeml, agentlace   data/<field> and metadata/<name>, `size` rows in the order of the ring; size, capacity, _insert_idx;
                        traj/begin_idx. ep_begin is the number of the insert at which a row's trajectory began; a trajectory
                        that was too short was taken back, and its rows still lie where later ones will
    jaxrl               <field>, rows as they lie in the ring, and nothing else: age and ends are not told

Nothing is unpickled: a dict of observations that jaxrl saved as a Python object is refused.
"""

from __future__ import annotations

import math
import os
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from edgeml_ipc.data.chunks import FIRST, LAST, TERMINAL, TRUNCATED
from edgeml_ipc.data.columns import Array, Columns, DataShape, dtype_of
from edgeml_ipc.data.layout import Geometry, Run
from edgeml_ipc.data.transitions import UNKNOWN_VERSION
from edgeml_ipc.errors import SegmentError

MAGIC: Final = b"PK\x03\x04"
_LOCAL_HEADER: Final = struct.Struct("<26xHH")
_DATA, _METADATA = "data/", "metadata/"
_TRAJECTORY: Final = ("traj/begin_idx", "traj/id", "traj/min_length")
_ENDS: Final = ("end_of_trajectory", "dones")
_READ_ROWS: Final = 4096
_MOST_ROWS: Final = 1 << 40

Mask = npt.NDArray[np.bool_]


class _Member(NamedTuple):
    """One array of an archive, uncompressed.

    Attributes:
        at: where its values begin in the file.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    at: int


class EdgemlRows:
    """`Source` of an `.npz` file; see `loading.Source`. Made only of files of which everything was checked.

    A row is the last of its episode if the metadata says so, `end_of_trajectory` or `dones` is true, or the mask is 0. In
    jaxrl's files also if its next observation is not the observation of the row after it.
    """

    def __init__(self, path: str, fd: int, columns: Columns) -> None:
        """Check the archive, and that it has the fields of `columns`.

        Raises:
            SegmentError: it is damaged, needs pickle, or has other fields.
        """
        self._path, self._fd, self._columns = path, fd, columns
        members = _members(path, fd)
        plain = not any(name.startswith(_DATA) for name in members)
        self._fields = members if plain else {key[len(_DATA) :]: one for key, one in members.items() if key.startswith(_DATA)}
        self._size = self._checked_size(members, plain)
        self._check_fields()
        if plain:
            self._index: npt.NDArray[np.int64] = np.arange(self._size)
            self._rows, begins, last_is_end = self._index, np.zeros(self._size, np.int64), False
        else:
            begins, last_is_end = self._ring(members)
        self._tell_ends(begins, last_is_end, plain)
        self.next_sequence = int(self._index[-1]) + 1 if len(self._index) else 0
        self.runs = [Run(1, False, len(self._rows), 0)] if len(self._rows) else []
        self.geometry = Geometry(max(1, len(self._rows)), max(1, len(self._rows)))
        self.counters = {"inserted": max(self.next_sequence, len(self._rows)), "sampled": 0, "redrawn": 0}
        for begin in range(0, len(self._rows), _READ_ROWS):
            self.read(begin, min(begin + _READ_ROWS, len(self._rows)))  # values that do not fit are refused before any is used

    def read(self, begin: int, end: int) -> tuple[dict[str, Array], dict[str, Array]]:
        """See `loading.Source`."""
        tree: dict[str, Any] = {}
        for name in self._columns.shapes:
            *parents, last = name.split(".")
            node = tree
            for key in parents:
                node = node.setdefault(key, {})
            node[last] = self._ended[begin:end] if name == "dones" else self._values(name, begin, end)
        try:
            arrays = self._columns.check(tree, rows=end - begin)
        except (ValueError, TypeError) as error:
            raise self._damaged(str(error)) from error
        about: dict[str, Array] = {
            "sequence": self._index[begin:end],
            "position": self._position[begin:end],
            "policy_version": np.full(end - begin, UNKNOWN_VERSION),
            "flags": self._flags[begin:end].copy(),
        }
        return dict(zip(self._columns.shapes, arrays, strict=True)), about

    def _damaged(self, why: str) -> SegmentError:
        return SegmentError(f"{self._path!r} cannot be loaded: {why}")

    def _checked_size(self, members: dict[str, _Member], plain: bool) -> int:
        if not self._fields:
            raise self._damaged("it has no arrays")
        lengths = {name: one.shape[0] if one.shape else -1 for name, one in self._fields.items()}
        if len(set(lengths.values())) != 1 or min(lengths.values()) < 0:
            raise self._damaged(f"its fields have different numbers of rows: {lengths}")
        size = next(iter(lengths.values()))
        if not plain and size != self._number(members, "size"):
            raise self._damaged(f"its fields have {size} rows, and its size is {self._number(members, 'size')}")
        return size

    def _check_fields(self) -> None:
        wanted = set(self._columns.shapes) - {"dones"}
        if missing := sorted(wanted - self._fields.keys()):
            raise self._damaged(f"it has no {missing}; its fields are {sorted(self._fields)}")
        if unknown := sorted(self._fields.keys() - wanted - set(_ENDS)):
            raise self._damaged(f"this buffer has no {unknown}; declare them when it is made (extra_columns)")

    def _ring(self, members: dict[str, _Member]) -> tuple[npt.NDArray[np.int64], bool]:
        """Find the rows that are held, oldest first; return the inserts at which their trajectories began."""
        capacity, inserted = self._number(members, "capacity"), self._number(members, "_insert_idx")
        if not (0 < capacity < _MOST_ROWS and 0 <= min(inserted, capacity) <= self._size <= capacity and inserted < 1 << 62):
            raise self._damaged(f"{self._size} rows of {inserted} in a ring of {capacity} cannot be")
        index = np.arange(max(0, inserted - capacity), inserted)
        key = f"{_METADATA}ep_begin"
        if key not in members or members[key].shape != (self._size,):
            raise self._damaged(f"it has no {key!r} of {self._size} rows")
        begins = self._array(members[key], 0, self._size)[index % capacity].astype(np.int64)
        if (begins < 0).any():
            raise self._damaged(f"{key!r} is below 0")
        taken_back = np.flatnonzero(begins > index)  # rows of a trajectory that was taken back, over the oldest ones
        kept = slice(int(taken_back[-1]) + 1 if len(taken_back) else 0, None)
        self._index, self._rows = index[kept], (index % capacity)[kept]
        return begins[kept], self._number(members, "traj/begin_idx") == inserted

    def _tell_ends(self, begins: npt.NDArray[np.int64], last_is_end: bool, plain: bool) -> None:
        count = len(self._rows)
        ended = np.diff(begins, append=-1) != 0
        ended[-1:] = last_is_end
        masked = np.ones(count, np.bool_)
        for begin in range(0, count, _READ_ROWS):
            end = min(begin + _READ_ROWS, count)
            if "masks" in self._fields:
                masked[begin:end] = self._values("masks", begin, end) != 0
            for name in _ENDS:
                if name in self._fields:
                    ended[begin:end] |= self._values(name, begin, end) != 0
            if plain:
                ended[begin:end] |= self._breaks(begin, end)
        ended |= ~masked
        begins = np.where(np.append(False, ended)[:count], self._index, begins)
        self._position = self._index - np.maximum.accumulate(begins)
        ends = np.where(ended, LAST | np.where(masked, TRUNCATED, TERMINAL), 0)
        self._flags = (np.where(self._position == 0, FIRST, 0) | ends).astype(np.uint8)
        self._ended = ended

    def _breaks(self, begin: int, end: int) -> Mask:
        """Tell after which rows the observation is not the one that was announced."""
        breaks = np.zeros(end - begin, np.bool_)
        after = min(end, len(self._rows) - 1)
        for name in self._columns.shapes:
            if name.split(".")[0] == "next_observations" and begin < after:
                announced = self._values(name, begin, after)
                came = self._values(name[len("next_") :], begin + 1, after + 1)
                differs = (announced != came).reshape(after - begin, -1).any(axis=1)
                breaks[: after - begin] |= differs
        return breaks

    def _number(self, members: dict[str, _Member], name: str) -> int:
        if name not in members or members[name].shape != () or members[name].dtype.kind not in "iu":
            raise self._damaged(f"it has no integer {name!r}")
        return int(self._array(members[name], 0, 1)[0])

    def _values(self, name: str, begin: int, end: int) -> Array:
        """Return a field of rows by age; at most two stretches of the file."""
        member, rows = self._fields[name], self._rows[begin:end]
        cut = int(np.argmin(rows)) if len(rows) else 0
        pieces = [part for part in (rows[:cut], rows[cut:]) if len(part)]
        arrays = [self._array(member, int(part[0]), int(part[0]) + len(part)) for part in pieces]
        array = np.concatenate(arrays) if arrays else self._array(member, 0, 0)
        column = self._columns.shapes.get(name)
        if column is not None and array.dtype.kind == "V" and array.dtype.itemsize == dtype_of(column.dtype).itemsize:
            array = array.view(dtype_of(column.dtype))  # numpy knows no name for bfloat16 and the like
        return array

    def _array(self, member: _Member, begin: int, end: int) -> Array:
        item = member.shape[1:]
        size = math.prod(item) * member.dtype.itemsize
        raw = os.pread(self._fd, (end - begin) * size, member.at + begin * size)
        if len(raw) != (end - begin) * size:
            raise self._damaged("it became shorter while it was read")
        if member.dtype == np.bool_:
            return np.asarray(np.frombuffer(raw, np.uint8) != 0).reshape(end - begin, *item)
        values: Array = np.frombuffer(raw, member.dtype)
        return values.reshape(end - begin, *item)


@contextmanager
def edgeml_rows(path: str, columns: Columns) -> Iterator[EdgemlRows]:
    """Open an `.npz` file."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise SegmentError(f"{path!r} cannot be read: {error.strerror}") from error
    try:
        yield EdgemlRows(path, fd, columns)
    finally:
        os.close(fd)


def described(path: str) -> tuple[list[DataShape], dict[str, int]]:
    """Return the fields of a trajectory buffer that edgeml or agentlace saved, and the numbers beside them, by name.

    Raises:
        SegmentError: there is no such file, or it is another kind of file.
    """
    try:
        with open(path, "rb") as file:
            members = _members(path, file.fileno())
            numbers = {
                name: int(np.frombuffer(os.pread(file.fileno(), member.dtype.itemsize, member.at), member.dtype)[0])
                for name, member in members.items()
                if member.shape == () and member.dtype.kind in "iu"
            }
    except OSError as error:
        raise SegmentError(f"{path!r} cannot be read: {error.strerror}") from error
    if missing := {"capacity", "size", "_insert_idx", *_TRAJECTORY} - numbers.keys():
        raise SegmentError(f"{path!r} cannot be loaded: it has no integer {sorted(missing)[0]!r}")
    if numbers["capacity"] < 1 or numbers["traj/min_length"] < 1:
        raise SegmentError(f"{path!r} cannot be loaded: its capacity and its min_length must be at least 1, got {numbers}")
    fields = [
        DataShape(name.removeprefix(_DATA), member.shape[1:], member.dtype.name)
        for name, member in members.items()
        if name.startswith(_DATA)
    ]
    return fields, numbers


def _members(path: str, fd: int) -> dict[str, _Member]:
    """Return the arrays of an archive, of which each byte was compared with its checksum."""
    try:
        with open(fd, "rb", closefd=False) as file, zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            if any(entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 for entry in entries):
                raise SegmentError(f"{path!r} cannot be loaded: it is compressed or encrypted; np.savez writes neither")
            if (bad := archive.testzip()) is not None:
                raise SegmentError(f"{path!r} cannot be loaded: the checksum of {bad!r} is another")
            found = [_member(path, fd, archive, entry) for entry in entries]
    except (zipfile.BadZipFile, ValueError, EOFError, OSError, NotImplementedError, RuntimeError, struct.error) as error:
        raise SegmentError(f"{path!r} cannot be loaded: {error}") from error
    members = {member.name: member for member in found}
    if len(members) != len(found):
        raise SegmentError(f"{path!r} cannot be loaded: two of its arrays have one name")
    return members


def _member(path: str, fd: int, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> _Member:
    with archive.open(entry) as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
        header_bytes = file.tell()
    name = entry.filename.removesuffix(".npy")
    if dtype.hasobject:
        raise SegmentError(
            f"{path!r} cannot be loaded: {name!r} holds pickled Python objects, and nothing is unpickled here; "
            "save it as one array for each field"
        )
    if fortran and len(shape) > 1:
        raise SegmentError(f"{path!r} cannot be loaded: {name!r} is in Fortran order; save it in C order")
    if entry.file_size != header_bytes + math.prod(shape) * dtype.itemsize:
        raise SegmentError(
            f"{path!r} cannot be loaded: {name!r} has {entry.file_size} bytes, another number than its shape {shape}"
        )
    name_bytes, extra_bytes = _LOCAL_HEADER.unpack(os.pread(fd, _LOCAL_HEADER.size, entry.header_offset))
    at = entry.header_offset + _LOCAL_HEADER.size + name_bytes + extra_bytes + header_bytes
    return _Member(name, shape, dtype, at)
