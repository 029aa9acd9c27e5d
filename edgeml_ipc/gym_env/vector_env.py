"""Many environments in processes of their own, stepped together."""

from __future__ import annotations

import functools
import os
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Final

import gymnasium
import numpy as np
from gymnasium.error import AlreadyPendingCallError, ClosedEnvironmentError, NoAsyncCallError
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from edgeml_ipc import codec
from edgeml_ipc.data.segment import Segment
from edgeml_ipc.errors import TimeoutError
from edgeml_ipc.gym_env.batch import Batch, copied, write_batch
from edgeml_ipc.gym_env.crew import Crew
from edgeml_ipc.gym_env.description import Description
from edgeml_ipc.gym_env.worker import CALL, MEMORY, RESET, STEP
from edgeml_ipc.transports.base import Buffer

_START_SECONDS: Final = 120.0  # for all workers to import, and to make their environments

Factory = Callable[[], gymnasium.Env[Any, Any]]


class RemoteVectorEnv(VectorEnv[Any, Any, Any]):
    """Step many environments at once, each in a process of its own, or several in each of fewer processes.

        if __name__ == "__main__":  # the processes are spawned, and import this file
            envs = RemoteVectorEnv("CartPole-v1", num_envs=4)
            observations, infos = envs.reset(seed=0)
            observations, rewards, terminations, truncations, infos = envs.step(envs.action_space.sample())
            envs.close()

    The processes write observations, rewards and ends of episodes into memory that all share; infos travel as messages, where
    there are any. Environments on other machines: let each function make a `RemoteEnv`. For one thread at a time.

    Args:
        envs: id of a registered environment, or functions that make one each, as `AsyncVectorEnv` takes.
        num_envs: with an id: how many.
        num_workers: processes; None means one for each environment. Each steps its environments one after the other, which
            is faster where a step takes less time than waking a process.
        autoreset_mode: gymnasium's: an environment whose episode ended is reset by the next step (its action is
            ignored), in the same step (the last observation is in `infos["final_obs"]`), or not at all.
        copy: False gives observations as views on the shared memory, which the next step or reset overwrites.
        timeout: seconds for a step, a reset or a call of all environments.
        make_kwargs: with an id: for `gymnasium.make`.
    Raises:
        RemoteError: an environment could not be made. PeerDied: a worker ended. TypeError: a space of no fixed shape.
        ValueError: environments of different spaces.
    """

    def __init__(
        self,
        envs: str | Sequence[Factory],
        num_envs: int | None = None,
        *,
        num_workers: int | None = None,
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
        copy: bool = True,
        timeout: float = 60.0,
        make_kwargs: dict[str, Any] | None = None,
    ) -> None:
        factories = _factories(envs, num_envs, make_kwargs or {})
        mode = AutoresetMode(autoreset_mode)
        self.num_envs = len(factories)
        self.spec = gymnasium.spec(envs) if isinstance(envs, str) else None
        self._copy = copy
        self._timeout = timeout
        self._doing: str | None = None
        self._crew = Crew(factories, num_workers or self.num_envs, mode.value)
        self._finalizer = weakref.finalize(self, self._crew.close)
        try:
            described = self._crew.collect(_START_SECONDS)
            self._adopt([Description(tree) for of_worker in described for tree in of_worker], mode)
        except BaseException:
            self.close()
            raise

    def _adopt(self, descriptions: list[Description], mode: AutoresetMode) -> None:
        """Take over what the environments are, and share memory with the workers."""
        first = descriptions[0]
        for i, other in enumerate(descriptions):
            if not first.has_spaces_of(other):
                raise ValueError(
                    f"environment {i} has {other.observation_space} and {other.action_space}, environment 0 has "
                    f"{first.observation_space} and {first.action_space}; the spaces of all must be equal"
                )
        self.metadata = {**first.metadata, "autoreset_mode": mode}
        self.render_mode = first.render_mode
        self.single_observation_space = first.observation_space
        self.single_action_space = first.action_space
        self.observation_space = batch_space(first.observation_space, self.num_envs)
        self.action_space = batch_space(first.action_space, self.num_envs)
        spaces = (first.observation_space, first.action_space, self.num_envs)
        self._segment = Segment.create(None, Batch(None, *spaces).nbytes)
        self._segment.finish()
        self._batch = Batch(self._segment.memory, *spaces)
        self._crew.tell_all([MEMORY, *codec.encode((os.getpid(), self._segment.fileno(), self.num_envs))])
        self._crew.collect(self._timeout)

    # --- reset and step -----------------------------------------------------------------------------------------------------

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin an episode in every environment; return the observations `(num_envs, *shape)`, and the infos.

        Args:
            seed: of each environment; an int means seed, seed + 1, ...
            options: for each environment. `reset_mask` among them, an array (num_envs,) bool, says which ones to reset.
        Raises:
            RemoteError: an environment raised. PeerDied: a worker ended. TimeoutError: not in time; only `close` is left.
        """
        self._check("reset")
        seeds = _seeds(seed, self.num_envs)
        options, mask = _without_mask(options, self.num_envs)

        def request(rows: slice) -> list[Buffer]:
            return [RESET, *codec.encode((seeds[rows], options, None if mask is None else mask[rows]))]

        self._doing = "reset"
        self._crew.tell_each(request)
        infos = self._infos(self._finish())
        return self._observations(), infos

    def step_async(self, actions: Any) -> None:
        """Let the environments take a step, of which `step_wait` returns the outcome.

        Args:
            actions: `(num_envs, *shape)`, or a dict or tuple of such arrays.
        Raises:
            ValueError: actions of another shape. PeerDied: a worker ended before.
        """
        self._check("step")
        write_batch(self._batch.actions, actions)
        self._doing = "step"
        self._crew.tell_all([STEP])

    def step_wait(self) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Return observations, rewards (num_envs,) float64, terminations and truncations (num_envs,) bool, infos.

        Raises:
            RemoteError: an environment raised; those of other workers took the step. PeerDied: a worker ended; all further
                calls raise it, too. TimeoutError: not in time; this may be called again.
        """
        if self._doing != "step":
            raise NoAsyncCallError("step_wait was called without step_async before it", "step")
        infos = self._infos(self._finish())
        batch = self._batch
        return self._observations(), batch.rewards.copy(), batch.terminated.copy(), batch.truncated.copy(), infos

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Take one step in every environment; see `step_async` and `step_wait`."""
        self.step_async(actions)
        return self.step_wait()

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Return an attribute of each environment, or what its method of that name returns.

        Args:
            args, kwargs: trees that the codec carries, for a method.
        """
        self._check(f"call({name!r})")
        request = [CALL, *codec.encode((name, list(args), kwargs))]
        self._doing = "call"
        self._crew.tell_all(request)
        return tuple(value for of_worker in self._finish() for value in of_worker)

    def render(self) -> tuple[Any, ...]:
        """Return what each environment renders."""
        return self.call("render")

    # --- the parts of these -------------------------------------------------------------------------------------------------

    def _check(self, what: str) -> None:
        if self.closed:
            raise ClosedEnvironmentError(f"{what} of a RemoteVectorEnv that was closed")
        self._crew.check()
        if self._doing is not None:
            raise AlreadyPendingCallError(f"{what} while {self._doing} has not come to an end", self._doing)

    def _finish(self) -> list[Any]:
        """Wait for all workers; return what they answered."""
        try:
            answers = self._crew.collect(self._timeout)
        except BaseException as error:
            if not isinstance(error, TimeoutError | KeyboardInterrupt):  # after these they are at it still
                self._doing = None
            raise
        self._doing = None
        return answers

    def _observations(self) -> Any:
        return copied(self._batch.observations) if self._copy else self._batch.observations

    def _infos(self, answers: list[Any]) -> dict[str, Any]:
        infos: dict[str, Any] = {}
        for of_worker in answers:
            for row, info in of_worker or ():
                infos = self._add_info(infos, info, row)
        return infos

    def close_extras(self, **_: Any) -> None:
        """End the processes; called by `close`."""
        self._finalizer()


