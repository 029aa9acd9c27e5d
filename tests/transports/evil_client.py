"""A client that keeps the shared-memory handshake and then breaks the protocol, byte by byte, from its own pages."""

from __future__ import annotations

import fcntl
import mmap
import os
import socket
import struct
from types import TracebackType

from edgeml_ipc.transports import _shm_handshake as handshake
from edgeml_ipc.transports._shm_ends import NO_NONCE

PAGE = mmap.PAGESIZE
RING_BYTES = 4096
TX_TAIL, RX_HEAD, RING = 0x80, 0x100, PAGE
DATA, DESC, PAD = 2, 3, 1
_ADD_SEALS, _SHRINK_AND_GROW = 1033, 2 | 4


class EvilClient:
    """Connect to `path` with an endpoint of our own making, whose bytes `put` may set to anything."""

    def __init__(self, path: str, *, sealed: bool = True) -> None:
        endpoint, self.page = self._segment(PAGE + RING_BYTES, b"EMLEPT01", sealed)
        board, board_page = self._segment(PAGE, b"EMLBRD01", sealed)
        self.put(0x10, struct.pack("<QQ", PAGE, RING_BYTES))
        board_page.close()
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(20)
        self.socket.connect(path)
        try:
            hello = handshake.Hello(handshake.VERSION, 0, NO_NONCE, b"evil")
            handshake.send_packet(self.socket, hello.pack(), [endpoint, board])
            packet, fds = handshake.recv_packet(self.socket)
            if not packet:
                raise ConnectionResetError("sent away")
            with mmap.mmap(fds[0], PAGE, mmap.MAP_SHARED, mmap.PROT_READ) as theirs:
                handshake.send_packet(self.socket, theirs[0x20:0x30])
            handshake.close_fds(fds)
            assert handshake.recv_packet(self.socket)[0] == handshake.READY
        finally:
            handshake.close_fds([endpoint, board])

    @staticmethod
    def _segment(size: int, magic: bytes, sealed: bool) -> tuple[int, mmap.mmap]:
        fd = os.memfd_create("evil", os.MFD_ALLOW_SEALING)
        os.posix_fallocate(fd, 0, size)
        page = mmap.mmap(fd, size)
        page[:10] = magic + struct.pack("<H", 1)
        if sealed:
            fcntl.fcntl(fd, _ADD_SEALS, _SHRINK_AND_GROW)
        return fd, page

    def put(self, offset: int, data: bytes) -> None:
        """Write into our own endpoint."""
        self.page[offset : offset + len(data)] = data

    def record(self, size: int, kind: int, count: int = 0, sequence: int = 0, payload: bytes = b"", tail: int = 64) -> None:
        """Commit one record at the ring's beginning."""
        self.put(RING, struct.pack("<IHHQ", size, kind, count, sequence) + payload)
        self.put(TX_TAIL, struct.pack("<Q", tail))
        self.ring()

    def ring(self) -> None:
        """Ring the doorbell."""
        self.socket.send(b"B")

    def __enter__(self) -> EvilClient:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.socket.close()
        self.page.close()
