"""The actor's side of moving the content of its store into a learner's store, each item exactly once.

Items have ids that count from 0 in the actor's store. The learner's side keeps a *cursor* for each actor's store: the id that
it wants next. A batch travels with the id of its first item, so that one which arrives again is recognised.

    actor                                   learner
    sync(store)                  ->         cursor, or None: never heard of this store
    items 40..59, first_id 40    ->         cursor 40: inserts 20, cursor 60
    items 40..59 again (timeout) ->         cursor 60: inserts none
    items 60..79                 ->         another life of the learner's store: refused, sync again

Where the learner's store is a buffer on shared memory and the connection proves that it is on this machine, the answer to
`sync` offers to attach to it, and the actor writes the items itself (`_direct.py`); a small notice takes the place of a batch.

Cursors live as long as the rows: in the memory of a shared buffer, and beside any other store for as long as its object lives.
If they are gone, the actor sends what its own store still holds and reports the rest as lost. If one went back, to what was
committed when the learner was killed, the actor goes back too.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from threading import Event
from typing import Any, Final

from edgeml_ipc._client import Client
from edgeml_ipc._deadline import Deadline
from edgeml_ipc._direct import Direct, direct_writes
from edgeml_ipc.data.data_store import DataStoreBase
from edgeml_ipc.errors import EdgeMLError, MessageTooLarge, TimeoutError

BATCH_ITEMS: Final = 1024
BATCH_BYTES: Final = 1 << 20
_MAX_SYNCS: Final = 4
_MAX_GAPS: Final = 1024
_PAUSE_SECONDS: Final = 0.01  # before a store whose rate limiter takes no more is asked again
_LAST_SECONDS: Final = 0.05  # with less than this left, it is not


@dataclass(frozen=True)
class UpdateResult:
    """What one `update` did, summed over the client's stores. Always truthy: a failure is an exception.

    Attributes:
        sent: items that the server's store took, or had taken when an earlier attempt timed out. One that a server lost with
            its death, and took again, counts twice.
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
        self._direct: Direct | None = None
        self._refused: bytes | None = None  # the life of the learner's store that could not be attached to
        self._gaps: deque[tuple[int, int]] = deque(maxlen=_MAX_GAPS)  # [begin, end) of items that were evicted or lost
        self._waits: str | None = None  # why the learner's store takes no more just now
        self._wanted: int | None = None  # the item that the learner's store wanted next, when it last said so
        self._untold = 0  # items that were evicted, of which the server was not told
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
                waited = self._waits
                self._pause(deadline, target)
                try:
                    self._send_batch(deadline)
                except TimeoutError as error:
                    remaining = deadline.remaining()
                    reason = self._waits or waited
                    if reason is None or remaining is None or remaining > _LAST_SECONDS:
                        raise
                    raise TimeoutError(f"{self._unsent(target)}: {reason}") from error  # the late answer is not why
        except EdgeMLError:
            self._learner_store = None
            raise

    def _pause(self, deadline: Deadline, target: int) -> None:
        """Wait a little if the store took no more; raise `TimeoutError` if there is no time to go on."""
        remaining = deadline.remaining()
        if remaining is not None and remaining <= (0 if self._waits is None else _LAST_SECONDS):
            unsent = self._unsent(target)
            raise TimeoutError(unsent if self._waits is None else f"{unsent}: {self._waits}")
        if self._waits is not None:
            Event().wait(_PAUSE_SECONDS)
            self._waits = None

    def _unsent(self, target: int) -> str:
        return f"{self._client.address}: items {self.next_id} to {target} are not yet sent"

    def _call(self, method: str, payload: dict[str, Any], deadline: Deadline) -> Any:
        remaining = deadline.remaining()
        seconds = self._client.timeout
        return self._client.call(method, payload, seconds if remaining is None else min(seconds, remaining))

    def _sync(self, deadline: Deadline) -> None:
        wants_direct = self._client.transport == "shm"
        answer = self._call("sync", {**self._names, "direct": wants_direct, "refused": self._refused}, deadline)
        cursor, life = answer["next_id"], answer["learner_store"]
        self._wanted = cursor
        self._attach(answer.get("offer"), deadline)
        if self._direct is not None:
            cursor = self._direct.cursor
        if cursor is None:
            if self.next_id and life != self._synced_with:
                self._start_over()
        elif cursor > self.next_id:
            if self._synced_with is not None:  # a batch arrived whose answer did not; else they are an earlier process's
                self.sent += cursor - self.next_id
            self.next_id = cursor
        elif cursor < self.next_id:
            self._go_back(cursor)
        self._learner_store = self._synced_with = life

    def _attach(self, offer: Any, deadline: Deadline) -> None:
        """Write directly from now on, if that was offered and works; else by messages."""
        if self._direct is not None and (offer is None or offer["incarnation"] != self._direct.incarnation):
            self.close()
        if offer is None:
            return
        if self._direct is None:
            self._direct = direct_writes(offer, self._names, self._client.address)
            if self._direct is None:
                self._refused = offer["incarnation"]
                return
        self._announce(self._direct, deadline)

    def _start_over(self) -> None:
        """Go back to the oldest item that is still held: the learner's store is a new one and has nothing of ours."""
        gone = min(self._oldest_held(), self.next_id)
        self.lost += max(0, gone - self.evicted - self.lost)
        self._gaps.append((0, gone))
        self.next_id = gone

    def _go_back(self, cursor: int) -> None:
        """Go back to a cursor: the learner was killed, or restored, with less than it had accepted."""
        resume = max(cursor, min(self._oldest_held(), self.next_id))
        known = sum(max(0, min(end, resume) - max(begin, cursor)) for begin, end in self._gaps)
        if resume - cursor > known:
            self.lost += resume - cursor - known
            self._gaps.append((cursor, resume))
        self.next_id = resume

    def _oldest_held(self) -> int:
        return self._store.read_since(-1, limit=0)[0]

    def _send_batch(self, deadline: Deadline) -> None:
        first_id, items, evicted = self._store.read_since(self.next_id - 1, limit=BATCH_ITEMS)
        if evicted:
            self.evicted += evicted
            self._gaps.append((self.next_id, first_id))
        self.next_id = first_id
        if not items:
            return
        if self._direct is not None:
            self._write(self._direct, first_id, items, evicted, deadline)
        else:
            self._upload(first_id, items, evicted, deadline)

    def _write(self, direct: Direct, first_id: int, items: list[Any], evicted: int, deadline: Deadline) -> None:
        if direct.skip_to(first_id):
            self._announce(direct, deadline)  # before there are rows: if we die, the server finds them by the writer's number
        self._untold += evicted
        try:
            direct.insert(first_id, items)
        except TimeoutError as error:  # of a rate limiter: there is time yet, or `run` says that there is none
            self._waits = str(error)
        finally:
            if direct.cursor is not None and direct.cursor > self.next_id:
                self.sent += direct.cursor - self.next_id
                self.next_id = direct.cursor
        if self._waits is None or self.next_id > first_id:
            self._announce(direct, deadline)

    def _announce(self, direct: Direct, deadline: Deadline) -> None:
        evicted, self._untold = self._untold, 0
        notice = {**self._names, "learner_store": direct.incarnation, "writer": direct.number, "evicted": evicted}
        if not self._call("announce", notice, deadline):
            self._learner_store = None  # another buffer has taken its place

    def _upload(self, first_id: int, items: list[Any], evicted: int, deadline: Deadline) -> None:
        count = max(1, min(len(items), BATCH_BYTES // max(1, _size_bytes(items[0]))))
        while True:
            place = {"learner_store": self._learner_store, "wanted": self._wanted, "first_id": first_id}
            batch = {**self._names, **place, "evicted": evicted}
            try:
                answer = self._call("upload", {**batch, "items": items[:count]}, deadline)
                break
            except MessageTooLarge:
                if count == 1:
                    raise
                count //= 2
        if answer["next_id"] is None:
            self._learner_store = None
            return
        self.sent += answer["next_id"] - self.next_id
        self.next_id = self._wanted = answer["next_id"]
        self._waits = answer.get("waits")

    def close(self) -> None:
        """Let go of the learner's buffer, if it was attached to; the open episode ends as truncated. Idempotent."""
        direct, self._direct = self._direct, None
        if direct is not None:
            direct.close()

    def stats(self) -> dict[str, int]:
        waiting = max(0, self._store.latest_data_id() + 1 - self.next_id)
        direct = int(self._direct is not None)
        return {"sent": self.sent, "evicted": self.evicted, "lost": self.lost, "waiting": waiting, "direct": direct}


def _size_bytes(tree: Any) -> int:
    """Estimate what an item takes on the wire; the items of a list are taken to be like its first."""
    if isinstance(tree, dict):
        return sum(map(_size_bytes, tree.values()))
    if isinstance(tree, list | tuple):
        return len(tree) * _size_bytes(tree[0]) if tree else 0
    if isinstance(tree, bytes | str):
        return len(tree)
    return int(getattr(tree, "nbytes", 8))
