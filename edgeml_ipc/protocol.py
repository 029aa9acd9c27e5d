"""What client and server say to each other: envelopes, handshakes, and errors as bytes. No I/O.

A message is `[envelope, codec header, array, array ...]`. The envelope is 24 bytes, little-endian:

    0        4      5       6        8          16          24
    | magic  | kind | flags | method | sequence | number    |
    | u32    | u8   | u8=0  | u16    | u64      | u64       |

    kind     sequence                      number
    REQUEST  of this lane, from 1 upwards  oldest sequence whose reply the client still awaits
    REPLY    of the request                newest version that the server has published
    ERROR    of the request                newest version that the server has published
    PUBLISH  0                             version of the value, from 1 upwards
    ACK      0                             version that the subscriber has taken; 0 says that it has just arrived

A client is 16 random bytes; each of its connections is a *lane* with sequences of its own. The magic's last byte is the
protocol version. `method` is the index into the list of names that the server's welcome carries.
"""

from __future__ import annotations

import dataclasses
import struct
import traceback
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from edgeml_ipc.errors import (
    CodecError,
    ConfigMismatch,
    EdgeMLError,
    IncompatiblePeer,
    MessageTooLarge,
    PeerDied,
    RateLimited,
    RemoteError,
)

VERSION: Final = 1
MAGIC: Final = int.from_bytes(b"EIP" + bytes([VERSION]), "little")
ENVELOPE: Final = struct.Struct("<IBBHQQ")
REQUEST: Final = 1
REPLY: Final = 2
ERROR: Final = 3
PUBLISH: Final = 4
ACK: Final = 5

BLOCKING_LANE: Final = 0
BACKGROUND_LANE: Final = 1

ID_BYTES: Final = 16
_MAX_TRACEBACK_CHARS: Final = 32_768
_PORT_FIELDS: Final = frozenset({"port_number", "broadcast_port"})


class Hello(msgspec.Struct, array_like=True):
    """What a client says when it connects."""

    protocol: int
    service: str
    client: bytes
    lane: int
    config: dict[str, Any]


class Welcome(msgspec.Struct, array_like=True):
    """What a server answers."""

    incarnation: bytes
    methods: list[str]


class Rejection(msgspec.Struct, array_like=True):
    """Why a server refuses a client; `differences` is field -> (client's value, server's value)."""

    reason: str  # "protocol", "service", "config", "malformed"
    message: str
    differences: dict[str, tuple[str, str]] = {}


class Failure(msgspec.Struct, array_like=True):
    """How a request failed: the body of an ERROR."""

    code: str  # a key of _FAILURES, or "remote"
    message: str
    remote_type: str = ""
    remote_traceback: str = ""


_FAILURES: Final[dict[str, type[EdgeMLError]]] = {
    "rate_limited": RateLimited,
    "codec": CodecError,
    "too_large": MessageTooLarge,
    "forgotten": PeerDied,
}

_DECODE_ERRORS: Final = (msgspec.DecodeError, ValueError, RecursionError)

_pack = msgspec.msgpack.Encoder().encode
_hello_decoder = msgspec.msgpack.Decoder(Hello)
_welcome_decoder = msgspec.msgpack.Decoder(Welcome)
_rejection_decoder = msgspec.msgpack.Decoder(Rejection)
_failure_decoder = msgspec.msgpack.Decoder(Failure)


class ProtocolViolation(EdgeMLError):
    """Bytes that no peer of this version sends; the connection that carried them is closed."""


def open_envelope(part: Any) -> tuple[int, int, int, int]:
    """Check an envelope and return (kind, method, sequence, number).

    Raises:
        ProtocolViolation: wrong size, magic, version, kind or flags.
    """
    try:
        magic, kind, flags, method, sequence, number = ENVELOPE.unpack(part)
    except struct.error:
        raise ProtocolViolation(f"envelope of {memoryview(part).nbytes} bytes, it has {ENVELOPE.size}") from None
    if magic != MAGIC or flags or not REQUEST <= kind <= ACK:
        raise ProtocolViolation(f"envelope with magic {magic:#010x}, kind {kind}, flags {flags:#x}; magic is {MAGIC:#010x}")
    return kind, method, sequence, number


