"""An environment that is served elsewhere, as a gymnasium environment here."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import gymnasium
from gymnasium.envs.registration import EnvSpec

from edgeml_ipc.errors import ConfigMismatch, EdgeMLError, IncompatiblePeer, PeerDied
from edgeml_ipc.gym_env.description import Description
from edgeml_ipc.gym_env.env_server import CONFIG, DEFAULT_PORT, SERVICE
from edgeml_ipc.service import DEFAULT_WAIT_SECONDS, Client, complete_address, options_for, set_log_level

if TYPE_CHECKING:
    from edgeml_ipc.security import Keys

_CLOSE_SECONDS: Final = 2.0


class RemoteEnv(gymnasium.Env[Any, Any]):
    """The environment of an `EnvServer`, as if it were here. For one thread at a time, as any environment.

        with RemoteEnv("tcp://10.0.0.5:5557") as env:
            observation, info = env.reset(seed=0)
            observation, reward, terminated, truncated, info = env.step(env.action_space.sample())

    A step whose connection breaks is sent again, and executed once. If the server ended with a step in flight, `step` raises
    PeerDied; `reset` then connects to the server that took its place.

    Args:
        address: host, or an address such as `tcp://10.0.0.5:5557` or `shm://robot`.
        port_num: used where the address names no port.
        timeout: seconds for each call, the environment's own work included.
        wait_for_server: keep trying to connect for up to `wait_timeout` seconds while nothing answers.
        transport: scheme; None means `auto`.
        copy: give arrays that belong to the caller, as environments do; False gives read-only views, without a copy.
        policies: key -> how the arrays of actions and options travel over tcp; see `edgeml_ipc.codec.policies`.
        render_mode: what the environment must have been made with; None takes what there is.
    Attributes:
        metadata: the environment's, with its one render mode as `render_modes`: no other can be asked for.
        spec: makes another `RemoteEnv` like this one; None where the server has one environment for all.
        remote_spec: dict with what the environment's own spec says: `id`, `reward_threshold`, `nondeterministic` and
            `max_episode_steps`; None if it has none.
    Raises:
        ConnectionRefused: nothing listens. TimeoutError: silence. IncompatiblePeer: other service or version.
        AuthenticationError: wrong key. RemoteError: the environment could not be made. ValueError: another render mode.
    """

    def __init__(
        self,
        address: str = "127.0.0.1",
        port_num: int = DEFAULT_PORT,
        *,
        timeout: float = 30.0,
        wait_for_server: bool = False,
        wait_timeout: float = DEFAULT_WAIT_SECONDS,
        transport: str | None = None,
        keys: Keys | None = None,
        copy: bool = True,
        policies: Mapping[str, str] | None = None,
        render_mode: str | None = None,
        log_level: int | str | None = None,
    ) -> None:
        set_log_level(log_level)
        self._closed = False
        self._client = Client(
            complete_address(address, port_num, transport),
            service=SERVICE,
            config=CONFIG,
            timeout=timeout,
            wait_for_server=wait_for_server,
            wait_timeout=wait_timeout,
            options=options_for(keys),
            copy=copy,
            policies=policies,
        )
        # What makes another one like this; keys and the rest as they were given.
        self._again = {"timeout": timeout, "keys": keys, "copy": copy, "policies": policies, "address": self._client.address}
        try:
            self._get_acquainted()
            if render_mode not in (None, self.render_mode):
                raise ValueError(
                    f"render_mode {render_mode!r}: the environment at {self._client.address} was made with {self.render_mode!r}"
                )
        except BaseException:
            self.close()
            raise

    def _get_acquainted(self) -> None:
        """Ask the server what its environment is."""
        tree = self._client.call("describe", None)
        self._incarnation = self._client.server_incarnation
        self._description = known = Description(tree)
        self.observation_space = known.observation_space
        self.action_space = known.action_space
        self.render_mode = known.render_mode
        self.metadata = {**known.metadata, "render_modes": [] if known.render_mode is None else [known.render_mode]}
        self.remote_spec = known.spec
        self.spec = self._spec_of(known.spec) if tree.get("several") is True else None

    def _spec_of(self, said: dict[str, Any] | None) -> EnvSpec:
        said = {"id": "Remote-v0", "kwargs": self._again, **(said or {})}
        try:
            return EnvSpec(entry_point=_another, order_enforce=False, disable_env_checker=True, **said)
        except gymnasium.error.Error as error:
            raise IncompatiblePeer(f"{self._client.address}: the environment's spec is none: {error}") from error

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode; return the first observation and the info.

        Raises:
            RemoteError: the environment raised, or another client uses it. ConfigMismatch: another server took the place
                of the one that was connected first, and its environment has other spaces. TimeoutError, PeerDied.
        """
        super().reset(seed=seed)
        try:
            observation, info = self._call("reset", (seed, options), 2)
        except PeerDied as error:
            if not error.outcome_unknown:
                raise
            observation, info = self._call("reset", (seed, options), 2)  # what the dead server made of it is gone with it
        if self._client.server_incarnation != self._incarnation:
            self._meet_the_successor()
        return observation, info

    def _meet_the_successor(self) -> None:
        before = self._description
        self._get_acquainted()
        if not self._description.has_spaces_of(before):
            now = self._description
            differences = {
                name: (str(getattr(before, name)), str(getattr(now, name))) for name in ("observation_space", "action_space")
            }
            raise ConfigMismatch(
                f"{self._client.address}: the server was restarted with another environment: {differences}", differences
            )

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Take one step, executed once however often it has to be sent.

        Args:
            action: of the action space, as the environment takes it; a tree that the codec carries.
        Returns:
            Observation, reward, terminated, truncated, info, of the types that the environment gave.
        Raises:
            RemoteError: the environment raised; ResetNeeded, as `remote_type`, before the first `reset`.
            PeerDied: the server ended; with `outcome_unknown` it may have taken the step. TimeoutError: no answer in time;
                the step may be taken yet. CodecError: the action cannot travel.
        """
        observation, reward, terminated, truncated, info = self._call("step", action, 5)
        return observation, reward, terminated, truncated, info

    def _call(self, method: str, payload: Any, count: int) -> tuple[Any, ...]:
        """Call a method that answers so many values, of which the last is an info."""
        reply = self._client.call(method, payload)
        if type(reply) is not tuple or len(reply) != count or type(reply[-1]) is not dict:
            raise IncompatiblePeer(f"{self._client.address}: {method!r} must answer {count} values, got {str(reply)[:200]}")
        return reply

    def render(self) -> Any:
        """Return what the environment renders: a frame `(height, width, 3)` uint8, a list of frames, a text, or None.

        Raises:
            RemoteError: the environment raised, or was not reset. TimeoutError, PeerDied.
        """
        return self._client.call("render", None)

    def close(self) -> None:
        """Leave the server, which closes the environment if it was this client's own. Idempotent."""
        if self._closed:
            return
        self._closed = True
        with suppress(EdgeMLError):  # it is gone already, or will notice
            self._client.call("close", None, timeout=_CLOSE_SECONDS)
        self._client.close()

    @property
    def transport(self) -> str:
        """What the calls travel by: "shm", "tcp" or "inproc"."""
        return self._client.transport

    def stats(self) -> dict[str, Any]:
        """Return the client's plain counters. Any thread."""
        return self._client.stats()


def _another(**options: Any) -> RemoteEnv:
    """Connect once more; for `RemoteEnv.spec`."""
    return RemoteEnv(**options)
