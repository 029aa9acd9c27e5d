"""Uploads: streams of numbered items from clients, each kept once, however often it comes.

A client's items are numbered from 0. How far a stream is committed lies in the buffer's memory and moves with the rows
themselves: a learner that was killed, and attaches to its buffer again, finds each cursor exactly where the rows end.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Final

from edgeml_ipc.data.flow import Flow
from edgeml_ipc.data.storage import Storage
from edgeml_ipc.data.writer import Writer
from edgeml_ipc.errors import BufferFull, TimeoutError

_KEY_BYTES: Final = 16


class UploadStream:
    """One client's stream of items into a buffer: a writer, and a cursor that is committed with its rows. A context manager.

    Threads and processes: one thread at a time. At most one stream of a client's store exists at a time, in any process.

    Attributes:
        cursor: the item that is wanted next; None: nothing was ever heard of this stream.
        number: of the writer that has the rows.
    """

    def __init__(self, storage: Storage, flow: Flow | None, client: str, incarnation: bytes) -> None:
        """Take the stream over.

        Args:
            client: name of the client and its store. incarnation: of that store: the numbers of a new life count from 0 again.
        Raises:
            BufferFull: another live writer has this stream, or live writers hold every place.
        """
        self._storage, self._table = storage, storage.table
        self._key = _key(client, incarnation)
        self._flow = flow
        self._writer = Writer(storage, flow)
        try:
            self.cursor = self._table.cursor(self._key)
            if self.cursor is not None:
                self._bind(self.cursor)
        except BaseException:
            self._writer.close()
            raise

    @property
    def number(self) -> int:
        """Number of the writer that has the rows."""
        return self._writer.number

    def insert(self, first_id: int, items: Sequence[Any]) -> int:
        """Insert what is new among `items`, numbered from `first_id` on; return the number that is wanted next.

        Where numbers are left out, the open episode ends there as truncated.

        Raises:
            ValueError, TypeError: an item does not fit. BufferFull, TimeoutError: as `ReplayBuffer.insert`. In all cases the
                cursor says how far it came; without a rate limiter an item that does not fit leaves all of this call out.
        """
        cursor = self.cursor
        if cursor is None or first_id > cursor:
            self.skip_to(first_id)
            cursor = first_id
        new = list(items[cursor - first_id :])
        most = self._flow.piece_inserts if self._flow is not None else None
        piece = max(1, len(new) if most is None else most)
        try:
            for begin in range(0, len(new), piece):
                self._writer.batch_insert(new[begin : begin + piece])
            self.cursor = cursor + len(new)
        except (BufferFull, TimeoutError, ValueError, TypeError):
            self.cursor = self._table.cursor(self._key)
            raise
        assert self.cursor is not None
        return self.cursor

    def skip_to(self, first_id: int) -> None:
        """Leave out the items before `first_id`, which is past the cursor: a writer of another number goes on from there.

        What `insert` does by itself; for who must know the number before the rows are there.
        """
        if self.cursor is not None:
            self._start_anew()
        self._bind(first_id)
        self.cursor = first_id

    def close(self) -> None:
        """End the open episode as truncated, and leave the stream to whoever goes on with it. Idempotent."""
        self._writer.close()

    def __enter__(self) -> UploadStream:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def _start_anew(self) -> None:
        """Go on with a new writer: the episode that was open has lost steps."""
        self._writer.close()
        self._writer = Writer(self._storage, self._flow)

    def _bind(self, next_id: int) -> None:
        try:
            self._table.bind(self._key, self._writer.place, next_id)
        except BufferFull:
            if not self._table.recover():
                raise
            self._table.bind(self._key, self._writer.place, next_id)


class Uploads:
    """The streams of a buffer."""

    def __init__(self, storage: Storage, flow: Flow | None = None) -> None:
        """Keep them in `storage`. `flow`: that inserts keep to; None: none."""
        self._storage, self._flow = storage, flow

    def cursor(self, client: str, incarnation: bytes) -> int | None:
        """Return how far a stream is committed, whoever writes it now; None: nothing was ever heard of it."""
        return self._storage.table.cursor(_key(client, incarnation))

    def stream(self, client: str, incarnation: bytes) -> UploadStream:
        """Take a stream over; see `UploadStream`."""
        return UploadStream(self._storage, self._flow, client, incarnation)


def _key(client: str, incarnation: bytes) -> bytes:
    """Return the name of a stream in the table of cursors."""
    import hashlib  # here, since it brings OpenSSL with it

    return hashlib.blake2b(incarnation, digest_size=_KEY_BYTES, key=hashlib.sha256(client.encode()).digest()).digest()
