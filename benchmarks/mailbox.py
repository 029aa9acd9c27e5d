"""64 bytes there and back from Python over the page of `pingpong.c`: compiled when it is opened, spinning, and nothing else.

Whoever carries messages between two Python processes makes a Python call on each side, reads a buffer and makes a bytes object,
so this is a floor for all of them.
"""

from __future__ import annotations

import importlib.util
import mmap
import subprocess
import sysconfig
import tempfile
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from benchmarks.compiled import compiler
from benchmarks.harness import Placement, Round
from benchmarks.payloads import SMALL_BYTES, echo
from benchmarks.shapes import round_trip
from benchmarks.way import Ask, Handler, Way

_SOURCE = Path(__file__).with_name("mailboxmodule.c")


class MailboxWay(Way):
    """The compiled module in both processes; 64 bytes only."""

    name, title, layer = "mailbox", "C spin through Python", "floor"

    @contextmanager
    def shared(self, nbytes: int) -> Iterator[Path]:
        """Compile into a folder, where the page lies too."""
        with tempfile.TemporaryDirectory(prefix="edgeml-bench-") as folder:
            flags = ["-O2", "-shared", "-fPIC", f"-I{sysconfig.get_path('include')}"]
            subprocess.run([compiler(), *flags, _SOURCE, "-o", Path(folder) / "mailbox.so"], check=True)
            (Path(folder) / "page").write_bytes(bytes(mmap.PAGESIZE))
            yield Path(folder)

    def answer(self, pipe: Any, shared: Path, nbytes: int, handler: Handler) -> None:
        """See `Way.answer`."""
        mailbox = _loaded(shared)
        pipe.send(None)
        threading.Thread(target=lambda: (pipe.recv(), mailbox.end()), daemon=True).start()
        while (message := mailbox.take()) is not None:
            mailbox.give(message)

    @contextmanager
    def ask(self, address: None, shared: Path, nbytes: int) -> Iterator[Ask]:
        """See `Way.ask`."""
        yield _loaded(shared).exchange


def _loaded(folder: Path) -> Any:
    spec = importlib.util.spec_from_file_location("mailbox", folder / "mailbox.so")
    assert spec is not None
    assert spec.loader is not None
    mailbox = importlib.util.module_from_spec(spec)
    with (folder / "page").open("r+b") as page:
        mailbox.attach(page.fileno())
    return mailbox


def pingpong(placement: Placement) -> AbstractContextManager[Round]:
    """Open the two processes."""
    return round_trip(placement, MailboxWay(), SMALL_BYTES, echo)
