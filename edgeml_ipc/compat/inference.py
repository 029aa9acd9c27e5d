"""The inference service with edgeml's manners."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from edgeml_ipc import inference
from edgeml_ipc.compat._manners import Late, answered
from edgeml_ipc.errors import RemoteError

if TYPE_CHECKING:
    from edgeml_ipc.security import Keys


class InferenceServer(inference.InferenceServer):
    """See `edgeml_ipc.InferenceServer`. Functions get writable arrays.

    Args:
        host, transport, keys, insecure: as there. It listens to its own machine, not to all interfaces as edgeml's did.
    """

    def __init__(
        self,
        port_num: int,
        *,
        host: str = "127.0.0.1",
        transport: str | None = None,
        keys: Keys | None = None,
        insecure: bool = False,
    ) -> None:
        super().__init__(port_num, host=host, transport=transport, keys=keys, insecure=insecure, copy=True)
        self.interfaces: dict[str, Callable[[Any], Any]] = {}

    def register_interface(
        self,
        name: str,
        callback: Callable[[Any], Any],
        max_batch_size: int | None = None,
        max_wait_ms: float = 2.0,
    ) -> None:
        """Offer `callback` under `name`; see `edgeml_ipc.InferenceServer.register_interface`."""
        super().register_interface(name, callback, max_batch_size, max_wait_ms)
        self.interfaces[name] = callback


class InferenceClient:
    """See `edgeml_ipc.InferenceClient`. It returns None where no answer came; arrays are writable copies.

    It connects when it is first used, so it may be made before its server is.
    """

    def __init__(
        self,
        server_ip: str,
        port_num: int,
        *,
        timeout_ms: int = 800,
        transport: str | None = None,
        keys: Keys | None = None,
    ) -> None:
        kind = inference.InferenceClient
        make = partial(kind, server_ip, port_num, timeout_ms, transport=transport, keys=keys, copy=True)
        self._late: Late[inference.InferenceClient] = Late(make, server_ip)

    def interfaces(self) -> set[str]:
        """Return the names that the server offers; none if no answer came."""
        return answered(lambda: self._late.client().interfaces()) or set()

    def call(self, name: str, payload: Any) -> Any:
        """Return what the interface `name` makes of `payload`; None if no answer came.

        Where there is no such interface, `{"success": False, "message": ...}`.
        """
        return answered(self._call, name, payload)

    def _call(self, name: str, payload: Any) -> Any:
        client = self._late.client()
        try:
            return client.call(name, payload)
        except RemoteError:
            if name in client.interfaces():
                raise
            return {"success": False, "message": "Invalid interface or payload"}

    def stop(self) -> None:
        """Close the connection. Idempotent; the next call connects anew."""
        self._late.close()

    def __enter__(self) -> InferenceClient:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()
