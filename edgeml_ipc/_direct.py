"""Direct writes: an actor on the learner's machine writes its items into the learner's buffer itself.

It attaches to the buffer that the server offered and takes its own stream there over, so that the cursor moves with the rows.
The server is told the number of the stream's writer before there are rows: whenever this process is killed, the server finds
what it has not been told of.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from typing import Any, Final

from edgeml_ipc._attachments import attach
from edgeml_ipc.data.replay_buffer import ReplayBuffer, SharedBuffer
from edgeml_ipc.data.trajectory_buffer import TrajectoryBuffer
from edgeml_ipc.data.uploads import UploadStream
from edgeml_ipc.errors import BufferFull, RemoteError, SegmentError

logger = logging.getLogger("edgeml_ipc")

_FACES: Final[Mapping[str, type[SharedBuffer]]] = {face.__name__: face for face in (ReplayBuffer, TrajectoryBuffer)}


class Direct:
    """A stream of one of this process's stores into a buffer that it is attached to. One thread at a time."""

    def __init__(self, buffer: SharedBuffer, names: Mapping[str, Any], place: str) -> None:
        """Take the stream over; `names` are those of client, store and incarnation.

        Raises:
            BufferFull: no more writers, or another process has the stream.
        """
        self._buffer, self._place = buffer, place
        self._stream: UploadStream = buffer.uploads.stream(names["client"], names["incarnation"])

    @property
    def incarnation(self) -> bytes:
        return self._buffer.incarnation

    @property
    def cursor(self) -> int | None:
        return self._stream.cursor

    @property
    def number(self) -> int:
        return self._stream.number

    def skip_to(self, first_id: int) -> bool:
        """Leave out the items before `first_id`, if any; tell whether the writer is another then."""
        number = self.number
        if self.cursor is None or first_id > self.cursor:
            self._stream.skip_to(first_id)
        return self.number != number

    def insert(self, first_id: int, items: list[Any]) -> None:
        """Insert what is new.

        Raises:
            RemoteError: an item does not fit, as if the server had said so; nothing was inserted.
        """
        try:
            self._stream.insert(first_id, items)
        except (ValueError, TypeError) as error:
            message = f"{self._place}: the buffer refuses items {first_id} to {first_id + len(items) - 1}: {error}"
            raise RemoteError(message, remote_type=type(error).__name__) from error

    def close(self) -> None:
        """End the open episode as truncated, and let go of the buffer. Idempotent."""
        self._stream.close()
        self._buffer.close()


def direct_writes(offer: Mapping[str, Any], names: Mapping[str, Any], place: str) -> Direct | None:
    """Attach to what a server offers and take the stream over; None, and a line in the log: it cannot be."""
    try:
        face = _FACES.get(str(offer["face"]))
        if face is None:
            raise SegmentError(f"the buffer is a {offer['face']!r}, which is not known here")
        # It never waits for a rate limiter itself: how long there is time is for each update to say.
        buffer: SharedBuffer = attach(offer, partial(face.attach, flow_timeout=0.0))
        try:
            return Direct(buffer, names, place)
        except BaseException:
            buffer.close()
            raise
    except (SegmentError, BufferFull) as error:
        logger.warning("%s: uploading by messages, because the buffer itself cannot be written: %s", place, error)
        return None
