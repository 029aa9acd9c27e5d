"""The learner's side of uploads: which items of which actor's store it has, and which are new.

A store of the user's own is filled item by item, and its cursors are kept beside it while its object lives. A buffer on shared
memory keeps them itself, committed with the rows; each actor's store is a stream with a writer of its own there, so that two
actors' episodes never mix, and actors on this machine write their streams themselves and only tell that there is something new.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from os import urandom
from typing import Any, Final

from edgeml_ipc._attachments import handle_on, offer_of
from edgeml_ipc.data.data_store import DataStoreBase
from edgeml_ipc.data.replay_buffer import SharedBuffer
from edgeml_ipc.data.uploads import UploadStream
from edgeml_ipc.errors import SegmentError, TimeoutError

MAX_CURSORS: Final = 4096
NOBODY: Final = b""

Announce = Callable[[Sequence[Any]], object]


class Cursors:
    """What one of the learner's stores has taken, by actor's store. Lives as long as the store.

    Attributes:
        incarnation: 16 random bytes that name this life of the store.
        lock: held while a batch is inserted, so that the check and the insert are one step.
    """

    def __init__(self) -> None:
        self.incarnation = urandom(16)
        self.lock = threading.Lock()
        self._next: OrderedDict[tuple[str, bytes], int] = OrderedDict()

    def next_id(self, client: str, incarnation: bytes) -> int | None:
        """Return the id that is wanted next; None for a store that was never heard of."""
        key = (client, incarnation)
        if key in self._next:
            self._next.move_to_end(key)
        return self._next.get(key)

    def move(self, client: str, incarnation: bytes, next_id: int) -> None:
        key = (client, incarnation)
        self._next[key] = next_id
        self._next.move_to_end(key)
        if len(self._next) > MAX_CURSORS:
            self._next.popitem(last=False)


_cursors: dict[int, Cursors] = {}  # by the store's id: two stores may compare equal, or have no hash
_cursors_lock = threading.Lock()


def cursors_of(store: DataStoreBase) -> Cursors:
    """Return the cursors that belong to a store of the learner's."""
    with _cursors_lock:
        cursors = _cursors.get(id(store))
        if cursors is None:
            cursors = _cursors[id(store)] = Cursors()
            weakref.finalize(store, _cursors.pop, id(store), None).atexit = False
        return cursors


class Inlet:
    """The way into one store of any kind. `client` is always who asks, by the 16 bytes that name it.

    Attributes:
        inserted, repeated, evicted: items inserted, items that came again and were not, items that actors say they dropped.
    """

    def __init__(self, store: DataStoreBase) -> None:
        self.store = store
        self._cursors = cursors_of(store)
        self.inserted = self.repeated = self.evicted = 0
        self._just_inserted = 0

    def sync(self, request: dict[str, Any], client: bytes = NOBODY, *, near: bool = False) -> dict[str, Any]:
        """Answer which item is wanted next."""
        with self._cursors.lock:
            next_id = self._cursors.next_id(request["client"], request["incarnation"])
        return {"next_id": next_id, "learner_store": self._cursors.incarnation}

    def take(
        self, request: dict[str, Any], announce: Announce | None = None, client: bytes = NOBODY
    ) -> tuple[dict[str, Any], Sequence[Any]]:
        """Insert what is new in a batch; return the answer and the new items.

        Args:
            announce: called with the items that were inserted, if there are any, also if the store raised at a later one.
        Raises:
            whatever the store's `insert` raises; the cursor then stands at the first item that is not in the store.
        """
        if request["learner_store"] != self._cursors.incarnation:
            return {"next_id": None}, []
        name, incarnation, first_id = request["client"], request["incarnation"], request["first_id"]
        items = _items(request)
        new_items: list[Any] = []
        self._just_inserted = 0
        try:
            with self._cursors.lock:
                cursor = self._cursors.next_id(name, incarnation)
                known = 0 if cursor is None else min(len(items), max(0, cursor - first_id))
                new_items = items[known:]
                next_id = first_id + known
                self.repeated += known
                try:
                    if new_items:
                        self._insert(new_items)
                finally:
                    self.inserted += self._just_inserted
                    next_id = max(next_id + self._just_inserted, cursor or 0)
                    self._cursors.move(name, incarnation, next_id)
        finally:
            if self._just_inserted and announce is not None:
                announce(new_items[: self._just_inserted])
        self.evicted += request["evicted"]
        return {"next_id": next_id}, new_items

    def _insert(self, items: list[Any]) -> None:
        """Insert, and count in `_just_inserted` how many are in the store, also if it raises."""
        latest = self._latest_id() if _has_batches(type(self.store)) else None
        if latest is None:
            for item in items:
                self.store.insert(item)
                self._just_inserted += 1
            return
        try:
            self.store.batch_insert(items)
            self._just_inserted = len(items)
        finally:
            if not self._just_inserted:  # it raised; what it inserted before shows in the ids
                self._just_inserted = min(len(items), max(0, self.store.latest_data_id() - latest))

    def _latest_id(self) -> int | None:
        """Return the store's newest id, or None if it does not count."""
        try:
            return self.store.latest_data_id()
        except NotImplementedError:
            return None

    def announce(self, request: dict[str, Any], client: bytes, announce: Announce) -> bool:
        """Tell what a client wrote itself; False: it wrote elsewhere."""
        return False

    def end(self, client: bytes, announce: Announce, *, for_good: bool) -> None:
        """Note that a client went away; it may come back, unless `for_good`."""

    def close(self) -> None:
        """End all streams. Idempotent."""

    def stats(self) -> dict[str, int]:
        counters = {"inserted": self.inserted, "repeated": self.repeated, "evicted_by_clients": self.evicted}
        return {**counters, "held": len(self.store)}