def plain_config(config: object) -> dict[str, Any]:
    """Return the comparable fields of a config (dataclass instance or mapping) as plain values, without its ports.

    Tuples become lists and sets sorted lists, so that equal contents compare equal after they crossed the wire.
    """
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        fields: Mapping[str, Any] = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    elif isinstance(config, Mapping):
        fields = config
    else:
        raise TypeError(f"config must be a dataclass instance or a mapping, got {type(config).__name__}")
    return {str(name): _plain(value) for name, value in fields.items() if name not in _PORT_FIELDS}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return sorted((_plain(item) for item in value), key=repr)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "dtype") and hasattr(value, "tolist"):  # a numpy scalar or array; the repr of a long one is shortened
        return _plain(value.tolist())
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
        return repr(value)
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return value
    return repr(value)


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Return field -> (our value, their value) as text, for the fields that differ or that only one side has."""
    absent = object()
    found = {}
    for name in sorted({*ours, *theirs}):
        mine, other = ours.get(name, absent), theirs.get(name, absent)
        if mine != other:
            found[name] = tuple("(absent)" if value is absent else repr(value)[:200] for value in (mine, other))
    return found  # type: ignore[return-value]  # a generator of two makes a pair


def pack_hello(service: str, client: bytes, lane: int, config: dict[str, Any]) -> bytes:
    """Return what a client says when it connects; `config` is a `plain_config`."""
    return _pack(Hello(VERSION, service, client, lane, config))


def unpack_hello(blob: bytes) -> Hello:
    """Decode a hello.

    Raises:
        ProtocolViolation: not one, or a client id of the wrong size.
    """
    try:
        hello = _hello_decoder.decode(blob)
    except _DECODE_ERRORS as error:
        raise ProtocolViolation(f"hello of {len(blob)} bytes cannot be decoded: {error}") from error
    if len(hello.client) != ID_BYTES or hello.lane not in (BLOCKING_LANE, BACKGROUND_LANE):
        raise ProtocolViolation(f"hello with a client id of {len(hello.client)} bytes and lane {hello.lane}")
    return hello


def pack_welcome(incarnation: bytes, methods: list[str]) -> bytes:
    """Return what a server answers to a client that it accepts."""
    return _pack(Welcome(incarnation, methods))


def unpack_welcome(blob: bytes, address: str) -> Welcome:
    """Decode a welcome.

    Raises:
        IncompatiblePeer: not one.
    """
    try:
        return _welcome_decoder.decode(blob)
    except _DECODE_ERRORS as error:
        raise IncompatiblePeer(f"{address}: what answers there is no server of edgeml_ipc: {error}") from error


def judge(hello_blob: bytes, service: str, config: dict[str, Any]) -> bytes | None:
    """Compare a client's hello with a server's own terms; return the rejection to send, or None. Pure, any thread."""
    try:
        hello = unpack_hello(hello_blob)
    except ProtocolViolation as error:
        return _pack(Rejection("malformed", str(error)))
    if hello.protocol != VERSION:
        return _pack(Rejection("protocol", f"the server speaks protocol version {VERSION}, the client {hello.protocol}"))
    if hello.service != service:
        return _pack(Rejection("service", f"it is a server of the service {service!r}, the client wants {hello.service!r}"))
    differing = differences(hello.config, config)
    if differing:
        return _pack(Rejection("config", "client and server have different configs", differing))
    return None


def rejection_error(blob: bytes, address: str) -> EdgeMLError:
    """Return the error that a client raises for a rejection."""
    try:
        rejection = _rejection_decoder.decode(blob)
    except _DECODE_ERRORS as error:
        return IncompatiblePeer(f"{address}: the server refused this client for a reason that cannot be decoded: {error}")
    if rejection.reason == "config":
        lines = [f"  {name}: client {mine}, server {theirs}" for name, (mine, theirs) in rejection.differences.items()]
        return ConfigMismatch("\n".join([f"{address}: other config; these fields differ:", *lines]), rejection.differences)
    return IncompatiblePeer(f"{address}: other {rejection.reason}: {rejection.message}")


def pack_failure(error: BaseException, *, within_callback: bool) -> bytes:
    """Return the body of an ERROR.

    Args:
        within_callback: the error came out of a user's function, so whatever its type it is theirs, with its traceback.
    """
    if not within_callback:
        for code, kind in _FAILURES.items():
            if isinstance(error, kind):
                return _pack(Failure(code, error_text(error)))
    lines = "".join(traceback.format_exception(error))[-_MAX_TRACEBACK_CHARS:]
    return _pack(Failure("remote", error_text(error), type(error).__name__, _text(lines)))


def error_text(error: BaseException) -> str:
    """Return `str(error)`, whatever a user's exception makes of that."""
    try:
        return _text(str(error))
    except Exception as second:  # noqa: BLE001 - a user's code
        return f"(its __str__ raised {type(second).__name__})"


def _text(value: str) -> str:
    """Make any str encodable: a lone surrogate, as in the name of an odd file, becomes an escape."""
    return value[:_MAX_TRACEBACK_CHARS].encode("utf-8", "backslashreplace").decode()


def failure_error(blob: Any, address: str) -> EdgeMLError:
    """Return the error that a client raises for the body of an ERROR."""
    try:
        failure = _failure_decoder.decode(blob)
    except _DECODE_ERRORS as error:
        return IncompatiblePeer(f"{address}: an error that cannot be decoded: {error}")
    if failure.code == "forgotten":
        return PeerDied(f"{address}: {failure.message}", outcome_unknown=True)
    if failure.code in _FAILURES:
        return _FAILURES[failure.code](f"{address}: {failure.message}")
    message = f"{address}: the server's callback raised {failure.remote_type}: {failure.message}"
    return RemoteError(message, remote_type=failure.remote_type, remote_traceback=failure.remote_traceback)
