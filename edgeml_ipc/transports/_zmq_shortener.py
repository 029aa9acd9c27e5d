"""Published values that tcp sends shortened, and the thread that does it, for which neither publisher nor loop waits."""

from __future__ import annotations

import threading
from collections.abc import Callable

from edgeml_ipc.transports import _zmq_frames as wire
from edgeml_ipc.transports.base import Parts, Shorten


class LongValue:
    """A value that was not shortened so far. Never changes.

    Args:
        owned: the parts will never change; otherwise they are copied.
    Raises:
        MessageTooLarge: over `max_message_bytes`, not yet shortened, or MAX_PARTS.
    """

    def __init__(self, parts: Parts, shorten: Shorten, max_message_bytes: int, address: str, *, owned: bool) -> None:
        flat = [wire.flat_part(part) for part in parts]
        wire.checked_size(flat, max_message_bytes, address)
        self._parts = parts if owned else [bytes(part) for part in flat]
        self._shorten = shorten
        self._limit = max_message_bytes
        self._address = address

    def shortened(self) -> wire.Packed:
        """Return what is sent.

        Raises:
            EdgeMLError: what `shorten` raises. MessageTooLarge: it became longer.
        """
        return wire.pack(self._shorten(self._parts), self._limit, self._address, owned=True)


class Shortener:
    """Calls `work(topic)` for topics of which a value is waited for. The thread comes with the first."""

    def __init__(self, work: Callable[[int], None]) -> None:
        self._work = work
        self._changed = threading.Condition()
        self._wanted: set[int] = set()
        self._thread: threading.Thread | None = None
        self._closed = False

    def want(self, topic: int) -> None:
        """Have `topic` worked on; once, however often this is called before it is. Any thread."""
        with self._changed:
            self._wanted.add(topic)
            if self._thread is None and not self._closed:
                self._thread = threading.Thread(target=self._run, name="edgeml_ipc-shorten", daemon=True)
                self._thread.start()
            self._changed.notify()

    def _run(self) -> None:
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._wanted or self._closed)
                    if self._closed:
                        return
                    topic = self._wanted.pop()
                self._work(topic)
        finally:
            with self._changed:
                self._thread = None  # if it ends by a defect, the next topic starts another

    def close(self) -> None:
        """End the thread, after what it is doing. Idempotent, any thread."""
        with self._changed:
            self._closed = True
            thread = self._thread
            self._changed.notify()
        if thread is not None and thread is not threading.current_thread():
            thread.join()
