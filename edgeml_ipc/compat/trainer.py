"""The trainer service with edgeml's and agentlace's manners."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from edgeml_ipc import trainer
from edgeml_ipc.compat._manners import RequestSettings, answered, connect
from edgeml_ipc.data.data_store import DataStoreBase
from edgeml_ipc.errors import EdgeMLError

if TYPE_CHECKING:
    from edgeml_ipc.security import Keys

logger = logging.getLogger("edgeml_ipc")

_UPDATE_SECONDS: Final = 60.0

DataCallback = Callable[[str, dict[str, Any]], Any]
RequestCallback = Callable[[str, Any], Any]


@dataclass
class TrainerConfig(trainer.TrainerConfig):
    """See `edgeml_ipc.TrainerConfig`.

    Attributes:
        experimental_pipeline_port: accepted; everything travels through the one port, and uploads are acknowledged.
    """

    experimental_pipeline_port: int | str | None = None


def _shared(config: trainer.TrainerConfig) -> trainer.TrainerConfig:
    """Return what both sides compare: a program of edgeml's may talk to one that uses `edgeml_ipc.TrainerConfig`."""
    return trainer.TrainerConfig(**{field.name: getattr(config, field.name) for field in fields(trainer.TrainerConfig)})


class TrainerServer(trainer.TrainerServer):
    """See `edgeml_ipc.TrainerServer`. Callbacks and stores get writable arrays.

    Args:
        host, transport, keys, insecure: as there. It listens to its own machine, not to all interfaces as edgeml's did.
    """

    def __init__(
        self,
        config: trainer.TrainerConfig,
        data_callback: DataCallback | None = None,
        request_callback: RequestCallback | None = None,
        log_level: int | str | None = logging.INFO,
        *,
        host: str = "127.0.0.1",
        transport: str | None = None,
        keys: Keys | None = None,
        insecure: bool = False,
    ) -> None:
        super().__init__(
            _shared(config),
            data_callback,
            request_callback or (lambda kind, payload: {}),
            host=host,
            transport=transport,
            keys=keys,
            insecure=insecure,
            copy=True,
            log_level=log_level,
        )
        self.config = config

    @property
    def data_stores(self) -> dict[str, DataStoreBase]:
        """The registered stores by name; a copy."""
        return {name: self.data_store(name) for name in self.store_names()}  # type: ignore[misc]

    def register_data_store(self, name: str, data_store: DataStoreBase) -> None:
        """Fill `data_store` with what clients upload under `name`."""
        super().register_data_store(name, data_store)

    def publish_network(self, payload: Any) -> int:
        """Make `payload` the newest network for all clients."""
        return super().publish_network(payload)

    def data_store(self, name: str) -> DataStoreBase | None:  # type: ignore[override]
        """Return the store that is registered under `name`, or None."""
        return super().data_store(name) if name in self.store_names() else None


class TrainerClient(trainer.TrainerClient):
    """See `edgeml_ipc.TrainerClient`. It returns None or False where no answer came; arrays are writable copies.

    As in agentlace the server knows which data it has; here for each client and each life of its store, so that what a client
    that was started again has to say is taken, too.

    Args:
        wait_for_server: wait without end until the server is there.
    """

    def __init__(
        self,
        name: str,
        server_ip: str,
        config: trainer.TrainerConfig,
        data_store: DataStoreBase | None = None,
        data_stores: Mapping[str, DataStoreBase] | None = None,
        log_level: int | str | None = logging.INFO,
        wait_for_server: bool = False,
        timeout_ms: float = 800,
        *,
        transport: str | None = None,
        keys: Keys | None = None,
    ) -> None:
        stores = dict(data_stores or {}) if data_store is None else {name: data_store}
        make = partial(
            super().__init__,
            name,
            server_ip,
            _shared(config),
            data_stores=stores,
            timeout_ms=timeout_ms,
            transport=transport,
            keys=keys,
            copy=True,
            log_level=log_level,
        )
        connect(make, server_ip, wait=wait_for_server)
        self.client_name, self.server_ip, self.config = name, server_ip, config
        self.data_store, self.data_stores_map = data_store, stores
        self.req_rep_client = RequestSettings(self._client)
        if stores:
            self.update()

    def update(self, timeout: float = _UPDATE_SECONDS) -> bool:  # type: ignore[override]
        """Upload what the stores hold by now, each item exactly once; return whether the server took it.

        After False nothing is lost or doubled: the next update goes on where the server stands.
        """
        if not self.data_stores_map:
            return False
        try:
            super().update(timeout)
        except EdgeMLError as error:
            self._update_errors += 1
            logger.warning("%s: update failed: %s", self.address, error)
            return False
        return True

    def update_datastore(self, name: str, from_id: int, confirm_update: bool = False) -> bool:
        """Do as `update`: the server says from where on, and always confirms. False also if there is no store `name`."""
        if name not in self.data_stores_map:
            logger.error("%s: there is no data store %r; there are %s", self.address, name, sorted(self.data_stores_map))
            return False
        return self.update()

    def get_server_last_update_id(self, name: str) -> int | None:
        """Return the id of the last item of our store `name` that the server has, -1 for none; None if no answer came."""
        store = self.data_stores_map.get(name)
        incarnation = os.urandom(16) if store is None else store.incarnation
        about = {"store": name, "client": self.name, "incarnation": incarnation}
        answer = answered(self._client.call, "sync", {**about, "direct": False, "refused": None})
        if answer is None:
            return None
        return -1 if answer["next_id"] is None else int(answer["next_id"]) - 1

    def request(self, type: str, payload: Any = None) -> Any:
        """Ask the server's request_callback; None if no answer came, or the config has no such type."""
        if type not in self.config.request_types:
            return None
        return answered(super().request, type, payload)


class TrainerTunnel:
    """A server and its client in one, for an actor and a learner that are threads and share one store: calls, nothing sent.

    Threads: callbacks run in the thread of who publishes or asks.
    """

    def __init__(self) -> None:
        self._network_callback: Callable[[Any], None] | None = None
        self._request_callback: RequestCallback | None = None

    def recv_network_callback(self, callback_fn: Callable[[Any], None]) -> None:
        """Call `callback_fn(params)` for each network published from now on."""
        self._network_callback = callback_fn

    def publish_network(self, params: Any) -> None:
        """Hand `params` itself to the callback, if there is one."""
        if self._network_callback is not None:
            self._network_callback(params)

    def register_request_callback(self, callback_fn: RequestCallback) -> None:
        """Answer requests by `callback_fn(type, payload)`."""
        self._request_callback = callback_fn

    def request(self, type: str, payload: Any) -> Any:
        """Return what the request callback answers; None if there is none."""
        return None if self._request_callback is None else self._request_callback(type, payload)

    def start(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: there is no server."""

    def stop(self) -> None:
        """Do nothing, as `start`."""

    def update(self) -> None:
        """Do nothing: the store is shared."""

    def start_async_update(self, interval: float = 10) -> None:
        """Do nothing, as `update`."""


TrainerSMInterface = TrainerTunnel  # its later name
