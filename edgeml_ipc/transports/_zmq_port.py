"""One zmq socket that several threads use: its lock, its monitor, and the places where threads wait for it.

zmq sockets belong to one thread at a time, and a socket's file descriptor is edge-triggered: whoever calls into the socket may
take in the very event that another thread waits for. So there is one rule: *whoever held the lock leaves the socket and its
monitor drained*, and if that produced something for a thread that waits, wakes that thread's `Waiter`. No thread ever blocks
inside zmq.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import threading
import weakref
from collections.abc import Sequence
from typing import Final

import zmq

from edgeml_ipc.transports._zmq_frames import FRAME_OVERHEAD_BYTES
from edgeml_ipc.transports.base import MAX_PARTS

LINGER_MS: Final = 1000
# What the kernel keeps of unread messages between two processes of one machine, who makes twice of it. It would let this grow
# to megabytes, which then have left the caches when the receiver copies them. Measured: 6 MB took half the time up to 512 KiB,
# and nothing was won from 640 on; 256 and 384 made 0.9 MB slower, which no longer fitted in.
LOCAL_SEND_BUFFER_BYTES: Final = 1 << 19
# More than the windows, the topics and their credits can fill; a peer that makes it overflow reads nothing.
HIGH_WATER_MARK_MESSAGES: Final = 8192
_MAX_FRAMES: Final = MAX_PARTS + 2  # routing id, head
# As plain numbers: arithmetic on zmq's enumerations costs more than the calls that it is for.
_READABLE: Final = int(zmq.POLLIN)
_NO_WAIT: Final = int(zmq.NOBLOCK)
_NO_WAIT_AND_MORE: Final = int(zmq.NOBLOCK | zmq.SNDMORE)
_DESCRIPTORS: Final = 3  # that a thread waits for at once
_EVENT: Final = struct.Struct("=Hi")
# Not -1, although a connection is never resumed: with -1 zmq drops what had arrived and was not yet read when the connection
# breaks. The socket is closed long before this passes.
_RECONNECT_MS: Final = 24 * 3600 * 1000


class Waiter:
    """Where one thread at a time waits for descriptors to become readable, or to be woken.

    `wake` and `clear` are called with the port's lock held, `wait` without.
    """

    def __init__(self, descriptors: Sequence[int]) -> None:
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll = select.epoll()
        self._signalled = False
        for descriptor in (self._event, *descriptors):
            self._epoll.register(descriptor, select.EPOLLIN)

    def fileno(self) -> int:
        return self._epoll.fileno()

    def wait(self, timeout: float | None) -> None:
        self._epoll.poll(timeout, _DESCRIPTORS)

    def wake(self) -> None:
        if not self._signalled:
            self._signalled = True
            os.eventfd_write(self._event, 1)

    def clear(self) -> None:
        if self._signalled:
            self._signalled = False
            os.eventfd_read(self._event)

    def close(self) -> None:
        self._epoll.close()
        os.close(self._event)


class Port:
    """A zmq socket with a context of its own, its monitor and its lock.

    All methods but `close` are called with `lock` held.
    """

    def __init__(self, kind: int, max_message_bytes: int) -> None:
        self.lock = threading.Lock()
        self.closed = False
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
        self.socket = self.context.socket(kind)
        for option, value in (
            (zmq.LINGER, LINGER_MS),
            (zmq.SNDHWM, HIGH_WATER_MARK_MESSAGES),
            (zmq.RCVHWM, HIGH_WATER_MARK_MESSAGES),
            (zmq.MAXMSGSIZE, max_message_bytes + FRAME_OVERHEAD_BYTES),
            (zmq.RECONNECT_IVL, _RECONNECT_MS),
            # A link that died in silence is found by the kernel. zmq's own heartbeats would count a message that
            # takes longer than their timeout to cross a slow link as silence, and cut it.
            (zmq.TCP_KEEPALIVE, 1),
            (zmq.TCP_KEEPALIVE_IDLE, 5),
            (zmq.TCP_KEEPALIVE_INTVL, 2),
            (zmq.TCP_KEEPALIVE_CNT, 3),
            (zmq.TCP_MAXRT, 15_000),
        ):
            self.socket.setsockopt(option, value)
        self._monitor = self.context.socket(zmq.PAIR)
        self._monitor.setsockopt(zmq.RCVHWM, 0)  # a full one would block zmq's I/O thread
        self._monitor.setsockopt(zmq.LINGER, 0)
        self.socket.monitor("inproc://monitor", zmq.EVENT_ALL)
        self._monitor.connect("inproc://monitor")
        self._news, self._monitor_news = select.poll(), select.poll()
        self._news.register(int(self.socket.getsockopt(zmq.FD)), select.POLLIN)
        for poll in (self._news, self._monitor_news):
            poll.register(int(self._monitor.getsockopt(zmq.FD)), select.POLLIN)
        self._stirred = self._monitor_stirred = True  # used, and not seen to be drained since
        self._partial: list[zmq.Frame] = []
        self._put_back: list[tuple[int, int]] = []
        self._waiters: list[Waiter] = []
        self._gone = threading.Event()
        self._waiting = 0
        self._nobody_waits = threading.Condition(self.lock)
        # A port that is dropped without `close`, perhaps within a cycle: the finalizer keeps what it disposes of out of the
        # garbage, where the context's own might come first and wait for ever for the sockets to be closed.
        self._disposal = weakref.finalize(self, _dispose, self.context, self.socket, self._monitor, self._waiters)
        self._disposal.atexit = False

    def add_waiter(self) -> Waiter:
        """Return a new place to wait for this port, which `close` wakes and disposes of."""
        descriptors = [int(each.getsockopt(zmq.FD)) for each in (self.socket, self._monitor)]
        waiter = Waiter(descriptors)
        self._waiters.append(waiter)
        return waiter

    def remove_waiter(self, waiter: Waiter) -> None:
        if waiter in self._waiters:
            self._waiters.remove(waiter)
            waiter.close()

    def wait(self, waiter: Waiter, timeout: float | None) -> None:
        """Let go of the lock until something may have happened, then take it again."""
        self._waiting += 1
        self.lock.release()
        try:
            waiter.wait(timeout)
        finally:
            self.lock.acquire()
            self._waiting -= 1
            if self.closed:
                self._nobody_waits.notify_all()

    @property
    def has_news(self) -> bool:
        """False if there is nothing to take in: both were left drained, and neither descriptor is readable.

        Asking the kernel takes a third of the time of asking zmq.
        """
        return self._stirred or self._monitor_stirred or bool(self._news.poll(0))

    @property
    def readable(self) -> bool:
        """True if a message waits; False also says that the descriptor is armed again."""
        self._stirred = bool(int(self.socket.getsockopt(zmq.EVENTS)) & _READABLE)
        return self._stirred

    def receive(self) -> list[zmq.Frame]:
        """Return the frames of the next message; a message with more frames than any of ours is cut short."""
        self._stirred = True
        frames = self._partial  # kept here, so that an interrupt in the middle loses nothing
        while True:
            frame = self.socket.recv(_NO_WAIT, copy=False)
            if len(frames) <= _MAX_FRAMES:
                frames.append(frame)
            if not frame.more:
                self._partial = []
                return frames

    def notice_ends(self) -> None:
        """Have zmq take in which connections are over, which `transmit` does now and then only. Drain the socket after it."""
        self._stirred = True
        self.socket.getsockopt(zmq.EVENTS)

    def events(self) -> list[tuple[int, int]]:
        """Return what happened to the socket's connections since the last call, as (event, value)."""
        happened, self._put_back = self._put_back, []
        if not self._monitor_stirred and not self._monitor_news.poll(0):
            return happened
        self._monitor_stirred = True
        while int(self._monitor.getsockopt(zmq.EVENTS)) & _READABLE:
            event, _endpoint = self._monitor.recv_multipart(_NO_WAIT)
            number, value = _EVENT.unpack(event)
            happened.append((number, value))
        self._monitor_stirred = False
        return happened

    def put_back(self, happened: list[tuple[int, int]]) -> None:
        """Have the next call of `events` return these first. Nobody is woken by them."""
        self._put_back = happened
        self._monitor_stirred = True

    def transmit(self, frames: Sequence[bytes | zmq.Frame]) -> None:
        """Send one message without waiting.

        Raises:
            zmq.ZMQError: nothing was sent; EAGAIN, or EHOSTUNREACH for a routing id that is no longer connected.
        """
        self._stirred = True
        begun = False
        left = len(frames)
        try:
            for frame in frames:
                left -= 1
                self.socket.send(frame, _NO_WAIT_AND_MORE if left else _NO_WAIT, copy=isinstance(frame, bytes))
                begun = True
        finally:
            if begun and left:  # interrupted in the middle: end that message, which its receiver will call malformed
                self.socket.send(b"", _NO_WAIT)

    def close(self, linger_ms: int = LINGER_MS) -> bool:
        """Wake and send away all who wait, then close the socket. Any thread, once; returns False if it was closed before.

        Waits up to `linger_ms` for what was sent to reach the kernel.
        """
        with self.lock:
            if self.closed:
                return False
            self.closed = True
            self._disposal.detach()
        try:
            self._end(linger_ms)
        finally:  # also if interrupted, so that nobody waits for ever
            self._gone.set()
        return True

    def _end(self, linger_ms: int) -> None:
        with self.lock:
            for waiter in self._waiters:
                waiter.wake()
            while self._waiting:
                self._nobody_waits.wait()
            _close_sockets(self.socket, self._monitor, self._waiters, linger_ms)
        self.context.term()

    def wait_until_gone(self) -> None:
        """Wait until `close`, in whichever thread, is through: from then on zmq reads and writes no memory of ours."""
        self._gone.wait()


