"""A slow cable between two TUN devices: each packet waits as long as its bits and the distance take.

What `tc netem` does, for kernels that are built without it. TCP and all above it are the kernel's own.
"""

import fcntl
import os
import select
import struct
import threading
import time
from collections import deque

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x1, 0x1000
QUEUE_SECONDS = 0.1  # of packets that wait for the line, as in a router; what comes on top is dropped


def tun(name):
    """Make a TUN device, which lives as long as the descriptor that is returned; whoever reads it gets what is sent by it."""
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI))
    return descriptor


class Cable:
    """Two TUN devices, which `plug_in` joins once they are up, and `close` ends."""

    def __init__(self, names, mbit, round_trip_ms):
        self.ends = [tun(name) for name in names]
        self.bits_per_second, self.delay = mbit * 1e6, round_trip_ms / 2e3
        self.closing, self.dropped = threading.Event(), 0
        pairs = (self.ends, self.ends[::-1])
        self.threads = [threading.Thread(target=self._carry, args=pair, daemon=True) for pair in pairs]

    def plug_in(self):
        for thread in self.threads:
            thread.start()

    def _carry(self, source, sink):
        """Carry packets one way."""
        on_the_way, free_at = deque(), 0.0  # (due, packet), and when the line has sent what waits for it
        while not self.closing.is_set():
            wait = on_the_way[0][0] - time.monotonic() if on_the_way else 0.1
            if select.select([source], [], [], max(0.0, min(wait, 0.1)))[0]:
                packet, now = os.read(source, 65536), time.monotonic()
                if free_at - now > QUEUE_SECONDS:
                    self.dropped += 1
                else:
                    free_at = max(free_at, now) + 8 * len(packet) / self.bits_per_second
                    on_the_way.append((free_at + self.delay, packet))
            while on_the_way and on_the_way[0][0] <= time.monotonic():
                os.write(sink, on_the_way.popleft()[1])

    def close(self):
        self.closing.set()
        for thread in filter(threading.Thread.is_alive, self.threads):
            thread.join()
        for descriptor in self.ends:
            os.close(descriptor)
