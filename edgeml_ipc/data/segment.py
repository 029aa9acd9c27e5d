"""Segments: memory that several processes map, named or anonymous, reserved up front.

A named segment is a file of mode 0600 under /dev/shm; it outlives the processes that use it, until `unlink`. An anonymous one
is a memory file that vanishes with the last process that holds it. While a segment is being made its maker holds a lock on it
that the kernel drops when the maker dies, so that a half-made one is told from one that is about to be ready.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import re
import weakref
from collections.abc import Callable
from pathlib import Path

import posix_ipc

from edgeml_ipc.errors import SegmentError

_PREFIX = "/edgeml_ipc."
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_SHM_FOLDER = "/dev/shm"


class Segment:
    """Memory that other processes can map too, writable here.

    A context manager. Views on `memory` stay valid after `close`: the pages are unmapped when the last view is gone.

    Attributes:
        name: None for an anonymous segment.
        memory: the mapping, `nbytes` long.
    """

    def __init__(self, fd: int, name: str | None) -> None:
        """Map all of `fd`, which is taken over, also on failure."""
        self._closer = weakref.finalize(self, os.close, fd)
        self.fd = fd
        self.name = name
        self.nbytes = os.fstat(fd).st_size
        if self.nbytes == 0:
            self._closer()
            raise SegmentError(f"{described(name)} is not ready: its creator is still at it, or died before it had finished")
        try:
            self.memory = mmap.mmap(fd, self.nbytes)
        except OSError as error:
            self._closer()
            raise SegmentError(f"{described(name)} of {self.nbytes:,} bytes cannot be mapped: {error}") from error

    @classmethod
    def create(cls, name: str | None, nbytes: int) -> Segment:
        """Make a segment of zeros, with all of its memory reserved and this process as its maker (see `finish`).

        Raises:
            SegmentError: there is one of that name already, or not enough memory; then nothing was written anywhere.
            ValueError: not a name.
        """
        if name is None:
            fd = os.memfd_create("edgeml_ipc.replay", os.MFD_CLOEXEC)
        else:
            path = checked_name(name)
            try:
                fd = posix_ipc.SharedMemory(path, posix_ipc.O_CREX, mode=0o600).fd
            except posix_ipc.ExistentialError as error:
                raise SegmentError(f"{described(name)} exists already: attach to it, or unlink it first") from error
            except (posix_ipc.Error, OSError) as error:
                raise SegmentError(f"{described(name)} cannot be made: {error}") from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _reserve(fd, name, nbytes)
        except (SegmentError, OSError) as error:
            os.close(fd)
            if name is not None:
                unlink(name)
            if isinstance(error, SegmentError):
                raise
            raise SegmentError(f"{described(name)} cannot be made: {error}") from error
        return cls(fd, name)

    @classmethod
    def attach(cls, name: str | int) -> Segment:
        """Map a segment that exists: by its name, or an anonymous one by a file descriptor, which stays the caller's.

        Raises:
            SegmentError: there is none, it is not this user's, or it is not ready. ValueError: not a name.
        """
        if isinstance(name, int):
            try:
                # Opened anew: locks belong to the opening, and this one must not share the maker's.
                fd = os.open(f"/proc/self/fd/{name}", os.O_RDWR | os.O_CLOEXEC)
            except OSError as error:
                raise SegmentError(f"the file descriptor {name} is not a segment: {error}") from error
            label = None
        else:
            fd, label = _open_named(name), name
        owner = os.fstat(fd).st_uid
        if owner != os.geteuid():
            os.close(fd)
            raise SegmentError(f"{described(label)} belongs to user {owner}, this process to {os.geteuid()}")
        return cls(fd, label)

    def finish(self) -> None:
        """Say that the segment is made: its maker's lock is dropped."""
        fcntl.flock(self.fd, fcntl.LOCK_UN)

    def fileno(self) -> int:
        """Return the file descriptor, by which a process that inherits or receives it can attach."""
        return self.fd

    def close(self) -> None:
        """Let go of it; the name stays. Idempotent."""
        self._closer()

    def unlink(self) -> None:
        """Remove the name, so that nobody can attach any more; those that have go on. Idempotent."""
        if self.name is not None:
            unlink(self.name)

    def __enter__(self) -> Segment:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def described(name: str | None) -> str:
    """Return how a message names a segment."""
    return "the anonymous segment" if name is None else f"the segment {name!r}"


