"""How a process that talks to a buffer's owner on the same machine attaches to the buffer itself.

The owner offers its name, or the descriptor by which it holds the memory, `/proc/<pid>/fd/<fd>`. Neither is trusted: what is
opened must be a file of this user's, and say of itself that it is the life of the buffer that was offered.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from typing import Any, TypeVar

from edgeml_ipc.data.replay_buffer import SharedBuffer
from edgeml_ipc.errors import SegmentError

B = TypeVar("B", bound=SharedBuffer)


def offer_of(buffer: SharedBuffer) -> dict[str, Any] | None:
    """Return how other processes of this machine and user attach, as plain data; None: the memory is private."""
    try:
        fd = buffer.fileno()
    except SegmentError:
        return None
    return {
        "face": face_of(buffer).__name__,
        "incarnation": buffer.incarnation,
        "name": buffer.name,
        "pid": os.getpid(),
        "fd": fd,
    }


def face_of(buffer: SharedBuffer) -> type[SharedBuffer]:
    """Return the class of this package's that the buffer is of."""
    return next(kind for kind in type(buffer).__mro__ if kind.__module__.startswith("edgeml_ipc.data."))


def handle_on(buffer: SharedBuffer, **options: Any) -> SharedBuffer:
    """Attach to a buffer of this process once more: a handle with writers and random numbers of its own.

    Raises:
        SegmentError: the memory is private.
    """
    return face_of(buffer).attach(buffer.fileno(), **options)


def attach(offer: Any, attach_to: Callable[[str | int], B]) -> B:
    """Attach to the buffer of an offer.

    Args:
        attach_to: what attaches, by a name or a file descriptor: a class's `attach`, with the options of this process.
    Raises:
        SegmentError: it cannot be reached from here, or what is there is another; the message says why.
    """
    incarnation, name, pid, fd = (offer[key] for key in ("incarnation", "name", "pid", "fd"))
    reasons = []
    if isinstance(name, str):
        try:
            return _checked(attach_to(name), incarnation)
        except (SegmentError, ValueError) as error:
            reasons.append(str(error))
    if type(pid) is not int or type(fd) is not int or pid <= 0 or fd < 0:
        raise SegmentError(f"the offer of a buffer names the process {pid!r} and the descriptor {fd!r}, which are none")
    try:
        opened = _open(f"/proc/{pid}/fd/{fd}")
    except OSError as error:
        raise SegmentError("; ".join([*reasons, f"the owner's memory cannot be opened: {error}"])) from error
    try:
        return _checked(attach_to(opened), incarnation)
    except SegmentError as error:
        raise SegmentError("; ".join([*reasons, str(error)])) from error
    finally:
        os.close(opened)


def _open(path: str) -> int:
    """Open a memory file of this user's; nothing else is opened, since that could block or have effects."""
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
        raise PermissionError(f"{path} is not a memory file of user {os.geteuid()}")
    return os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)


def _checked(buffer: B, incarnation: bytes) -> B:
    if buffer.incarnation != incarnation:
        buffer.close()
        raise SegmentError("the memory that was offered is another buffer's by now, or another machine's")
    return buffer