def _items(request: dict[str, Any]) -> list[Any]:
    items: object = request["items"]
    if type(items) is not list:
        raise TypeError(f"a batch of items is a list, not {type(items).__name__}")
    return items


def inlet_of(store: DataStoreBase) -> Inlet | BufferInlet:
    """Return the way into a store: past the methods of a buffer of this package's, by those of a user's own class."""
    by_itself = type(store).insert.__module__.startswith("edgeml_ipc.")
    return BufferInlet(store) if isinstance(store, SharedBuffer) and by_itself else Inlet(store)


def _has_batches(kind: type[DataStoreBase]) -> bool:
    """Tell whether `batch_insert` knows of all that `insert` does: no class overrides `insert` alone."""
    if kind.batch_insert is DataStoreBase.batch_insert:
        return False
    defines = {
        name: next(at for at, one in enumerate(kind.__mro__) if name in vars(one)) for name in ("insert", "batch_insert")
    }
    return defines["batch_insert"] <= defines["insert"]


class _Stream:
    """An actor's store that comes by messages.

    Attributes:
        client: who uploads it. rows: what takes it.
        waiting: items that were accepted and are not committed: the last of an episode may wait for the one after it.
    """

    def __init__(self, client: bytes, rows: UploadStream) -> None:
        self.client, self.rows = client, rows
        self.waiting: list[Any] = []


