"""Moving the content of an actor's store into a learner's store, each item exactly once.

Items have ids that count from 0 in the actor's store. The learner's side keeps a *cursor* for each actor's store: the id that
it wants next. A batch travels with the id of its first item, so that one which arrives again is recognised.

    actor                                   learner
    sync(store)                  ->         cursor, or None: never heard of this store
    items 40..59, first_id 40    ->         cursor 40: inserts 20, cursor 60
    items 40..59 again (timeout) ->         cursor 60: inserts none
    items 60..79                 ->         another life of the learner's store: refused, sync again

Cursors live as long as the learner's store object, also across servers. If it is gone, the actor sends what its own store still
holds and reports the rest as lost.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from os import urandom
from typing import Any, Final

from edgeml_ipc import _columns
from edgeml_ipc._client import Client
from edgeml_ipc._deadline import Deadline
from edgeml_ipc.data.data_store import DataStoreBase
from edgeml_ipc.errors import EdgeMLError, MessageTooLarge, TimeoutError

MAX_CURSORS: Final = 4096
BATCH_ITEMS: Final = 1024
BATCH_BYTES: Final = 4 << 20
_MAX_SYNCS: Final = 4


@dataclass(frozen=True)
class UpdateResult:
    """What one `update` did, summed over the client's stores. Always truthy: a failure is an exception.

    Attributes:
        sent: items that the server's store took, or had taken when an earlier attempt timed out.
        evicted: items that a store dropped before they could be sent.
        lost: items that were delivered before, but to a server that died, and that no store here still holds.
    """

    sent: int = 0
    evicted: int = 0
    lost: int = 0

    def __add__(self, other: UpdateResult) -> UpdateResult:
        return UpdateResult(self.sent + other.sent, self.evicted + other.evicted, self.lost + other.lost)

    def __sub__(self, other: UpdateResult) -> UpdateResult:
        return UpdateResult(self.sent - other.sent, self.evicted - other.evicted, self.lost - other.lost)


class Uploader:
    """The actor's side for one store. One thread at a time.

    Attributes:
        next_id: id of the next item to send.
        sent, evicted, lost: totals, as in `UpdateResult`, of failed runs too.
    """

    def __init__(self, client: Client, client_name: str, store_name: str, store: DataStoreBase) -> None:
        self._client = client
        self._store = store
        self._names = {"store": store_name, "client": client_name, "incarnation": store.incarnation}
        self._learner_store: bytes | None = None  # the life of the learner's store that `next_id` is about; None: ask
        self._synced_with: bytes | None = None  # the same, of the last time that we asked
        self.next_id = 0
        self.sent = self.evicted = self.lost = 0

    @property
    def totals(self) -> UpdateResult:
        return UpdateResult(self.sent, self.evicted, self.lost)

    def run(self, deadline: Deadline) -> None:
        """Send what is in the store by now.

        Raises:
            TimeoutError: the deadline passed, or a call took too long. Others as `Client.call`. What was sent until then
                counts in the totals; the next run goes on from there.
        """
        target = self._store.latest_data_id()
        syncs = 0
        try:
            while True:
                if self._learner_store is None:
                    if syncs == _MAX_SYNCS:
                        raise EdgeMLError(f"{self._client.address}: the store was replaced {syncs} times in one update")
                    self._sync(deadline)
                    syncs += 1
                if self.next_id > target:
                    break
                if deadline.expired:
                    raise TimeoutError(f"{self._client.address}: items {self.next_id} to {target} are not yet sent")
                self._send_batch(deadline)
        except EdgeMLError:
            self._learner_store = None
            raise

    def _call(self, method: str, payload: dict[str, Any], deadline: Deadline) -> Any:
        remaining = deadline.remaining()
        seconds = self._client.timeout
        return self._client.call(method, payload, seconds if remaining is None else min(seconds, remaining))

    def _sync(self, deadline: Deadline) -> None:
        answer = self._call("sync", self._names, deadline)
        cursor = answer["next_id"]
        if cursor is not None:
            if cursor > self.next_id:
                if self._synced_with is not None:  # a batch arrived whose answer did not; else they are an earlier process's
                    self.sent += cursor - self.next_id
                self.next_id = cursor
        elif self.next_id and answer["learner_store"] != self._synced_with:
            self._start_over()
        self._learner_store = self._synced_with = answer["learner_store"]

    def _start_over(self) -> None:
        """Go back to the oldest item that is still held: the learner's store is a new one and has nothing of ours."""
        oldest_held, _, _ = self._store.read_since(-1, limit=0)
        gone = min(oldest_held, self.next_id)
        self.lost += max(0, gone - self.evicted - self.lost)
        self.next_id = gone

    def _send_batch(self, deadline: Deadline) -> None:
        first_id, items, evicted = self._store.read_since(self.next_id - 1, limit=BATCH_ITEMS)
        self.evicted += evicted
        self.next_id = first_id
        if not items:
            return
        count = max(1, min(len(items), BATCH_BYTES // max(1, _size_bytes(items[0]))))
        while True:
            batch = {**self._names, "learner_store": self._learner_store, "first_id": first_id, "evicted": evicted}
            try:
                answer = self._call("upload", {**batch, **_columns.pack(items[:count])}, deadline)
                break
            except MessageTooLarge:
                if count == 1:
                    raise
                count //= 2
        if answer["next_id"] is None:
            self._learner_store = None
            return
        self.sent += answer["next_id"] - self.next_id
        self.next_id = answer["next_id"]

    def stats(self) -> dict[str, int]:
        waiting = max(0, self._store.latest_data_id() + 1 - self.next_id)
        return {"sent": self.sent, "evicted": self.evicted, "lost": self.lost, "waiting": waiting}


def _size_bytes(tree: Any) -> int:
    """Estimate what an item takes on the wire."""
    if isinstance(tree, dict):
        return sum(map(_size_bytes, tree.values()))
    if isinstance(tree, list | tuple):
        return sum(map(_size_bytes, tree))
    if isinstance(tree, bytes | str):
        return len(tree)
    return int(getattr(tree, "nbytes", 8))


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
    """The learner's side for one store.

    Attributes:
        inserted, repeated, evicted: items inserted, items that came again and were not, items that actors say they dropped.
    """

    def __init__(self, store: DataStoreBase) -> None:
        self.store = store
        self._cursors = cursors_of(store)
        self.inserted = self.repeated = self.evicted = 0
        self._just_inserted = 0

    def sync(self, request: dict[str, Any]) -> dict[str, Any]:
        with self._cursors.lock:
            next_id = self._cursors.next_id(request["client"], request["incarnation"])
        return {"next_id": next_id, "learner_store": self._cursors.incarnation}

    def take(
        self, request: dict[str, Any], announce: Callable[[list[Any]], object] | None = None
    ) -> tuple[dict[str, Any], list[Any]]:
        """Insert what is new in a batch; return the answer and the new items.

        Args:
            announce: called with the items that were inserted, if there are any, also if the store raised at a later one.
        Raises:
            whatever the store's `insert` raises; the cursor then stands at the first item that is not in the store.
        """
        if request["learner_store"] != self._cursors.incarnation:
            return {"next_id": None}, []
        client, incarnation, first_id = request["client"], request["incarnation"], request["first_id"]
        items = _columns.unpack(request)
        new_items: list[Any] = []
        self._just_inserted = 0
        try:
            with self._cursors.lock:
                cursor = self._cursors.next_id(client, incarnation)
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
                    self._cursors.move(client, incarnation, next_id)
        finally:
            if self._just_inserted and announce is not None:
                announce(new_items[: self._just_inserted])
        self.evicted += request["evicted"]
        return {"next_id": next_id}, new_items

    def _insert(self, items: list[Any]) -> None:
        """Insert, and count in `_just_inserted` how many are in the store, also if it raises."""
        latest = self._latest_id() if type(self.store).batch_insert is not DataStoreBase.batch_insert else None
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

    def stats(self) -> dict[str, int]:
        counters = {"inserted": self.inserted, "repeated": self.repeated, "evicted_by_clients": self.evicted}
        return {**counters, "held": len(self.store)}
