"""Connect over tcp: the handshake as the connecting end sees it, and why it failed if it did."""

from __future__ import annotations

import builtins
import contextlib
import os
import socket
from collections.abc import Sequence
from typing import Final

import zmq

from edgeml_ipc._deadline import Deadline
from edgeml_ipc.errors import AuthenticationError, ConnectionRefused, EdgeMLError, IncompatiblePeer, RemoteError, TimeoutError
from edgeml_ipc.transports import _zmq_frames as wire
from edgeml_ipc.transports._zmq_connection import TcpConnection
from edgeml_ipc.transports._zmq_hello import write_hello
from edgeml_ipc.transports._zmq_port import Port, descriptor_of, limit_send_buffer
from edgeml_ipc.transports.base import MAX_HELLO_BYTES, HandshakeRejected, Options

_ZMTP_FIRST_BYTE: Final = b"\xff"
_MECHANISM: Final = slice(12, 32)
_SIGNATURE_AND_VERSION: Final = b"\xff\0\0\0\0\0\0\0\1\x7f\3\0"
_GREETING_BYTES: Final = 64
_MECHANISM_MISMATCH: Final = zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH
_PROBE_S: Final = 0.5


def endpoint(host: str, port: int) -> str:
    """Return zmq's name for a numeric address."""
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"


def dial(
    host: str, port_number: int, *, hello: bytes, topics: Sequence[int], deadline: Deadline, options: Options, wants_shm: bool
) -> TcpConnection:
    """Connect to one numeric address; see `Transport.connect` for the errors.

    A server that ends breaks the handshake off, as does something that is not this library, or has other keys; and it may be
    its successor that is asked why. So where it was broken off it is tried once more, before that is called the reason; and so
    where the kernel's connection failed, or was reset before zmq looked at it, and something listens a moment later.
    """
    arguments = (host, port_number, hello, topics, deadline, options, wants_shm)
    try:
        return _dial(*arguments)
    except _BrokenOff:
        pass
    try:
        return _dial(*arguments)
    except _BrokenOff as broken_off:
        raise broken_off.reason from None


class _BrokenOff(EdgeMLError):
    """The handshake was broken off, or did not begin.

    Attributes:
        reason: why, if what is there now is what was there then.
    """

    def __init__(self, reason: EdgeMLError) -> None:
        super().__init__(str(reason))
        self.reason = reason


def _dial(
    host: str, port_number: int, hello: bytes, topics: Sequence[int], deadline: Deadline, options: Options, wants_shm: bool
) -> TcpConnection:
    port = Port(zmq.DEALER, options.max_message_bytes)
    address = endpoint(host, port_number)
    try:
        with port.lock:
            port.socket.setsockopt(zmq.IPV6, int(":" in host))
            port.socket.setsockopt(zmq.HANDSHAKE_IVL, 0)  # the deadline is ours
            if options.keys is not None:
                options.keys.apply_to_client(port.socket)
            port.socket.connect(address)
            message = wire.pack(write_hello(hello, topics, wants_shm), 2 * MAX_HELLO_BYTES, address)
            with contextlib.suppress(zmq.Again):  # another kind of zmq socket answered before: `wait` says so
                port.transmit([wire.head(wire.HELLO, count=message.part_count) + message.body, *message.frames])
            frames = _Handshake(port, host, port_number, options, deadline).wait()
            connection = _established(port, address, options, topics, frames)
            limit_send_buffer(descriptor_of(frames[0]), port_number)
            return connection
    except BaseException:
        port.close(0)
        raise


def _established(port: Port, address: str, options: Options, topics: Sequence[int], frames: list[zmq.Frame]) -> TcpConnection:
    """Read the listener's answer to the HELLO."""
    first = frames[0].bytes
    try:
        version, kind = wire.read_prefix(first)
        if kind == wire.INCOMPATIBLE or version != wire.VERSION:
            raise IncompatiblePeer(f"{address} speaks version {version} of the tcp transport, this side speaks {wire.VERSION}")
        head = wire.read_head(first)
        parts, _ = wire.unpack(head.part_count, first, frames[1:], wire.MAX_ANSWER_BYTES)
        if kind == wire.REJECT and len(parts) == 1:
            raise HandshakeRejected(bytes(parts[0]))
        if kind == wire.FAILED and len(parts) == 1:
            reason = bytes(parts[0]).decode(errors="replace")
            raise RemoteError(f"{address}: the server failed to answer the handshake: {reason}")
        if kind != wire.WELCOME or len(parts) != 2:
            raise wire.Malformed(f"a message of kind {kind} with {len(parts)} parts")
    except wire.Malformed as error:
        raise IncompatiblePeer(f"{address} answers, but it is not this library: {error}") from error
    welcome, offer = map(bytes, parts)
    return TcpConnection(port, address, options, session=head.session, topics=topics, welcome=welcome, offer=offer)


