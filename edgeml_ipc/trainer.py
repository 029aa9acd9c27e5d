"""The trainer service: actors upload what they collect, a learner publishes networks."""

from __future__ import annotations

import itertools
import logging
import os
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from edgeml_ipc._deadline import Deadline
from edgeml_ipc._fronts import ClientFront
from edgeml_ipc._trainer_server import SERVICE, DataCallback, RequestCallback
from edgeml_ipc._trainer_server import TrainerConfig as TrainerConfig
from edgeml_ipc._trainer_server import TrainerServer as TrainerServer
from edgeml_ipc._uploads import UpdateResult as UpdateResult
from edgeml_ipc._uploads import Uploader
from edgeml_ipc.data.data_store import DataStoreBase
from edgeml_ipc.errors import EdgeMLError, TimeoutError
from edgeml_ipc.service import DEFAULT_WAIT_SECONDS, Client, complete_address, options_for, set_log_level

if TYPE_CHECKING:
    from edgeml_ipc.security import Keys

logger = logging.getLogger("edgeml_ipc")

_UPDATE_SECONDS: Final = 60.0
_FLUSH_SECONDS: Final = 5.0


class TrainerClient(ClientFront):
    """Upload stores to a trainer server, ask it, and receive its networks. Thread-safe.

    Args:
        name: of this client; `data_store` is uploaded under it, and the server tells clients apart by it.
        server_ip: host, or an address such as `tcp://10.0.0.5:5555` or `shm://learner`.
        config: must equal the server's, ports apart; never changed.
        data_store: uploaded under `name`. data_stores: name -> store, for others.
        wait_for_server: keep trying to connect for up to `wait_timeout` seconds while nothing answers.
        timeout_ms: for each call, in milliseconds; an update makes one call for each batch of up to 4 MiB.
        transport: scheme; None means `auto`.
        copy: give writable copies of received arrays instead of read-only views.
        policies: key -> how the arrays of uploads and requests travel over tcp, such as {"image": "jpeg:90"};
            see `edgeml_ipc.codec.policies`. Not over shared memory.
        relay: over tcp, share one subscription with the other clients on this machine that ask for it: each published version
            crosses the network once, and all read it from shared memory.
    Raises:
        ConnectionRefused: nothing listens. TimeoutError: silence. ConfigMismatch: other config, with the differing fields.
        IncompatiblePeer: other service or version. AuthenticationError: wrong key.
    """

    def __init__(
        self,
        name: str,
        server_ip: str,
        config: TrainerConfig,
        data_store: DataStoreBase | None = None,
        data_stores: Mapping[str, DataStoreBase] | None = None,
        wait_for_server: bool = False,
        timeout_ms: float = 800,
        *,
        transport: str | None = None,
        keys: Keys | None = None,
        copy: bool = False,
        policies: Mapping[str, str] | None = None,
        relay: bool = False,
        wait_timeout: float = DEFAULT_WAIT_SECONDS,
        log_level: int | str | None = None,
    ) -> None:
        set_log_level(log_level)
        stores = dict(data_stores or {})
        if data_store is not None:
            if name in stores:
                raise ValueError(f"data_stores has a store {name!r} too, which is this client's name and that of data_store")
            stores[name] = data_store
        self.name = name
        self._client = Client(
            complete_address(server_ip, config.port_number, transport),
            service=SERVICE,
            config=config,
            timeout=timeout_ms / 1000,
            wait_for_server=wait_for_server,
            wait_timeout=wait_timeout,
            options=options_for(keys),
            copy=copy,
            policies=policies,
            relay=relay,
        )
        self._uploaders = {store: Uploader(self._client, name, store, stores[store]) for store in stores}
        self._updating = threading.Lock()
        self._reported = UpdateResult()
        self._stopping = threading.Event()
        self._async_thread: threading.Thread | None = None
        self._interval = 0.0
        self._updates = self._update_errors = 0

    def update(self, timeout: float = _UPDATE_SECONDS) -> UpdateResult:
        """Upload what the stores hold by now, each item exactly once; return what was sent, evicted and lost.

        After an error nothing is lost or doubled: the next update goes on where the server stands.

        Args:
            timeout: seconds for all batches together; each has the client's own timeout within that.
        Returns:
            What happened since the last update that did not raise; so all results together are the totals.
        Raises:
            TimeoutError, PeerDied, ConnectionRefused: see `Client.call`. RemoteError: the server has no such store, or its
                store or callback raised.
        """
        deadline = Deadline(timeout)
        if not self._updating.acquire(timeout=timeout):
            raise TimeoutError(f"{self.address}: another thread's update took all of the {timeout:g} s")
        try:
            for uploader in self._uploaders.values():
                uploader.run(deadline)
            totals = sum((uploader.totals for uploader in self._uploaders.values()), UpdateResult())
            result, self._reported = totals - self._reported, totals
            self._updates += 1
        finally:
            self._updating.release()
        if result.evicted or result.lost:
            logger.warning(
                "%s: %d items were dropped by a full store before they could be sent, %d were lost with a server that died",
                self.address,
                result.evicted,
                result.lost,
            )
        return result

    def start_async_update(self, interval: float = 10.0) -> None:
        """Update every `interval` seconds on a thread, until `stop`, which updates once more.

        Errors are logged, counted, and tried again at the next interval. A second call changes the interval.
        """
        if interval <= 0:
            raise ValueError(f"interval must be above 0 seconds, got {interval}")
        self._interval = interval
        if self._async_thread is None:
            self._async_thread = threading.Thread(target=self._update_often, name="edgeml_ipc-async-update", daemon=True)
            self._async_thread.start()

    def _update_often(self) -> None:
        while not self._stopping.wait(self._interval):
            self._try_update(_UPDATE_SECONDS)

    def _try_update(self, timeout: float) -> None:
        try:
            self.update(timeout)
        except EdgeMLError as error:
            self._update_errors += 1
            logger.warning("%s: update failed, trying again later: %s", self.address, error)
        except Exception:  # of a user's store: it must not end the updates
            self._update_errors += 1
            logger.exception("%s: update failed, trying again later", self.address)

    def request(self, type: str, payload: Any = None) -> Any:
        """Ask the server's request_callback; no payload means an empty dict.

        Raises:
            RateLimited: too many requests; it was not executed. RemoteError: unknown type, or the callback raised.
            TimeoutError, PeerDied: see `Client.call`.
        """
        return self._client.call("request", (type, {} if payload is None else payload))

    def recv_network_callback(self, callback: Callable[[Any], None]) -> None:
        """Call `callback(params)` on the background thread for each network published, skipping to the newest if it is slow."""
        self._client.subscribe(lambda params, _version: callback(params))

    @property
    def policy_version(self) -> int:
        """The newest network version that this client has taken; 0 before the first."""
        return self._client.version

    @property
    def policy_lag(self) -> int:
        """Network versions that this client knows of and has not taken."""
        return self._client.lag

    def stop(self) -> None:
        """Stop updating, after one more update if `start_async_update` ran, and close. Idempotent."""
        first = not self._stopping.is_set()
        self._stopping.set()
        if self._async_thread is not None and self._async_thread is not threading.current_thread():
            self._async_thread.join(_FLUSH_SECONDS)
            if first:
                self._try_update(_FLUSH_SECONDS)
        self._client.close()
        for uploader in self._uploaders.values():
            uploader.close()

    def stats(self) -> dict[str, Any]:
        """Return plain counters; `stores` is name -> items sent, evicted, lost, and waiting; direct: 1 if written by itself."""
        return {
            **super().stats(),
            "updates": self._updates,
            "update_errors": self._update_errors,
            "stores": {name: uploader.stats() for name, uploader in self._uploaders.items()},
        }


