"""The inference service: named functions that clients call, one by one or gathered into batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from edgeml_ipc._batching import Batcher
from edgeml_ipc._fronts import ClientFront, ServerFront
from edgeml_ipc.service import DEFAULT_WAIT_SECONDS, LATER, Client, Server, complete_address, options_for, set_log_level

if TYPE_CHECKING:
    from edgeml_ipc.security import Keys

_SERVICE = "inference"


class InferenceServer(ServerFront):
    """Serve functions by name; they run in the serving thread.

        server = InferenceServer(port_num=0)
        server.register_interface("double", lambda payload: {"y": 2 * payload["x"]})
        server.start(threaded=True)

    Args:
        port_num: where to listen; 0 lets the system choose, `port` tells.
        host: interface to listen on, or an address such as `shm://policy`; beyond loopback only with keys.
        transport: scheme; None means `auto`.
        keys: CURVE keys; insecure: allow listening beyond loopback without them.
        policies: key -> how the arrays of results travel over tcp, such as {"image": "jpeg:90"};
            see `edgeml_ipc.codec.policies`. Not over shared memory.
        copy: give callbacks writable copies of received arrays instead of read-only views.
        log_level: for this library's logger only.
    Raises:
        AddressInUse: another server listens there. AuthenticationError: beyond loopback without keys.
    """

    def __init__(
        self,
        port_num: int,
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
        self._functions: dict[str, Callable[[Any], Any]] = {}
        self._batchers: dict[str, Batcher] = {}
        self._server = Server(
            complete_address(host, port_num, transport),
            service=_SERVICE,
            config={},
            handlers={"call": self._call, "interfaces": self._interfaces},
            options=options_for(keys, insecure),
            policies=policies,
            copy=copy,
        )

    def register_interface(
        self,
        name: str,
        function: Callable[[Any], Any],
        max_batch_size: int | None = None,
        max_wait_ms: float = 2.0,
    ) -> None:
        """Offer `function` under `name`. Before `start`, or from a callback.

        Args:
            function: payload -> result. If batched: a tree whose leaves have a new leading axis of size `batch`, for which
                it returns a tree of that leading size; each client gets its row. Requests of another structure, shape or
                dtype form batches of their own. What it raises goes to every caller of the batch.
            max_batch_size: largest batch; None means that the interface is not batched.
            max_wait_ms: how long the first request of a batch waits for others.
        """
        replaced = self._batchers.get(name)
        if max_batch_size is None:
            self._functions[name] = function
            self._batchers.pop(name, None)
        else:
            self._batchers[name] = Batcher(function, max_batch_size, max_wait_ms)
            self._server.tick = self._run_due_batches
            self._functions.pop(name, None)
        if replaced is not None:
            replaced.run_all()  # it took these requests: nobody else answers them

    def _call(self, request: tuple[str, Any]) -> Any:
        name, payload = request
        function = self._functions.get(name)
        if function is not None:
            return function(payload)
        batcher = self._batchers.get(name)
        if batcher is None:
            raise KeyError(f"no interface {name!r}; there are {sorted(self._interfaces(None))}")
        batcher.add(self._server.ticket(), payload)
        return LATER

    def _interfaces(self, _: object) -> set[str]:
        return {*self._functions, *self._batchers}

    def _run_due_batches(self) -> float | None:
        if not self._batchers:
            return None
        wait = min(batcher.run_due() for batcher in list(self._batchers.values()))
        return None if math.isinf(wait) else max(0.0, wait)

    def stats(self) -> dict[str, Any]:
        """Return plain counters; `batches` is interface -> (calls of its function, rows in them)."""
        batches = {name: (batcher.batches, batcher.rows) for name, batcher in list(self._batchers.items())}
        return {**super().stats(), "batches": batches}


class InferenceClient(ClientFront):
    """Call the functions of an inference server. Thread-safe.

    Args:
        server_ip: host, or an address such as `tcp://10.0.0.5:6379` or `shm://policy`.
        timeout_ms: for each call, in milliseconds.
        wait_for_server: keep trying to connect for up to `wait_timeout` seconds while nothing answers.
        transport: scheme; None means `auto`.
        copy: give writable copies of received arrays instead of read-only views.
        policies: key -> how the arrays of calls travel over tcp, such as {"image": "jpeg:90"};
            see `edgeml_ipc.codec.policies`. Not over shared memory.
    Raises:
        ConnectionRefused: nothing listens. TimeoutError: silence. IncompatiblePeer: other service or version.
        AuthenticationError: wrong key.
    """

    def __init__(
        self,
        server_ip: str,
        port_num: int,
        timeout_ms: int = 800,
        *,
        wait_for_server: bool = False,
        transport: str | None = None,
        keys: Keys | None = None,
        copy: bool = False,
        policies: Mapping[str, str] | None = None,
        wait_timeout: float = DEFAULT_WAIT_SECONDS,
        log_level: int | str | None = None,
    ) -> None:
        set_log_level(log_level)
        self._client = Client(
            complete_address(server_ip, port_num, transport),
            service=_SERVICE,
            config={},
            timeout=timeout_ms / 1000,
            wait_for_server=wait_for_server,
            wait_timeout=wait_timeout,
            options=options_for(keys),
            copy=copy,
            policies=policies,
        )

    def interfaces(self) -> set[str]:
        """Return the names that the server offers."""
        names: set[str] = self._client.call("interfaces", None)
        return names

    def call(self, name: str, payload: Any) -> Any:
        """Return what the interface `name` makes of `payload`.

        Raises:
            RemoteError: no such interface, or its function raised. TimeoutError, PeerDied: see `Client.call`.
        """
        return self._client.call("call", (name, payload))

    def call_async(self, name: str, payload: Any) -> Future[Any]:
        """Send the call and return its future, which completes on the client's background thread.

        Raises:
            BufferFull: too many calls are outstanding. The errors of `call` come out of the future.
        """
        return self._client.submit("call", (name, payload))
