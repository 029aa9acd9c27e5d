"""`tcp://host:port`: zmq over TCP, one port for everything, encrypted with CURVE if keys are given.

The bytes on the wire are described in `transports/WIRE.md` at the root of the repository. The parts: `_zmq_frames` (bytes),
`_zmq_hello` (the first message), `_zmq_flow` (windows), `_zmq_port` (the socket and its lock), `_zmq_dial` (connecting),
`_zmq_connection` (the connecting end), `_zmq_listener`, `_zmq_door`, `_zmq_peer` and `_zmq_census` (the serving end).
"""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections.abc import Callable, Sequence
from typing import Final

import zmq
from zmq.auth.thread import ThreadAuthenticator

from edgeml_ipc._deadline import Deadline
from edgeml_ipc.errors import AddressInUse, AuthenticationError, ConnectionRefused, MessageTooLarge, TransportUnavailable
from edgeml_ipc.security import Keys
from edgeml_ipc.transports._zmq_connection import TcpConnection
from edgeml_ipc.transports._zmq_dial import dial, endpoint
from edgeml_ipc.transports._zmq_hello import HelloInfo, Offer, boot_id
from edgeml_ipc.transports._zmq_listener import TcpListener
from edgeml_ipc.transports._zmq_port import Port
from edgeml_ipc.transports.base import MAX_HELLO_BYTES, MAX_TOPICS, Options, Transport, Welcome

__all__ = ["HelloInfo", "Offer", "TcpConnection", "TcpListener", "TcpTransport", "boot_id", "connect_tcp", "listen_tcp"]

_HANDSHAKE_MS: Final = 10_000
_SCHEME: Final = "tcp://"
_WILDCARDS: Final = {"*": "0.0.0.0"}
_MAX_PORT: Final = 65_535


class TcpTransport(Transport):
    """zmq over TCP."""

    scheme = "tcp"

    def connect(self, address: str, *, hello: bytes, topics: Sequence[int], timeout: float, options: Options) -> TcpConnection:
        return connect_tcp(address, hello=hello, topics=topics, timeout=timeout, options=options)

    def listen(self, address: str, *, welcome: Welcome, options: Options) -> TcpListener:
        return listen_tcp(address, welcome=welcome, options=options)


def connect_tcp(
    address: str, *, hello: bytes, topics: Sequence[int], timeout: float, options: Options, wants_shm: bool = False
) -> TcpConnection:
    """Connect to a `tcp://host:port`; see `Transport.connect`.

    Args:
        wants_shm: tell the listener's `offer` that this client would rather use shared memory. Topics then stay silent
            until `TcpConnection.stay` is called.
    """
    if len(hello) > MAX_HELLO_BYTES:
        raise MessageTooLarge(f"{address}: a hello of {len(hello)} bytes, the limit is {MAX_HELLO_BYTES}")
    if len(set(topics)) != len(topics) or any(not 0 <= topic < MAX_TOPICS for topic in topics):
        raise ValueError(f"topics are {list(topics)}; each must be unique and from 0 to {MAX_TOPICS - 1}")
    deadline = Deadline(timeout)
    host, port_number = split_host_port(address)
    refusals: list[ConnectionRefused] = []
    for numeric in _resolve(host, port_number):
        try:
            connection = dial(
                numeric, port_number, hello=hello, topics=topics, deadline=deadline, options=options, wants_shm=wants_shm
            )
        except ConnectionRefused as refusal:
            refusals.append(refusal)
        else:
            connection.address = address
            return connection
    raise ConnectionRefused("; ".join(map(str, refusals))) from refusals[-1]


def listen_tcp(address: str, *, welcome: Welcome, options: Options, offer: Offer | None = None) -> TcpListener:
    """Listen at a `tcp://host:port`; see `Transport.listen`.

    Args:
        offer: called with each HELLO before `welcome`, on a thread of the listener's; its bytes reach the client as
            `TcpConnection.offer`.
    Raises:
        AuthenticationError: the address can be reached from other machines, and there are neither keys nor `insecure`.
    """
    host, port_number = split_host_port(address)
    numeric = _resolve(_WILDCARDS.get(host, host), port_number)[0]
    if options.keys is None and not options.insecure and not ipaddress.ip_address(numeric.partition("%")[0]).is_loopback:
        raise AuthenticationError(
            f"{address} can be reached from other machines. Give keys=Keys.generate_server() (edgeml_ipc.security), or "
            "insecure=True if everyone who can reach this port may use it, or listen on 127.0.0.1"
        )
    port = Port(zmq.ROUTER, options.max_message_bytes)
    stop_authenticator: Callable[[], None] | None = None
    try:
        with port.lock:
            port.socket.setsockopt(zmq.IPV6, int(":" in numeric))
            port.socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
            port.socket.setsockopt(zmq.HANDSHAKE_IVL, _HANDSHAKE_MS)
            if options.keys is not None:
                options.keys.apply_to_server(port.socket)
                stop_authenticator = _authenticate(port, options.keys)
            _bind(port, endpoint(numeric, port_number), address)
            port_number = int(port.socket.getsockopt_string(zmq.LAST_ENDPOINT).rpartition(":")[2])
        return TcpListener(port, endpoint(numeric, port_number), port_number, welcome, options, offer, stop_authenticator)
    except BaseException:
        if stop_authenticator is not None:
            stop_authenticator()
        port.close(0)
        raise


def split_host_port(address: str) -> tuple[str, int]:
    """Split `tcp://host:port` or `tcp://[v6]:port`."""
    host, separator, port = address.removeprefix(_SCHEME).rpartition(":")
    if not separator or not host or not port.isdecimal() or int(port) > _MAX_PORT:
        raise ValueError(f"address is {address!r}, expected tcp://host:port with a port from 0 to {_MAX_PORT}")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _resolve(host: str, port_number: int) -> list[str]:
    """Return the numeric addresses of `host`, in the order in which the system prefers them."""
    try:
        found = socket.getaddrinfo(host, port_number, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ConnectionRefused(f"tcp://{host}:{port_number}: the name cannot be resolved: {error}") from error
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def _bind(port: Port, name: str, address: str) -> None:
    try:
        port.socket.bind(name)
    except zmq.ZMQError as error:
        if error.errno == errno.EADDRINUSE:
            raise AddressInUse(error.errno, f"another server listens at {address}") from error
        raise TransportUnavailable(f"cannot listen at {address}: {error.strerror}") from error


def _authenticate(port: Port, keys: Keys) -> Callable[[], None] | None:
    """Have zmq ask whether a client's key is allowed; return how to stop that."""
    if keys.allowed_clients is None:
        return None
    authenticator = ThreadAuthenticator(port.context)
    authenticator.start()
    authenticator.configure_curve_callback(domain="*", credentials_provider=_Allowed(keys.allowed_clients))
    return authenticator.stop


class _Allowed:
    """Looks a client's key up in the list of allowed ones, as `zmq.auth` wants it."""

    def __init__(self, allowed: frozenset[str]) -> None:
        self._allowed = allowed

    def callback(self, domain: str, key: bytes) -> bool:
        return key.decode() in self._allowed