class TrainerTunnel:
    """A trainer server and its client in one process: the same calls, for actor and learner threads.

        tunnel = TrainerTunnel(data_store=actor_queue)
        tunnel.register_data_store(tunnel.name, learner_store)
        tunnel.update()

    It serves from its construction to `stop`.
    """

    _numbers = itertools.count()

    def __init__(
        self,
        config: TrainerConfig | None = None,
        data_callback: DataCallback | None = None,
        request_callback: RequestCallback | None = None,
        *,
        name: str = "tunnel",
        data_store: DataStoreBase | None = None,
        data_stores: Mapping[str, DataStoreBase] | None = None,
        timeout_ms: int = 800,
    ) -> None:
        self.name = name
        config = config if config is not None else TrainerConfig()
        address = f"inproc://tunnel-{os.getpid()}-{next(self._numbers)}"
        self.server = TrainerServer(config, data_callback, request_callback, host=address)
        self.server.start(threaded=True)
        try:
            self.client = TrainerClient(name, address, config, data_store, data_stores, timeout_ms=timeout_ms)
        except BaseException:
            self.server.stop()
            raise
        self.register_data_store = self.server.register_data_store
        self.data_store = self.server.data_store
        self.store_names = self.server.store_names
        self.publish_network = self.server.publish_network
        self.update = self.client.update
        self.start_async_update = self.client.start_async_update
        self.request = self.client.request
        self.recv_network_callback = self.client.recv_network_callback

    @property
    def policy_version(self) -> int:
        """The newest network version that the client's side has taken."""
        return self.client.policy_version

    def start(self, threaded: bool = True) -> None:
        """Do nothing: the tunnel serves already. Here so that code written for a server runs."""

    def stop(self) -> None:
        """Close both sides. Idempotent."""
        self.client.stop()
        self.server.stop()

    def close(self) -> None:
        """The same as `stop`."""
        self.stop()

    def stats(self) -> dict[str, Any]:
        """Return the counters of both sides."""
        return {"server": self.server.stats(), "client": self.client.stats()}

    def __enter__(self) -> TrainerTunnel:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()