class BufferInlet:
    """The way into a buffer on shared memory; see `Inlet`. Each item is announced when it is committed."""

    def __init__(self, buffer: SharedBuffer) -> None:
        self.store: DataStoreBase = buffer
        self._buffer = buffer
        try:
            # Its writers are ours to close, and never wait within the server's loop.
            self._handle = handle_on(buffer, flow_timeout=0.0)
        except SegmentError:
            self._handle = buffer
        self._streams: dict[tuple[str, bytes], _Stream] = {}
        self._news = buffer.news()
        self._writers: dict[int, bytes] = {}  # of clients that write themselves: number -> client
        self.inserted = self.repeated = self.evicted = self.direct = 0

    def sync(self, request: dict[str, Any], client: bytes = NOBODY, *, near: bool = False) -> dict[str, Any]:
        """Answer which item is wanted next, and offer a client that is near to write itself."""
        key = request["client"], request["incarnation"]
        answer = {"learner_store": self._buffer.incarnation}
        wanted = near and request.get("direct") and request.get("refused") != self._buffer.incarnation
        offer = offer_of(self._buffer) if wanted else None
        if offer is not None:
            self._close(key)  # a stream has one writer
        stream = self._streams.get(key)
        cursor = self._buffer.uploads.cursor(*key) if stream is None else stream.rows.cursor
        return {**answer, "next_id": cursor, "offer": offer}

    def take(
        self, request: dict[str, Any], announce: Announce | None = None, client: bytes = NOBODY
    ) -> tuple[dict[str, Any], Sequence[Any]]:
        """Insert what is new in a batch; return the answer and the items that were committed by it. As `Inlet.take`."""
        if request["learner_store"] != self._buffer.incarnation:
            return {"next_id": None}, []
        key = request["client"], request["incarnation"]
        stream = self._stream(key, client)
        first_id, items = request["first_id"], _items(request)
        before = stream.rows.cursor
        wanted = request.get("wanted")
        if before is not None and type(wanted) is int and wanted > before:
            # What was accepted then, and waited for the step that follows, was lost with a learner: the client goes back to it.
            return {"next_id": None}, []
        known = 0 if before is None else min(len(items), max(0, before - first_id))
        if before is not None and first_id > before:
            stream.waiting = []  # what an episode with a gap was waiting for will not come
        new: list[Any] = []
        waits: str | None = None
        try:
            stream.rows.insert(first_id, items)
        except TimeoutError as error:  # of a rate limiter: the client asks again
            waits = str(error)
        finally:
            cursor = stream.rows.cursor
            accepted = items[known : max(known, (cursor or 0) - first_id)]
            self.repeated += known
            self.inserted += len(accepted)
            new = self._committed(key, stream, accepted)
            if new and announce is not None:
                announce(new)
        self.evicted += request["evicted"]
        return {"next_id": cursor, "waits": waits}, new

    def announce(self, request: dict[str, Any], client: bytes, announce: Announce) -> bool:
        """Tell what a client wrote itself, as the number that it names; False: it wrote into another buffer."""
        writer = request["writer"]
        if request["learner_store"] != self._buffer.incarnation or type(writer) is not int:
            return False
        self._writers.pop(writer, None)
        self._writers[writer] = client
        if len(self._writers) > MAX_CURSORS:
            del self._writers[next(iter(self._writers))]
        self.evicted += int(request["evicted"])
        self._tell(writer, announce)
        return True

    def end(self, client: bytes, announce: Announce, *, for_good: bool) -> None:
        """Note that a client went away: tell what it wrote last, and end its streams if it is `for_good`."""
        for writer in [number for number, holder in self._writers.items() if holder == client]:
            if for_good:
                del self._writers[writer]
            self._tell(writer, announce)
        if for_good:
            for key in [key for key, stream in self._streams.items() if stream.client == client]:
                self._close(key)

    def close(self) -> None:
        """End all streams. Idempotent."""
        for key in list(self._streams):
            self._close(key)
        if self._handle is not self._buffer:
            self._handle.close()

    def stats(self) -> dict[str, int]:
        """Return counters; `direct` are those of the inserted that clients wrote themselves."""
        counters = {"inserted": self.inserted, "repeated": self.repeated, "evicted_by_clients": self.evicted}
        return {**counters, "direct": self.direct, "held": len(self._buffer)}

    def _stream(self, key: tuple[str, bytes], client: bytes) -> _Stream:
        stream = self._streams.get(key)
        if stream is None:
            stream = self._streams[key] = _Stream(client, self._handle.uploads.stream(*key))
        stream.client = client
        return stream

    def _committed(self, key: tuple[str, bytes], stream: _Stream, accepted: list[Any]) -> list[Any]:
        """Return the items that are committed by now and were not told, and keep the others."""
        stream.waiting += accepted
        committed, cursor = self._buffer.uploads.cursor(*key), stream.rows.cursor
        if committed is None or cursor is None:
            return []
        told = len(stream.waiting) - (cursor - committed)
        new, stream.waiting = stream.waiting[:told], stream.waiting[told:]
        return new

    def _tell(self, writer: int, announce: Announce) -> None:
        count, items = self._news.of(writer)
        self.inserted += count
        self.direct += count
        if count:
            announce(items)

    def _close(self, key: tuple[str, bytes]) -> None:
        stream = self._streams.pop(key, None)
        if stream is not None:
            stream.rows.close()
