"""How others publish 50 MB in ten arrays: zmq PUB and SUB, iceoryx2 with events, zenoh, and edgeml's way."""

from __future__ import annotations

import ctypes
import os
import pickle
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import zmq

from benchmarks import payloads
from benchmarks.broadcast import Caster, OnParams, Publish, case
from benchmarks.peers.iceoryx_peer import WAIT_MILLISECONDS, event_of, new_node, set_when_told, slices_of
from benchmarks.peers.zenoh_peer import free_address, opened, reliable
from benchmarks.processes import leave_when_told
from benchmarks.way import imported


def arrays_in(buffer: np.ndarray) -> list[np.ndarray]:
    """View the ten arrays in one piece of bytes."""
    return np.split(buffer.view(np.float32), payloads.NETWORK_ARRAYS)


class ZmqCaster(Caster):
    """PUB and SUB, each array a frame, not copied.

    Args:
        kind: "ipc" or "tcp".
    """

    def __init__(self, kind: str) -> None:
        """Name it."""
        self.kind, self.name, self.title = kind, f"zmq-{kind}", f"pyzmq {kind}, PUB and SUB, multipart"

    @contextmanager
    def publishing(self, subscribers: int) -> Iterator[tuple[Any, Publish]]:
        """See `Caster.publishing`."""
        with zmq.Context() as context, context.socket(zmq.PUB) as socket:
            path = f"ipc://@edgeml-bench-{os.getpid()}"  # in the abstract namespace: no file is left
            socket.bind(path if self.kind == "ipc" else "tcp://127.0.0.1:*")
            socket.linger = 0

            def publish(params: dict[str, np.ndarray]) -> None:
                socket.send_multipart(list(params.values()), copy=False, track=True).wait()  # they will be written to

            yield socket.getsockopt_string(zmq.LAST_ENDPOINT), publish

    def subscribe(self, pipe: Any, address: Any, on_params: OnParams) -> None:
        """See `Caster.subscribe`."""
        with zmq.Context() as context, context.socket(zmq.SUB) as socket:
            socket.subscribe(b"")
            socket.connect(address)
            pipe.send("ready")
            leave_when_told(pipe)
            while True:
                on_params([np.frombuffer(frame.buffer, np.float32) for frame in socket.recv_multipart(copy=False)])


class EdgemlCaster(Caster):
    """PUB and SUB over tcp, one pickle that is compressed by lz4."""

    name, title = "edgeml", "edgeml's way: PUB/SUB over tcp, pickle, lz4"

    @contextmanager
    def publishing(self, subscribers: int) -> Iterator[tuple[Any, Publish]]:
        """See `Caster.publishing`."""
        lz4 = imported("lz4.frame")
        with zmq.Context() as context, context.socket(zmq.PUB) as socket:
            port = socket.bind_to_random_port("tcp://127.0.0.1")
            socket.linger = 0
            yield f"tcp://127.0.0.1:{port}", lambda params: socket.send(lz4.compress(pickle.dumps(params)))

    def subscribe(self, pipe: Any, address: Any, on_params: OnParams) -> None:
        """See `Caster.subscribe`."""
        lz4 = imported("lz4.frame")
        with zmq.Context() as context, context.socket(zmq.SUB) as socket:
            socket.subscribe(b"")
            socket.connect(address)
            pipe.send("ready")
            leave_when_told(pipe)
            while True:
                params = pickle.loads(lz4.decompress(socket.recv()))  # noqa: S301 - of our own other process
                on_params(list(params.values()))


class IceoryxCaster(Caster):
    """One slice, written once, read in place; subscribers sleep until notified."""

    name, title = "iceoryx2-event", "iceoryx2, sleeping until notified"

    @contextmanager
    def publishing(self, subscribers: int) -> Iterator[tuple[Any, Publish]]:
        """See `Caster.publishing`."""
        library, name = imported("iceoryx2"), f"edgeml-bench-{os.getpid()}"
        node = new_node(library)
        builder = slices_of(library, node, name, subscribers).publisher_builder()
        publisher = builder.initial_max_slice_len(payloads.NETWORK_BYTES).create()
        notifier = event_of(library, node, name).notifier_builder().create()

        def publish(params: dict[str, np.ndarray]) -> None:
            sample = publisher.loan_slice_uninit(payloads.NETWORK_BYTES)
            place = sample.payload_ptr
            for array in params.values():
                ctypes.memmove(place, array.ctypes.data, array.nbytes)
                place += array.nbytes
            sample.assume_init().send()
            notifier.notify()

        yield (name, subscribers), publish

    def subscribe(self, pipe: Any, address: Any, on_params: OnParams) -> None:
        """See `Caster.subscribe`."""
        library = imported("iceoryx2")
        name, subscribers = address
        node = new_node(library)
        subscriber = slices_of(library, node, name, subscribers).subscriber_builder().create()
        listener = event_of(library, node, name).listener_builder().create()
        pipe.send("ready")
        stop = threading.Event()
        threading.Thread(target=set_when_told, args=(pipe, stop), daemon=True).start()
        wait = library.Duration.from_millis(WAIT_MILLISECONDS)
        while not stop.is_set():
            sample = subscriber.receive()
            if sample is None:
                listener.timed_wait(wait)
                continue
            on_params(arrays_in(np.asarray(sample.payload().as_memory_view())))
            sample.delete()


class ZenohCaster(Caster):
    """One piece of bytes over tcp on loopback."""

    name, title = "zenoh-tcp", "zenoh, tcp"

    @contextmanager
    def publishing(self, subscribers: int) -> Iterator[tuple[Any, Publish]]:
        """See `Caster.publishing`."""
        zenoh, address = imported("zenoh"), free_address()
        with opened(zenoh, [address], [], shm=False) as session:
            publisher = session.declare_publisher("edgeml-bench", **reliable(zenoh))
            yield address, lambda params: publisher.put(b"".join(array.data.cast("B") for array in params.values()))

    def subscribe(self, pipe: Any, address: Any, on_params: OnParams) -> None:
        """See `Caster.subscribe`."""
        zenoh = imported("zenoh")
        with opened(zenoh, [], [address], shm=False) as session:
            subscriber = session.declare_subscriber("edgeml-bench")
            pipe.send("ready")
            leave_when_told(pipe)
            while True:
                on_params(arrays_in(np.frombuffer(subscriber.recv().payload.to_bytes(), np.uint8)))


CASTERS: tuple[Caster, ...] = (ZmqCaster("ipc"), ZmqCaster("tcp"), EdgemlCaster(), IceoryxCaster(), ZenohCaster())
CASES = [case(caster, subscribers) for caster in CASTERS for subscribers in (1, 3)]
