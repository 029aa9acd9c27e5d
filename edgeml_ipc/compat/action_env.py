"""The names that `edgeml_ipc.compat.gym_env` had in early versions of agentlace."""

from edgeml_ipc.compat.gym_env import GymEnvClient, GymEnvServerWrapper

ActionClientEnv = GymEnvClient
ActionServerEnvWrapper = GymEnvServerWrapper

__all__ = ["ActionClientEnv", "ActionServerEnvWrapper"]
