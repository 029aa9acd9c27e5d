"""Connecting to a buffer that a trainer server has registered, near or far."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final, TypeVar

from edgeml_ipc._attachments import attach as attach_to_offer
from edgeml_ipc._buffer_messages import CONFIG, SERVICE, error_in
from edgeml_ipc.data.replay_buffer import SharedBuffer
from edgeml_ipc.errors import SegmentError
from edgeml_ipc.remote_buffer import Drawing, RemoteBuffer
from edgeml_ipc.service import DEFAULT_WAIT_SECONDS, Client, complete_address, options_for

if TYPE_CHECKING:
    from edgeml_ipc.security import Keys

logger = logging.getLogger("edgeml_ipc")

DEFAULT_PORT: Final = 5555
_TIMEOUT_SECONDS: Final = 20.0
_FLOW_SECONDS: Final = 60.0

B = TypeVar("B", bound=SharedBuffer)


def connect(
    kind: type[B],
    address: str,
    *,
    seed: int | None = None,
    min_trajectory_length: int = 1,
    attach: bool | None = None,
    ahead: int = 0,
    timeout: float = _TIMEOUT_SECONDS,
    flow_timeout: float = _FLOW_SECONDS,
    wait_for_server: bool = False,
    wait_timeout: float = DEFAULT_WAIT_SECONDS,
    keys: Keys | None = None,
    copy: bool = False,
) -> B | RemoteBuffer:
    """Use a buffer that a trainer server has registered; what `ReplayBuffer.connect` does.

    The server's `TrainerConfig` is not needed: buffers are a service of their own at its address, and a client of theirs shows
    the version of that service only.

    Args:
        address: `host:port/store`, with or without a scheme; `shm://name/store`. Without a port: 5555.
        seed, min_trajectory_length: of the sampling for this client, as in `ReplayBuffer.attach`. The same seed and the same
            rows give the batches that an attached process would get.
        attach: None: use the memory itself if the connection proves that it is on this machine, and messages otherwise. True:
            fail otherwise. False: messages.
        ahead: batches that are drawn and sent before they are asked for; each is as much older, and counts as sampled.
        timeout: seconds for each call. flow_timeout: seconds beside that an insert or a sample waits where the buffer has a
            rate limiter.
        wait_for_server, wait_timeout, keys: as for `TrainerClient`.
        copy: give writable copies of received arrays instead of read-only views.
    Raises:
        ConnectionRefused, TimeoutError, AuthenticationError, IncompatiblePeer: no server of buffers is reached.
        ValueError: the address names no store, or there is none of that name. SegmentError: `attach`, and it cannot be.
    """
    server, store = split_store(address)
    client = Client(
        complete_address(server, DEFAULT_PORT),
        service=SERVICE,
        config=CONFIG,
        timeout=timeout,
        wait_for_server=wait_for_server,
        wait_timeout=wait_timeout,
        options=options_for(keys),
        copy=copy,
    )
    try:
        if attach is None or attach:
            near = _attached(kind, client, store, attach is None, seed, min_trajectory_length)
            if near is not None:
                client.close()
                return near
        drawing = Drawing(seed, min_trajectory_length, ahead)
        far = RemoteBuffer(client, store, drawing, flow_timeout=flow_timeout)
        if far.face != kind.__name__:
            raise ValueError(f"{client.address}/{store} is a {far.face}, not a {kind.__name__}")
        return far
    except BaseException:
        client.close()
        raise


def split_store(address: str) -> tuple[str, str]:
    """Split an address into that of the server and the name of the store.

    Raises:
        ValueError: it names no store.
    """
    scheme, separator, rest = address.rpartition("://")
    server, _, store = rest.partition("/")
    if not server or not store:
        raise ValueError(
            f"the address of a buffer must be a server's and a store's name, as in 'host:5555/name', got {address!r}"
        )
    return f"{scheme}{separator}{server}", store


def _attached(
    kind: type[B], client: Client, store: str, fall_back: bool, seed: int | None, min_trajectory_length: int
) -> B | None:
    """Attach to the buffer if it is near; None: it is not, or cannot be attached and `fall_back`."""
    answer = client.call("look", {"store": store})
    if "error" in answer:
        raise error_in(answer, client.address)
    offer = answer["result"]["offer"]
    place = f"{client.address}/{store}"
    try:
        if offer is None:
            raise SegmentError(f"{place} is reached by {client.transport}, and its memory is not offered")
        near = attach_to_offer(offer, lambda name: kind.attach(name, seed=seed, min_trajectory_length=min_trajectory_length))
    except SegmentError as error:
        if not fall_back:
            raise
        logger.log(logging.INFO if offer is None else logging.WARNING, "%s: by messages, because: %s", place, error)
        return None
    logger.info("%s: attached to the memory itself", place)
    return near
