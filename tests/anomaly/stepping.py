"""Single steps: a child runs one instruction at a time, and what its death after each would leave behind is kept.

A process that is killed leaves shared memory as its last instruction left it. So what is there after each instruction of one
run is what a kill at that place would have left: one run shows all kills. The locks that the kernel drops at a death are on
the file that the child has mapped; who looks at the memory in another file finds none.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from pathlib import Path

PTRACE_TRACEME, PTRACE_SINGLESTEP = 0, 9
ROOT = Path(__file__).parents[2]
_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long
_libc.memcmp.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t]


def begin() -> None:
    """Of the child: from here to `end` it is run in single steps."""
    _ptrace(PTRACE_TRACEME, 0)
    os.kill(os.getpid(), signal.SIGSTOP)


def end() -> None:
    """Of the child: here it is killed."""
    os.kill(os.getpid(), signal.SIGSTOP)


def images_of(code: str, memory: memoryview, start: bytes | None = None) -> list[bytes]:
    """Run a child, and return what `memory` holds after its instructions between `begin` and `end`, each time that it changed.

    Args:
        code: of the child, in Python. memory: a writable view on what it shares with us.
        start: what is put there at `begin`; None: it stays as it is.
    Returns:
        what was there at `begin` first. The child is dead by then.
    """
    child = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    try:
        _wait_for_stop(child.pid, signal.SIGSTOP)
        if start is not None:
            memory[:] = start
        images = [bytes(memory)]
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        stopped_by = 0
        while stopped_by != signal.SIGSTOP:
            _ptrace(PTRACE_SINGLESTEP, child.pid)
            stopped_by = _wait_for_stop(child.pid, signal.SIGTRAP, signal.SIGSTOP)
            if _libc.memcmp(address, images[-1], len(memory)):
                images.append(bytes(memory))
        return images
    finally:
        child.kill()
        child.wait(60)


def _ptrace(request: int, pid: int) -> None:
    if _libc.ptrace(request, pid, None, None) == -1:
        raise OSError(ctypes.get_errno(), f"ptrace({request}) was refused")


def _wait_for_stop(pid: int, *signals: int) -> int:
    _, status = os.waitpid(pid, 0)
    assert os.WIFSTOPPED(status), f"the child ended with {os.waitstatus_to_exitcode(status)}"
    stopped_by = os.WSTOPSIG(status)
    assert stopped_by in signals, f"the child was stopped by {signal.Signals(stopped_by).name}"
    return stopped_by
