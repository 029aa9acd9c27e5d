"""An environment served to `RemoteEnv`s elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from gymnasium import Env

from edgeml_ipc._fronts import ServerFront
from edgeml_ipc.gym_env.description import describe_env
from edgeml_ipc.gym_env.seats import OwnSeats, Seats, SharedSeat
from edgeml_ipc.service import Server, complete_address, options_for, set_log_level

if TYPE_CHECKING:
    from edgeml_ipc.security import Keys

SERVICE: Final = "gym_env"
CONFIG: Final = {"schema": 1}  # what both sides must equal: the form of descriptions and calls
DEFAULT_PORT: Final = 5557


class EnvServer(ServerFront):
    """Serve a gymnasium environment; its methods run in the serving thread, one call at a time.

        server = EnvServer(lambda: gymnasium.make("CartPole-v1"), port_num=0)
        server.start(threaded=True)
        with RemoteEnv(server.address) as env:
            observation, info = env.reset(seed=0)
        server.stop()

    Args:
        env_or_factory: a function that makes an environment: each client gets one of its own, which is closed when the client
            closes, or 30 s after its connection was lost. Or an environment, such as a robot: it belongs to the client
            that reset it, until that one closes or its connection ends; meanwhile nobody else can reset or step it, and
            it stays the caller's to close.
        port_num: where to listen; 0 lets the system choose, `port` tells.
        host: interface to listen on, or an address such as `shm://robot`; beyond loopback only with keys.
        transport: scheme; None means `auto`.
        keys: CURVE keys; insecure: allow listening beyond loopback without them.
        max_clients: how many clients of a factory may have an environment at once.
        policies: key -> how the arrays of observations and infos travel over tcp; see `edgeml_ipc.codec.policies`.
        log_level: for this library's logger only.
    Raises:
        AddressInUse: another server listens there. AuthenticationError: beyond loopback without keys.
        CodecError: the environment has a space that cannot be described.
    """

    def __init__(
        self,
        env_or_factory: Env[Any, Any] | Callable[[], Env[Any, Any]],
        port_num: int = DEFAULT_PORT,
        *,
        host: str = "127.0.0.1",
        transport: str | None = None,
        keys: Keys | None = None,
        insecure: bool = False,
        max_clients: int = 64,
        policies: Mapping[str, str] | None = None,
        log_level: int | str | None = None,
    ) -> None:
        set_log_level(log_level)
        self._seats: Seats
        if isinstance(env_or_factory, Env):
            describe_env(env_or_factory)  # for its errors: here, and not when the first client comes
            self._seats = SharedSeat(env_or_factory, self._is_connected)
        elif callable(env_or_factory):
            self._seats = OwnSeats(env_or_factory, max_clients, self._is_connected)
        else:
            raise TypeError(f"env_or_factory must be a gymnasium.Env or a function, got a {type(env_or_factory).__name__}")
        self._server = Server(
            complete_address(host, port_num, transport),
            service=SERVICE,
            config=CONFIG,
            handlers={
                "describe": self._describe,
                "reset": self._reset,
                "step": self._step,
                "render": self._render,
                "close": self._close,
            },
            options=options_for(keys, insecure),
            policies=policies,
            copy=True,  # an environment may change the action that it is given
            tick=self._seats.tidy,
            on_gone=self._seats.went,
            on_end=self._seats.close,
        )

    def _is_connected(self, client: bytes) -> bool:
        return self._server.is_connected(client)

    @property
    def _client(self) -> bytes:
        return self._server.caller().client

    def _describe(self, _: object) -> dict[str, Any]:
        several = isinstance(self._seats, OwnSeats)
        return {**describe_env(self._seats.show(self._client)), "several": several}

    def _reset(self, request: tuple[int | None, dict[str, Any] | None]) -> tuple[Any, dict[str, Any]]:
        seed, options = request
        observation, info = self._seats.take(self._client).reset(seed=seed, options=options)
        return observation, dict(info)

    def _step(self, action: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        env = self._seats.of(self._client)
        observation, reward, terminated, truncated, info = env.step(action)
        return observation, reward, terminated, truncated, dict(info)

    def _render(self, _: object) -> Any:
        return self._seats.of(self._client).render()

    def _close(self, _: object) -> None:
        self._seats.leave(self._client)
