"""Gymnasium environments in other processes: one remote environment, a vector of many, and dm_env's on either side.

`EnvServer` serves an environment, `RemoteEnv` is it elsewhere; `RemoteVectorEnv` steps many in processes of their own, which
write observations into memory that all share. `edgeml_ipc.gym_env.dm` translates from dm_env and to it.

    server = EnvServer(lambda: gymnasium.make("CartPole-v1"), port_num=0)
    server.start(threaded=True)
    with RemoteEnv(server.address) as env:
        observation, info = env.reset(seed=0)
        observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
    server.stop()
"""

from __future__ import annotations

try:
    import gymnasium as gymnasium
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("edgeml_ipc.gym_env needs gymnasium: pip install 'edgeml_ipc[gym]'") from error

from edgeml_ipc.gym_env.env_server import EnvServer
from edgeml_ipc.gym_env.remote_env import RemoteEnv
from edgeml_ipc.gym_env.vector_env import RemoteVectorEnv

__all__ = ["EnvServer", "RemoteEnv", "RemoteVectorEnv"]