def _factories(envs: str | Sequence[Factory], num_envs: int | None, make_kwargs: dict[str, Any]) -> list[Factory]:
    """Return one function for each environment."""
    if isinstance(envs, str):
        if num_envs is None or num_envs < 1:
            raise ValueError(f"num_envs must be at least 1 with the id {envs!r}, got {num_envs}")
        return [functools.partial(gymnasium.make, envs, **make_kwargs)] * num_envs
    factories = list(envs)
    if not factories or not all(map(callable, factories)):
        raise TypeError(f"envs must be an id or functions that make environments, got {envs!r}")
    if num_envs not in (None, len(factories)):
        raise ValueError(f"num_envs is {num_envs}, and envs has {len(factories)} functions")
    return factories


def _seeds(seed: int | Sequence[int | None] | None, num_envs: int) -> list[int | None]:
    """Return a seed for each environment."""
    if seed is None:
        return [None] * num_envs
    if isinstance(seed, int | np.integer):
        return [int(seed) + i for i in range(num_envs)]
    if len(seed) != num_envs:
        raise ValueError(f"seed must be an int or {num_envs} of them, got {len(seed)}")
    return list(seed)


def _without_mask(options: dict[str, Any] | None, num_envs: int) -> tuple[dict[str, Any] | None, Any]:
    """Return the options for the environments, and the mask of those that are to be reset, if there is one."""
    if options is None or "reset_mask" not in options:
        return options, None
    mask = options["reset_mask"]
    if not isinstance(mask, np.ndarray) or mask.shape != (num_envs,) or mask.dtype != np.bool_ or not mask.any():
        raise ValueError(f"options['reset_mask'] must be a bool array ({num_envs},) with a True in it, got {mask!r}")
    return {key: value for key, value in options.items() if key != "reset_mask"}, mask
