"""What a process tells another of an environment: spaces, render mode, metadata, and what its spec says."""

from __future__ import annotations

from typing import Any, Final

from gymnasium import Env, Space

from edgeml_ipc import codec
from edgeml_ipc.errors import CodecError
from edgeml_ipc.gym_env.spaces import build, describe

_OF_THE_SPEC: Final[dict[str, tuple[type, ...]]] = {
    "id": (str,),
    "reward_threshold": (float, int, type(None)),
    "nondeterministic": (bool,),
    "max_episode_steps": (int, type(None)),
}


def describe_env(env: Env[Any, Any]) -> dict[str, Any]:
    """Return a tree that says what the environment is.

    Entries of its metadata that the codec does not carry are left out.

    Raises:
        CodecError: a space cannot be described.
    """
    return {
        "observation_space": describe(env.observation_space, "observation_space"),
        "action_space": describe(env.action_space, "action_space"),
        "render_mode": env.render_mode,
        "metadata": {key: value for key, value in env.metadata.items() if _travels(value)},
        "spec": None if env.spec is None else {name: getattr(env.spec, name) for name in _OF_THE_SPEC},
    }


def _travels(value: Any) -> bool:
    try:
        codec.encode(value)
    except CodecError:
        return False
    return True


class Description:
    """What a peer said of its environment, checked.

    Attributes:
        observation_space, action_space: built from their schemas.
        render_mode: None, or a name. metadata: a dict.
        spec: dict with `id`, `reward_threshold`, `nondeterministic`, `max_episode_steps`; None if the environment has none.
    Raises:
        CodecError: it is no description.
    """

    def __init__(self, tree: Any) -> None:
        if not isinstance(tree, dict) or not {"observation_space", "action_space"} <= tree.keys():
            raise CodecError(f"not the description of an environment: {str(tree)[:200]}")
        self.observation_space: Space[Any] = build(tree["observation_space"])
        self.action_space: Space[Any] = build(tree["action_space"])
        render_mode, metadata, spec = (tree.get(key) for key in ("render_mode", "metadata", "spec"))
        self.render_mode: str | None = render_mode if isinstance(render_mode, str) else None
        self.metadata: dict[str, Any] = dict(metadata) if isinstance(metadata, dict) else {}
        self.spec: dict[str, Any] | None = None
        if spec is not None:
            if not isinstance(spec, dict) or any(type(spec.get(name)) not in kinds for name, kinds in _OF_THE_SPEC.items()):
                raise CodecError(f"not what the spec of an environment says: {str(spec)[:200]}")
            self.spec = {name: spec[name] for name in _OF_THE_SPEC}

    def has_spaces_of(self, other: Description) -> bool:
        """Tell whether both have the same spaces."""
        return bool(self.observation_space == other.observation_space and self.action_space == other.action_space)
