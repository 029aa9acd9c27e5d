"""The action service: a robot or an environment serves observations and takes actions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edgeml_ipc._fronts import ClientFront, ServerFront
from edgeml_ipc.service import DEFAULT_WAIT_SECONDS, Client, Server, complete_address, options_for, set_log_level

if TYPE_CHECKING:
    from edgeml_ipc.security import Keys

_SERVICE = "action"


@dataclass
class ActionConfig:
    """What both sides of an action service agree on; they compare it, ports apart, when they connect.

    Attributes:
        port_number: where the server listens; 0 lets the system choose.
        action_keys, observation_keys: the keys that `act` and `obs` take.
        broadcast_port: accepted; everything travels through the one port.
        version: of the application's own contract.
    """

    port_number: int
    action_keys: list[str] = field(default_factory=list)
    observation_keys: list[str] = field(default_factory=list)
    broadcast_port: int | None = None
    version: str = "0.0.1"


class ActionServer(ServerFront):
    """Serve observations and actions by two callbacks, which run in the serving thread.

        config = ActionConfig(port_number=0, action_keys=["move"], observation_keys=["pose"])
        server = ActionServer(config, lambda keys: {"pose": [0.0, 0.0]}, lambda key, payload: {"ok": True})
        server.start(threaded=True)

    Args:
        obs_callback: set of keys -> dict of observations.
        act_callback: action key, payload -> dict.
        host: interface to listen on, or an address such as `shm://robot`; beyond loopback only with keys.
        transport: scheme; None means `auto`.
        keys: CURVE keys; insecure: allow listening beyond loopback without them.
        policies: key -> how the arrays of observations and answers travel over tcp, such as {"image": "jpeg:90"};
            see `edgeml_ipc.codec.policies`. Not over shared memory.
        copy: give callbacks writable copies of received arrays instead of read-only views.
        log_level: for this library's logger only.
    Raises:
        AddressInUse: another server listens there. AuthenticationError: beyond loopback without keys.
    """

    def __init__(
        self,
        config: ActionConfig,
        obs_callback: Callable[[set[str]], dict[str, Any]],
        act_callback: Callable[[str, Any], dict[str, Any]],
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
        self._observation_keys = list(config.observation_keys)
        self._action_keys = list(config.action_keys)
        self._obs_callback = obs_callback
        self._act_callback = act_callback
        self._server = Server(
            complete_address(host, config.port_number, transport),
            service=_SERVICE,
            config=config,
            handlers={"obs": self._obs, "act": self._act},
            options=options_for(keys, insecure),
            policies=policies,
            copy=copy,
        )

    def publish_obs(self, payload: Mapping[str, Any]) -> int:
        """Make `payload` the newest observation for all subscribers; return its version. Any thread, never waits for them."""
        return self._server.publish(payload)

    def _obs(self, keys: list[str] | None) -> dict[str, Any]:
        wanted = set(self._observation_keys if keys is None else keys)
        unknown = wanted.difference(self._observation_keys)
        if unknown:
            raise KeyError(f"observation keys {sorted(unknown)} are not in the config, which has {self._observation_keys}")
        return self._obs_callback(wanted)

    def _act(self, request: tuple[str, Any]) -> dict[str, Any]:
        key, payload = request
        if key not in self._action_keys:
            raise KeyError(f"action key {key!r} is not in the config, which has {self._action_keys}")
        return self._act_callback(key, payload)


class ActionClient(ClientFront):
    """Ask an action server for observations and send it actions. Thread-safe.

    Args:
        server_ip: host, or an address such as `tcp://10.0.0.5:6379` or `shm://robot`.
        config: must equal the server's, ports apart; never changed.
        wait_for_server: keep trying to connect for up to `wait_timeout` seconds while nothing answers.
        timeout_ms: for each call, in milliseconds.
        transport: scheme; None means `auto`.
        copy: give writable copies of received arrays instead of read-only views.
        policies: key -> how the arrays of actions travel over tcp, such as {"image": "jpeg:90"};
            see `edgeml_ipc.codec.policies`. Not over shared memory.
        relay: over tcp, share one subscription with the other clients on this machine that ask for it: each published version
            crosses the network once, and all read it from shared memory.
    Raises:
        ConnectionRefused: nothing listens. TimeoutError: silence. ConfigMismatch: other config, with the differing fields.
        IncompatiblePeer: other service or version. AuthenticationError: wrong key.
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
        copy: bool = False,
        policies: Mapping[str, str] | None = None,
        relay: bool = False,
        wait_timeout: float = DEFAULT_WAIT_SECONDS,
        log_level: int | str | None = None,
    ) -> None:
        set_log_level(log_level)
        self._client = Client(
            complete_address(server_ip, config.port_number, transport),
            service=_SERVICE,
            config=config,
            timeout=timeout_ms / 1000,
            wait_for_server=wait_for_server,
            wait_timeout=wait_timeout,
            options=options_for(keys),
            copy=copy,
            policies=policies,
            relay=relay,
        )

    def obs(self, keys: Iterable[str] | None = None) -> dict[str, Any]:
        """Return the observations of `keys`, or of all keys of the config.

        Raises:
            RemoteError: an unknown key, or the callback raised. TimeoutError, PeerDied: see `Client.call`.
        """
        result: dict[str, Any] = self._client.call("obs", None if keys is None else list(keys))
        return result

    def act(self, key: str, payload: Any = None) -> dict[str, Any]:
        """Do the action `key` and return what the server's callback answers; no payload means an empty dict.

        Raises:
            RemoteError: an unknown key, or the callback raised. TimeoutError, PeerDied: see `Client.call`.
        """
        result: dict[str, Any] = self._client.call("act", (key, {} if payload is None else payload))
        return result

    def register_obs_callback(self, callback: Callable[[dict[str, Any]], None]) -> None:
        """Call `callback(payload)` on the background thread for each observation published, the newest first if it is slow."""
        self._client.subscribe(lambda payload, _version: callback(payload))

    @property
    def lag(self) -> int:
        """Published observations that this client knows of and has not taken."""
        return self._client.lag
