"""The learner's side of the trainer service: it takes in what actors upload, and publishes networks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from edgeml_ipc._buffer_messages import SERVICE as BUFFER_SERVICE
from edgeml_ipc._departures import Departures
from edgeml_ipc._fronts import ServerFront
from edgeml_ipc._inlets import BufferInlet, Inlet, inlet_of
from edgeml_ipc._visits import Visits
from edgeml_ipc.data.data_store import DataStoreBase
from edgeml_ipc.service import Server, complete_address, options_for, set_log_level

if TYPE_CHECKING:
    from edgeml_ipc.security import Keys

logger = logging.getLogger("edgeml_ipc")

SERVICE: Final = "trainer"

DataCallback = Callable[[str, dict[str, Any]], Any]
RequestCallback = Callable[[str, Any], Any]


@dataclass
class TrainerConfig:
    """What both sides of a trainer service agree on; they compare it, ports apart, when they connect.

    Attributes:
        port_number: where the server listens; 0 lets the system choose.
        broadcast_port: accepted; everything travels through the one port.
        request_types: the types that `request` takes.
        rate_limit: `request`s per second over all clients, past which a call raises `RateLimited`; None means no limit.
        version: of the application's own contract.
    """

    port_number: int = 5555
    broadcast_port: int = 5556
    request_types: list[str] = field(default_factory=list)
    rate_limit: float | None = None
    version: str = "0.0.1"


class TrainerServer(ServerFront):
    """Take in what actors collect, answer their requests, publish networks to them.

        server = TrainerServer(TrainerConfig(port_number=0))
        server.register_data_store("actor1", QueuedDataStore(10_000))
        server.start(threaded=True)
        server.publish_network(params)

    Args:
        data_callback: (store name, {"data": new items}), called after they were inserted, in the serving thread. Where a client
            wrote them into a shared buffer itself, they are read from it when they are first looked at, during the call.
        request_callback: (type, payload) -> dict, in the serving thread.
        host: interface to listen on, or an address such as `shm://learner`; beyond loopback only with keys.
        transport: scheme; None means `auto`.
        keys: CURVE keys; insecure: allow listening beyond loopback without them.
        policies: key -> how the arrays of networks and answers travel over tcp, such as {"image": "jpeg:90"};
            see `edgeml_ipc.codec.policies`. Not over shared memory.
        copy: give callbacks and stores writable copies of received arrays instead of read-only views.
        log_level: for this library's logger only.
    Raises:
        AddressInUse: another server listens there. AuthenticationError: beyond loopback without keys.
    """

    def __init__(
        self,
        config: TrainerConfig,
        data_callback: DataCallback | None = None,
        request_callback: RequestCallback | None = None,
        *,
        host: str = "127.0.0.1",
        transport: str | None = None,
        keys: Keys | None = None,
        insecure: bool = False,
        policies: Mapping[str, str] | None = None,
        copy: bool = False,
        log_level: int | str | None = None,
    ) -> None:
        set_log_level(log_level)
        self._data_callback = data_callback
        self._request_callback = request_callback
        self._request_types = list(config.request_types)
        self._inlets: dict[str, Inlet | BufferInlet] = {}
        self._visits = Visits(self.data_store)
        self._departures = Departures()
        self._server = Server(
            complete_address(host, config.port_number, transport),
            service=SERVICE,
            config=config,
            handlers={
                "sync": self._sync,
                "upload": self._upload,
                "announce": self._announced,
                "request": self._request,
            },
            options=options_for(keys, insecure),
            policies=policies,
            copy=copy,
            rate_limit=config.rate_limit,
            limited=("request",),
            guests={BUFFER_SERVICE: self._visits.guest(lambda: self._server.caller(), lambda: self._server.ticket())},
            tick=self._tick,
            on_gone=self._left,
        )

    def start(self, threaded: bool = False) -> None:
        """See `ServerFront.start`."""
        try:
            super().start(threaded)
        finally:
            if not threaded:
                self._end_visits()

    def stop(self) -> None:
        """See `ServerFront.stop`. The open episodes of remote clients end as truncated."""
        super().stop()
        self._end_visits()

    def _end_visits(self) -> None:
        self._visits.close()
        for inlet in list(self._inlets.values()):
            inlet.close()

    def _left(self, client: bytes) -> None:
        self._departures.note(client)
        self._end_uploads(client, for_good=False)

    def _tick(self) -> float | None:
        for client in self._departures.due(self._server.is_connected):
            self._visits.end(client)
            self._end_uploads(client, for_good=True)
        times = [self._departures.seconds_to_next(), self._visits.tick()]
        return min((seconds for seconds in times if seconds is not None), default=None)

    def _end_uploads(self, client: bytes, *, for_good: bool) -> None:
        for name, inlet in list(self._inlets.items()):
            try:
                inlet.end(client, partial(self._announce, name), for_good=for_good)
            except BaseException as error:  # of a user's callback, which has no caller here
                logger.exception("%s: the data_callback raised for what a client that is gone wrote last", self.address)
                if self._server.ends_server(error):
                    raise

    def register_data_store(self, name: str, store: DataStoreBase) -> None:
        """Fill `store` with what clients upload under `name`. Any thread.

        While clients upload, other threads may read it, and insert too if it is thread-safe.
        """
        if not isinstance(store, DataStoreBase):
            raise TypeError(f"store {name!r} must be a DataStoreBase, got {type(store).__name__}")
        before = self._inlets.get(name)
        if before is not None:
            if before.store is store:
                return
            before.close()
        self._inlets[name] = inlet_of(store)

    def data_store(self, name: str) -> DataStoreBase:
        """Return the store that is registered under `name`.

        Raises:
            KeyError: there is none.
        """
        return self._inlet(name).store

    def store_names(self) -> set[str]:
        """Return the names of the registered stores."""
        return set(self._inlets)

    def publish_network(self, params: Any) -> int:
        """Make `params` the newest network for all clients; return its version, from 1 upwards. Any thread, never waits.

        The arrays are copied before this returns.
        """
        return self._server.publish(params)

    @property
    def policy_version(self) -> int:
        """The newest published version; 0 before the first."""
        return self._server.version

    def stats(self) -> dict[str, Any]:
        """Return plain counters; `stores` is name -> what came in; `lag` is client -> versions that it has not taken."""
        return {**super().stats(), "stores": {name: inlet.stats() for name, inlet in list(self._inlets.items())}}

    def _inlet(self, name: str) -> Inlet | BufferInlet:
        try:
            return self._inlets[name]
        except KeyError:
            raise KeyError(f"no data store {name!r} is registered; there are {sorted(self._inlets)}") from None

    def _sync(self, request: dict[str, Any]) -> dict[str, Any]:
        caller = self._server.caller()
        return self._inlet(request["store"]).sync(request, caller.client, near=caller.transport == "shm")

    def _upload(self, request: dict[str, Any]) -> dict[str, Any]:
        name, client = request["store"], self._server.caller().client
        answer, _ = self._inlet(name).take(request, partial(self._announce, name), client)
        return answer

    def _announced(self, request: dict[str, Any]) -> bool:
        name = request["store"]
        return self._inlet(name).announce(request, self._server.caller().client, partial(self._announce, name))

    def _announce(self, store_name: str, items: Sequence[Any]) -> None:
        if self._data_callback is not None:
            self._data_callback(store_name, {"data": items})

    def _request(self, request: tuple[str, Any]) -> Any:
        kind, payload = request
        if kind not in self._request_types:
            raise KeyError(f"request type {kind!r} is not in the config, which has {self._request_types}")
        if self._request_callback is None:
            raise RuntimeError(f"the server has no request_callback to answer {kind!r}")
        return self._request_callback(kind, payload)
