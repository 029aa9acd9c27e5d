"""A process that steps some environments of a `RemoteVectorEnv`.

Messages, both ways: one byte, then what the codec made of a value, if there is one. The worker says READY or FAILED once its
environments are made; from then on each message of the parent's has one answer: DONE or FAILED.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any, Final

from gymnasium import Env

from edgeml_ipc import codec, transports
from edgeml_ipc.data.segment import Segment
from edgeml_ipc.errors import ConnectionClosed, PeerDied
from edgeml_ipc.gym_env.batch import Batch, row_reader, row_writer
from edgeml_ipc.gym_env.description import describe_env
from edgeml_ipc.gym_env.spaces import build, describe
from edgeml_ipc.protocol import pack_failure
from edgeml_ipc.transports.base import Buffer

MEMORY, RESET, STEP, CALL = b"m", b"r", b"s", b"c"  # from the parent
READY, DONE, FAILED = b"R", b"D", b"F"  # from the worker
SEND_SECONDS: Final = 60.0
_NOT_BY_CALL: Final = frozenset({"reset", "step", "close"})

Infos = list[tuple[int, dict[str, Any]]]  # of the rows that have one


def work(
    address: str, hello: bytes, connect_seconds: float, factories: list[Callable[[], Env[Any, Any]]], first: int, mode: str
) -> None:
    """Make environments and step them until the parent closes the connection, or ends.

    Args:
        hello: by which the parent knows this worker.
        factories: of the environments, whose rows begin at `first`.
        mode: gymnasium's autoreset mode: "NextStep", "SameStep" or "Disabled".
    """
    with transports.connect(address, hello=hello, timeout=connect_seconds) as link:
        worker = _Worker(first, mode)
        link.send(worker.answer(worker.make, factories, READY), SEND_SECONDS)
        try:
            while True:
                parts = link.recv(None)
                link.send(worker.answer(worker.handlers[bytes(parts[0])], parts[1:]), SEND_SECONDS)
        except (PeerDied, ConnectionClosed):
            pass  # the end
        finally:
            worker.close()


class _Worker:
    """The environments of one process, and what can be asked of them."""

    def __init__(self, first: int, mode: str) -> None:
        self._first = first
        self._mode = mode
        self._envs: list[Env[Any, Any]] = []
        self._to_reset: list[bool] = []
        self.handlers: dict[bytes, Callable[[list[Buffer]], Any]] = {
            MEMORY: self._attach,
            RESET: self._reset,
            STEP: self._step,
            CALL: self._call,
        }

    def answer(self, handler: Callable[[Any], Any], argument: Any, done: bytes = DONE) -> list[Buffer]:
        """Return the answer to a message: what the handler returns, or the error that it raises."""
        try:
            result = handler(argument)
            return [done, *codec.encode(result)] if result else [done]
        except BaseException as error:  # noqa: BLE001 - a user's environment: what it raises is carried to the parent
            return [FAILED, pack_failure(error, within_callback=True)]

    def make(self, factories: list[Callable[[], Env[Any, Any]]]) -> list[dict[str, Any]]:
        """Make the environments; return their descriptions."""
        for factory in factories:
            self._envs.append(factory())
        self._to_reset = [False] * len(self._envs)
        return [describe_env(env) for env in self._envs]

    def close(self) -> None:
        """Close the environments."""
        for env in self._envs:
            env.close()

    def _attach(self, parts: list[Buffer]) -> None:
        """Map the batch's memory, which the parent holds by a descriptor."""
        pid, descriptor, num_envs = codec.decode(parts)
        fd = os.open(f"/proc/{pid}/fd/{descriptor}", os.O_RDWR | os.O_CLOEXEC)
        try:
            segment = Segment.attach(fd)
        finally:
            os.close(fd)
        env = self._envs[0]
        # As the parent sees the spaces: laid out from the same schema.
        observation_space, action_space = build(describe(env.observation_space)), build(describe(env.action_space))
        self._batch = batch = Batch(segment.memory, observation_space, action_space, num_envs)
        self._observe = row_writer(observation_space, batch.observations)
        self._action = row_reader(action_space, batch.actions)

    def _reset(self, parts: list[Buffer]) -> Infos:
        seeds, options, mask = codec.decode(parts, copy=True)
        infos: Infos = []
        for i, env in enumerate(self._envs):
            if mask is None or mask[i]:
                observation, info = env.reset(seed=seeds[i], options=options)
                self._to_reset[i] = False
                self._observe(self._first + i, observation)
                self._add(infos, i, info)
        return infos

    def _step(self, _: list[Buffer]) -> Infos:
        batch = self._batch
        infos: Infos = []
        for i, env in enumerate(self._envs):
            row = self._first + i
            if self._to_reset[i]:
                observation, info = env.reset()
                reward, terminated, truncated = 0.0, False, False
                self._to_reset[i] = False
            else:
                observation, reward, terminated, truncated, info = env.step(self._action(row))  # type: ignore[assignment]
                if terminated or truncated:
                    if self._mode == "SameStep":
                        last = {"final_obs": observation, "final_info": info}
                        observation, info = env.reset()
                        info = {**last, **info}
                    else:
                        self._to_reset[i] = self._mode == "NextStep"
            self._observe(row, observation)
            batch.rewards[row], batch.terminated[row], batch.truncated[row] = reward, terminated, truncated
            self._add(infos, i, info)
        return infos

    def _add(self, infos: Infos, i: int, info: dict[str, Any]) -> None:
        if info:
            infos.append((self._first + i, info))

    def _call(self, parts: list[Buffer]) -> list[Any]:
        """Return an attribute of each environment, or what its method of that name returns."""
        name, args, kwargs = codec.decode(parts, copy=True)
        if name in _NOT_BY_CALL:
            raise ValueError(f"{name!r} cannot be called on the environments; call it on the vector")
        return [value(*args, **kwargs) if callable(value) else value for value in self._values(name)]

    def _values(self, name: str) -> Iterable[Any]:
        return (env.get_wrapper_attr(name) for env in self._envs)