def checked_name(name: str) -> str:
    """Return the name under which the system knows a segment. Raises ValueError: not a name."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"a segment's name has up to 200 letters, digits, '.', '_' and '-', and no '/', got {name!r}")
    return _PREFIX + name


def unlink(name: str) -> None:
    """Remove a named segment, if there is one."""
    try:
        posix_ipc.unlink_shared_memory(checked_name(name))
    except posix_ipc.ExistentialError:
        return
    except (posix_ipc.Error, OSError) as error:
        raise SegmentError(f"{described(name)} cannot be unlinked: {error}") from error


def unlink_abandoned(name: str, is_ready: Callable[[Segment], bool]) -> bool:
    """Remove a segment whose maker died before it was ready; tell whether it was such a one.

    Args:
        is_ready: tells whether a segment that nobody is making was finished.
    """
    try:
        fd = _open_named(name)
    except SegmentError:
        return True  # it is gone already
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # refused while its maker lives
        again = _open_named(name)
        same = os.path.samestat(os.fstat(fd), os.fstat(again))
        if not same or os.fstat(again).st_size == 0:
            os.close(again)
        elif is_ready(Segment(again, name)):
            return False
        if same:
            unlink(name)
    except BlockingIOError:
        return False
    except SegmentError:
        return True  # somebody else removed it
    finally:
        os.close(fd)
    return True


def _open_named(name: str) -> int:
    path = checked_name(name)
    try:
        return int(posix_ipc.SharedMemory(path).fd)
    except posix_ipc.ExistentialError as error:
        raise SegmentError(f"there is no segment {name!r}: it was not made yet, or was unlinked") from error
    except (posix_ipc.Error, OSError) as error:
        raise SegmentError(f"{described(name)} cannot be opened: {error}") from error


def _reserve(fd: int, name: str | None, nbytes: int) -> None:
    """Give the file its size and its memory, or raise `SegmentError` before anything is written."""
    free = memory_available()
    if name is not None:
        folder = os.statvfs(_SHM_FOLDER)
        free = min(free, folder.f_bavail * folder.f_frsize)
    where = "free memory" if name is None else f"{_SHM_FOLDER} or free memory"
    needed = f"{described(name)} needs {nbytes:,} bytes; {where} has {free:,}"
    if nbytes > free:
        raise SegmentError(f"{needed}: make the capacity smaller, or {_SHM_FOLDER} larger (mount -o remount,size=...)")
    try:
        os.ftruncate(fd, nbytes)
        os.posix_fallocate(fd, 0, nbytes)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.ENOMEM, errno.EFBIG, errno.EDQUOT):
            raise
        raise SegmentError(f"{needed}, and the system refused: {error.strerror}") from error


def memory_available() -> int:
    """Return the bytes that the machine and the control group of this process can still give."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    machine = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), 1 << 62)
    return min([machine, *_group_limits()])


def _group_limits() -> list[int]:
    """List what each control group (version 2) above this process has left."""
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
        group = next((line[3:] for line in lines if line.startswith("0::")), "/")
    except OSError:
        return []
    left = []
    path = Path("/sys/fs/cgroup") / group.lstrip("/")
    for folder in [path, *path.parents]:
        try:
            left.append(int((folder / "memory.max").read_text()) - int((folder / "memory.current").read_text()))
        except (OSError, ValueError):  # no such file, or "max": no limit
            continue
    return [max(0, room) for room in left]


def exists(name: str) -> bool:
    """Tell whether there is a segment of that name."""
    try:
        os.close(_open_named(name))
    except SegmentError:
        return False
    return True
