"""A gymnasium environment served to others, under agentlace's names. Spaces are described, not pickled."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import gymnasium

from edgeml_ipc.compat._manners import connect
from edgeml_ipc.gym_env import EnvServer, RemoteEnv

if TYPE_CHECKING:
    from edgeml_ipc.security import Keys

_PORT: Final = 5546
_PATIENCE_SECONDS: Final = 24 * 3600.0


class GymEnvServerWrapper(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Serve an environment; see `edgeml_ipc.EnvServer`.

        GymEnvServerWrapper(gymnasium.make("CartPole-v1")).start()

    Args:
        port: 0 lets the system choose; then the attribute `port` tells.
        host, keys, insecure: as there. It listens to its own machine, not to all interfaces as agentlace's did.
    """

    def __init__(
        self,
        env: gymnasium.Env[Any, Any],
        port: int = _PORT,
        *,
        host: str = "127.0.0.1",
        keys: Keys | None = None,
        insecure: bool = False,
    ) -> None:
        super().__init__(env)
        self.__server = EnvServer(env, port, host=host, keys=keys, insecure=insecure)
        self.port = self.__server.port

    def start(self, threaded: bool = False) -> None:
        """Serve: in this thread until `stop` or Ctrl-C, or in a daemon thread if `threaded`."""
        self.__server.start(threaded)

    def stop(self) -> None:
        """Stop serving. Idempotent; the environment stays open."""
        self.__server.stop()


class GymEnvClient(RemoteEnv):
    """The environment of a `GymEnvServerWrapper`, or of an `edgeml_ipc.EnvServer`; see `edgeml_ipc.RemoteEnv`.

    Args:
        retry_interval, timeout_ms: accepted. agentlace's client asked again after a timeout, and a slow step was taken twice;
            here a call waits until the environment has answered, which it does once.
    """

    def __init__(
        self,
        host: str = "localhost",
        port: int = _PORT,
        retry_interval: float = 0.5,
        timeout_ms: int = 800,
        *,
        keys: Keys | None = None,
    ) -> None:
        start = super().__init__
        connect(lambda **waiting: start(host, port, timeout=_PATIENCE_SECONDS, keys=keys, **waiting), host, wait=False)
