"""The packets with which two processes agree on shared memory, over an AF_UNIX SEQPACKET socket.

    client -> HELLO   magic, version, topics, nonce, hello bytes    + fds of its endpoint and its board
    server -> WELCOME verdict, the challenge read in the client's page, answer bytes + fds of its endpoint and its board
    client -> PROOF   the challenge read in the server's page
    server -> READY

Each side puts random bytes into its own page and believes in shared memory only when the other side has read them there.
The layout is specified in `transports/SHM.md` at the root of the repository.
"""

from __future__ import annotations

import os
import socket
import struct
from dataclasses import dataclass

from edgeml_ipc.transports.base import MAX_HELLO_BYTES

VERSION = 1
MAGIC = b"EMLSHM01"
CHALLENGE_BYTES = 16
NONCE_BYTES = 16
READY = b"R"
OK, REJECTED, INCOMPATIBLE, WRONG_NONCE = range(4)

_HELLO = struct.Struct("<8sHHI16s")
_WELCOME = struct.Struct("<8sHH16s")
MAX_PACKET_BYTES = MAX_HELLO_BYTES + 256
_SO_PEERPIDFD = 77  # Linux 6.5
_NOT_SUPPORTED = -1


class MalformedPacket(Exception):
    """A packet of the handshake that is not one."""


@dataclass(frozen=True)
class Hello:
    """What a client says first. `version` is checked before anything else in it is looked at."""

    version: int
    topics: int  # bit set
    nonce: bytes
    hello: bytes

    def pack(self) -> bytes:
        """Return the packet."""
        return _HELLO.pack(MAGIC, self.version, 0, self.topics, self.nonce) + self.hello

    @classmethod
    def unpack(cls, packet: bytes) -> Hello:
        """Read a packet. Raises `MalformedPacket`."""
        if len(packet) < _HELLO.size or len(packet) > _HELLO.size + MAX_HELLO_BYTES or packet[:8] != MAGIC:
            raise MalformedPacket(f"{len(packet)} bytes that are no HELLO")
        _, version, _, topics, nonce = _HELLO.unpack_from(packet)
        return cls(version, topics, nonce, packet[_HELLO.size :])


@dataclass(frozen=True)
class Verdict:
    """What a server answers; `payload` is the answer, or the reason of a rejection."""

    status: int
    challenge: bytes
    payload: bytes
    version: int = VERSION

    def pack(self) -> bytes:
        """Return the packet."""
        return _WELCOME.pack(MAGIC, self.version, self.status, self.challenge) + self.payload

    @classmethod
    def unpack(cls, packet: bytes) -> Verdict:
        """Read a packet. Raises `MalformedPacket`."""
        if len(packet) < _WELCOME.size or packet[:8] != MAGIC:
            raise MalformedPacket(f"{len(packet)} bytes that are no WELCOME")
        _, version, status, challenge = _WELCOME.unpack_from(packet)
        return cls(status, challenge, packet[_WELCOME.size :], version)


def send_packet(sock: socket.socket, packet: bytes, fds: list[int] | None = None) -> None:
    """Send one packet with copies of `fds`, which stay the caller's."""
    socket.send_fds(sock, [packet], fds or [])


def recv_packet(sock: socket.socket) -> tuple[bytes, list[int]]:
    """Receive one packet; the fds are the caller's to close. An empty packet is the end.

    Raises:
        MalformedPacket: it was longer than any packet may be.
    """
    packet, fds, flags, _ = socket.recv_fds(sock, MAX_PACKET_BYTES, 4, socket.MSG_CMSG_CLOEXEC)
    if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        close_fds(fds)
        raise MalformedPacket("a packet over the limit")
    return packet, list(fds)


def close_fds(fds: list[int]) -> None:
    """Close what a failed handshake had brought."""
    for fd in fds:
        os.close(fd)


def peer_uid(sock: socket.socket) -> int:
    """Return the user id of the process that made the other end."""
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", credentials)[1])


def peer_pidfd(sock: socket.socket) -> int:
    """Return a new pidfd of the peer, or -1 where the kernel gives none (then only the socket tells of its death)."""
    try:
        return sock.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
    except OSError:
        pid = int(struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))[0])
    try:
        return os.pidfd_open(pid) if pid > 0 else _NOT_SUPPORTED
    except OSError:
        return _NOT_SUPPORTED