def _close_sockets(socket: zmq.Socket[bytes], monitor: zmq.Socket[bytes], waiters: list[Waiter], linger_ms: int) -> None:
    socket.disable_monitor()
    monitor.close(0)
    socket.close(linger_ms)
    for waiter in waiters:
        waiter.close()
    waiters.clear()


def _dispose(
    context: zmq.Context[zmq.Socket[bytes]],
    socket: zmq.Socket[bytes],
    monitor: zmq.Socket[bytes],
    waiters: list[Waiter],
) -> None:
    _close_sockets(socket, monitor, waiters, 0)
    context.term()


def descriptor_of(frame: zmq.Frame) -> int | None:
    """Return the descriptor of the TCP socket through which a frame came; None if its sender speaks ZMTP 1 or 2."""
    try:
        return int(frame.get(zmq.SRCFD))
    except zmq.ZMQError:
        return None


def limit_send_buffer(descriptor: int | None, port_number: int) -> None:
    """Keep a TCP connection's send buffer small if both of its ends are on this machine.

    A network needs a buffer of bandwidth times delay, which the kernel finds out. For what never leaves the machine a small one
    is faster: sender and receiver copy in turns, within the caches.

    Args:
        descriptor: of the TCP socket; zmq owns it, and may have closed it by now.
        port_number: one of its ends' must be this, else the descriptor has become something else.
    """
    if descriptor is None:
        return
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as duplicate:
        if duplicate.family not in (socket.AF_INET, socket.AF_INET6):
            return
        here, there = duplicate.getsockname(), duplicate.getpeername()
        if here[0] == there[0] and port_number in (here[1], there[1]):
            duplicate.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LOCAL_SEND_BUFFER_BYTES)