class _Handshake:
    """The wait for the listener's answer. Used with the port's lock held."""

    def __init__(self, port: Port, host: str, port_number: int, options: Options, deadline: Deadline) -> None:
        self._port = port
        self._host = host
        self._port_number = port_number
        self._address = endpoint(host, port_number)
        self._secured = options.keys is not None
        self._deadline = deadline
        self._connected = False  # the kernel's connection
        self._greeted = False  # zmq's handshake
        self._probed = False

    def wait(self) -> list[zmq.Frame]:
        """Return the frames of the first message that comes back, or raise what `Transport.connect` names."""
        waiter = self._port.add_waiter()
        try:
            while True:
                happened = self._port.events()
                if self._port.readable:
                    self._port.put_back(happened)  # the answer may be followed by the end, which concerns who goes on with this
                    return self._port.receive()
                failure = self._failure(happened)
                if failure is not None:
                    raise failure
                self._check_deadline()
                remaining = self._deadline.remaining()
                waiting = self._connected and not self._greeted and not self._probed and remaining is not None
                self._port.wait(waiter, remaining / 2 if waiting and remaining is not None else remaining)
        finally:
            self._port.remove_waiter(waiter)

    def _check_deadline(self) -> None:
        """Raise if the time is up; halfway there, look whether what listens speaks zmq at all."""
        remaining = self._deadline.remaining()
        assert remaining is not None
        if remaining <= 0:
            if not self._connected:
                raise TimeoutError(f"{self._address}: no answer to the connection within {self._deadline.spent():.3f} s")
            what = "did not finish the handshake" if self._greeted else "says nothing"
            raise TimeoutError(
                f"{self._address} is silent: something listens there and {what} within {self._deadline.spent():.3f} s"
            )
        if self._connected and not self._greeted and not self._probed and self._deadline.spent() >= remaining:
            self._probed = True
            greeting = self._probe(remaining / 2)
            if greeting and greeting[:1] != _ZMTP_FIRST_BYTE:
                raise IncompatiblePeer(f"{self._address} is not this library: it says {greeting!r}")

    def _failure(self, events: list[tuple[int, int]]) -> EdgeMLError | None:
        for event, value in events:
            if event == zmq.EVENT_CONNECTED:
                self._connected = True
            elif event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._greeted = True
            elif event in (zmq.EVENT_CLOSED, zmq.EVENT_CONNECT_RETRIED) and not self._connected:
                return self._refused()
            elif event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                return AuthenticationError(f"{self._address}: the server does not allow this client's key (status {value})")
            elif event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL and value == _MECHANISM_MISMATCH:
                return self._disagree()
            elif event in (
                zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL,
                zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL,
                zmq.EVENT_DISCONNECTED,
            ):
                return self._broken_off()
        return None

    def _broken_off(self) -> EdgeMLError:
        """Say why a connection that had been accepted ended before the listener's answer."""
        if self._greeted:
            return ConnectionRefused(f"{self._address}: the server closed the connection during the handshake")
        greeting = self._probe(min(_PROBE_S, self._deadline.remaining() or 0.0))
        if greeting is None:
            return ConnectionRefused(f"{self._address}: the server went away during the handshake")
        mechanism = greeting[_MECHANISM].rstrip(b"\0")
        if greeting[:1] != _ZMTP_FIRST_BYTE or mechanism not in (b"NULL", b"CURVE"):
            says = f"it says {greeting!r}" if greeting else "it closes the connection"
            return _BrokenOff(IncompatiblePeer(f"{self._address} is not this library: {says}"))
        if (mechanism == b"CURVE") != self._secured:
            return self._disagree()
        if self._secured:
            refused = f"{self._address}: the server refused; this side's copy of its public key is wrong"
            return _BrokenOff(AuthenticationError(refused))
        another = f"{self._address} is not this library: a zmq socket of another kind listens there"
        return _BrokenOff(IncompatiblePeer(another))

    def _disagree(self) -> AuthenticationError:
        missing = "the server uses none" if self._secured else "the server requires them, none were given here"
        return AuthenticationError(f"{self._address}: the two sides do not agree about keys: {missing}")

    def _probe(self, seconds: float) -> bytes | None:
        """Return how whatever listens answers the beginning of zmq's greeting, or None if nothing listens.

        Source: ZMTP 3.0, section on the greeting: 64 bytes, of which 12 to 31 name the mechanism; who has read the other's
        signature and version sends the rest of its own.
        """
        deadline = Deadline(seconds)
        answer = b""
        try:
            with socket.create_connection((self._host, self._port_number), max(seconds, 0.001)) as probe:
                probe.sendall(_SIGNATURE_AND_VERSION)
                while len(answer) < _GREETING_BYTES:
                    probe.settimeout(max(deadline.remaining() or 0.0, 0.001))
                    received = probe.recv(_GREETING_BYTES - len(answer))
                    if not received:
                        break
                    answer += received
        except (ConnectionResetError, BrokenPipeError, builtins.TimeoutError):
            return answer
        except OSError:
            return None
        return answer

    def _refused(self) -> EdgeMLError:
        """Say that nothing listens, with the kernel's reason, which zmq does not tell."""
        try:
            with socket.create_connection((self._host, self._port_number), max(self._deadline.remaining() or 0.0, 0.001)):
                refused = f"{self._address}: what listens there refuses one connection and takes another"
                return _BrokenOff(ConnectionRefused(refused))
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno else str(error)
            return ConnectionRefused(f"{self._address}: nothing listens there ({reason})")
