"""The action service with edgeml's manners."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from edgeml_ipc import action
from edgeml_ipc.action import ActionConfig as ActionConfig
from edgeml_ipc.compat._manners import RequestSettings, answered, connect

if TYPE_CHECKING:
    from edgeml_ipc.security import Keys

logger = logging.getLogger("edgeml_ipc")


class ActionServer(action.ActionServer):
    """See `edgeml_ipc.ActionServer`. A callback may be None; callbacks get writable arrays.

    Args:
        host, transport, keys, insecure: as there. It listens to its own machine, not to all interfaces as edgeml's did.
    """

    def __init__(
        self,
        config: ActionConfig,
        obs_callback: Callable[[set[str]], dict[str, Any]] | None,
        act_callback: Callable[[str, Any], dict[str, Any]] | None,
        log_level: int | str | None = logging.WARNING,
        *,
        host: str = "127.0.0.1",
        transport: str | None = None,
        keys: Keys | None = None,
        insecure: bool = False,
    ) -> None:
        super().__init__(
            config,
            obs_callback or _nothing,
            act_callback or _nothing,
            host=host,
            transport=transport,
            keys=keys,
            insecure=insecure,
            copy=True,
            log_level=log_level,
        )
        self.config = config

    def publish_obs(self, payload: Mapping[str, Any]) -> bool:
        """Make `payload` the newest observation for all subscribers; False if the config has no `broadcast_port`."""
        if self.config.broadcast_port is None:
            logger.warning("%s: nothing is published, since the config has no broadcast_port", self.address)
            return False
        super().publish_obs(payload)
        return True


class ActionClient(action.ActionClient):
    """See `edgeml_ipc.ActionClient`. It returns None where no answer came; arrays are writable copies.

    Args:
        wait_for_server: wait without end until the server is there.
    """

    def __init__(
        self,
        server_ip: str,
        config: ActionConfig,
        wait_for_server: bool = False,
        timeout_ms: int = 800,
        *,
        transport: str | None = None,
        keys: Keys | None = None,
    ) -> None:
        make = partial(super().__init__, server_ip, config, timeout_ms=timeout_ms, transport=transport, keys=keys, copy=True)
        connect(make, server_ip, wait=wait_for_server)
        self.client = RequestSettings(self._client)
        self.config, self.server_ip = config, server_ip

    def obs(self, keys: Iterable[str] | None = None) -> dict[str, Any] | None:  # type: ignore[override]
        """Return the observations of `keys`, or of all keys of the config; None if no answer came.

        Raises:
            AssertionError: a key that the config does not have.
        """
        keys = None if keys is None else list(keys)
        if unknown := set(keys or ()).difference(self.config.observation_keys):
            raise AssertionError(f"invalid observation keys {sorted(unknown)}; the config has {self.config.observation_keys}")
        return answered(super().obs, keys)

    def act(self, key: str, payload: Any = None) -> dict[str, Any] | None:  # type: ignore[override]
        """Do the action `key` and return the server's answer; None if none came.

        Raises:
            ValueError: a key that the config does not have.
        """
        if key not in self.config.action_keys:
            raise ValueError(f"invalid action key {key!r}; the config has {self.config.action_keys}")
        return answered(super().act, key, payload)

    def register_obs_callback(self, callback: Callable[[dict[str, Any]], None]) -> None:
        """Call `callback(payload)` for each observation published.

        Raises:
            ValueError: the config has no `broadcast_port`.
        """
        if self.config.broadcast_port is None:
            raise ValueError("the config has no broadcast_port, so nothing is published; give it a number")
        super().register_obs_callback(callback)


def _nothing(*_: object) -> dict[str, Any]:
    return {"success": False, "message": "Invalid payload"}
