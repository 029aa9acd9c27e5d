"""Every error this library raises, as one tree.

    EdgeMLError
    ├── TimeoutError               the deadline passed (also the builtin TimeoutError)
    ├── ConnectionRefused          nothing listens at that address
    ├── AddressInUse               another server holds that address
    ├── ConnectionClosed           this side closed the connection or the client
    ├── PeerDied                   the other process ended, or the link to it broke
    ├── IncompatiblePeer           something answers that is not this library, or another version of it
    ├── ConfigMismatch             client and server were given different configs
    ├── AuthenticationError        wrong or missing key, or a user that is not allowed
    ├── RemoteError                a callback on the other side raised
    ├── RateLimited                the server's request rate was exceeded
    ├── MessageTooLarge            a message is over the limit that was agreed
    ├── CodecError                 a payload that cannot be encoded, or bytes that cannot be decoded
    ├── TransportUnavailable       the named transport cannot be used here
    ├── BufferFull                 a bounded queue, ring or store has no room
    ├── BufferEmpty                a store has nothing to sample from
    ├── SegmentError               a shared-memory segment or a saved buffer is missing, foreign, too small or damaged
    └── DatasetError               a data set on disk is in use, another one, damaged, or cannot be written

Errors of the operating system and of other libraries are translated where they are called; their cause is chained.
"""

from __future__ import annotations

import builtins
from collections.abc import Mapping


class EdgeMLError(Exception):
    """Root of all errors raised by this library."""


class TimeoutError(EdgeMLError, builtins.TimeoutError):
    """The deadline of an operation passed before it was done."""


class ConnectionRefused(EdgeMLError, builtins.ConnectionRefusedError):
    """Nothing listens at the address."""


class AddressInUse(EdgeMLError, builtins.OSError):
    """A server was asked to listen where another one already does."""


class ConnectionClosed(EdgeMLError):
    """The object was closed on this side and then used."""


class PeerDied(EdgeMLError, builtins.ConnectionError):
    """The process on the other side ended, or the link to it broke.

    Attributes:
        outcome_unknown: True if a request had been sent and no reply had arrived: it may or may not have been executed.
    """

    def __init__(self, message: str, *, outcome_unknown: bool = False) -> None:
        super().__init__(message)
        self.outcome_unknown = outcome_unknown


class IncompatiblePeer(EdgeMLError):
    """The other side speaks another protocol, or another version of this one."""


class ConfigMismatch(EdgeMLError):
    """Client and server were given configs that differ.

    Attributes:
        differences: field name -> (value of the client, value of the server), as text.
    """

    def __init__(self, message: str, differences: Mapping[str, tuple[str, str]]) -> None:
        super().__init__(message)
        self.differences = dict(differences)


class AuthenticationError(EdgeMLError):
    """A key is wrong or missing, or the peer's user is not allowed."""


class RemoteError(EdgeMLError):
    """A callback on the other side raised.

    Attributes:
        remote_type: name of the exception's class over there.
        remote_traceback: its traceback as text.
    """

    def __init__(self, message: str, *, remote_type: str = "", remote_traceback: str = "") -> None:
        super().__init__(f"{message}\n\n{remote_traceback}" if remote_traceback else message)
        self.remote_type = remote_type
        self.remote_traceback = remote_traceback


class RateLimited(EdgeMLError):
    """The server's request rate was exceeded; the request was not executed."""


class MessageTooLarge(EdgeMLError):
    """A message is over the limit; nothing was sent."""


class CodecError(EdgeMLError):
    """A payload cannot be encoded, or received bytes cannot be decoded."""


class TransportUnavailable(EdgeMLError):
    """The transport that was asked for by name cannot be used here."""


class BufferFull(EdgeMLError):
    """A bounded queue, ring or store has no room for more."""


class BufferEmpty(EdgeMLError):
    """A store was asked for a sample and holds nothing that could be drawn."""


class SegmentError(EdgeMLError):
    """A shared-memory segment or a saved buffer is missing, foreign, too small or damaged, or cannot be made."""


class DatasetError(EdgeMLError):
    """A data set on disk is being written by another, has other features, is damaged, or cannot be written."""
