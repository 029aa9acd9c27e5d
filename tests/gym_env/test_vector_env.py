"""Many environments in processes of their own: they do what gymnasium's do, and a process that ends is never a hang."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import psutil
import pytest
from gymnasium import spaces
from gymnasium.error import AlreadyPendingCallError, ClosedEnvironmentError, NoAsyncCallError
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from edgeml_ipc.errors import PeerDied, RemoteError, TimeoutError, TransportUnavailable
from edgeml_ipc.gym_env import EnvServer, RemoteEnv, RemoteVectorEnv, crew
from edgeml_ipc.transports import shm
from tests.conftest import eventually
from tests.gym_env.worlds import Trap, Walk, make_nothing, make_walk
from tests.meta.source import ROOT

Factories = list[Callable[[], gymnasium.Env[Any, Any]]]
WALKS: Factories = [partial(Walk, length=length, render_mode="rgb_array", name=f"walk {length}") for length in (3, 4, 5)]
SEED = 7


@contextlib.contextmanager
def stepping(envs: Any, *args: Any, **options: Any) -> Iterator[RemoteVectorEnv]:
    vector = RemoteVectorEnv(envs, *args, **options)
    try:
        yield vector
    finally:
        vector.close()


@pytest.fixture
def traps() -> Iterator[RemoteVectorEnv]:
    with stepping([Trap, Trap, Trap], num_workers=2, timeout=20) as envs:
        envs.reset()
        yield envs


def same(left: Any, right: Any) -> bool:
    """Compare what two vectors returned; gymnasium's own comparison does not know arrays of objects that are None."""
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, tuple):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, np.ndarray) and left.dtype == object:
        return right.dtype == object and all(map(same, left, right))
    return data_equivalence(left, right, exact=True)


# --- as gymnasium's own -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
@pytest.mark.parametrize("num_workers", [1, 2, 3])
def test_it_does_what_gymnasiums_vector_does(mode: str, num_workers: int) -> None:
    near = SyncVectorEnv(WALKS, autoreset_mode=AutoresetMode(mode))
    with stepping(WALKS, num_workers=num_workers, autoreset_mode=mode) as envs, contextlib.closing(near):
        assert envs.metadata["autoreset_mode"] is AutoresetMode(mode)
        assert envs.observation_space == near.observation_space
        assert envs.action_space == near.action_space
        assert envs.single_observation_space == near.single_observation_space
        assert len(set(envs.call("pid"))) == num_workers
        assert same(envs.reset(seed=SEED, options={"offset": 0.5}), near.reset(seed=SEED, options={"offset": 0.5}))
        near.action_space.seed(SEED)
        ends = 0
        for _ in range(40):
            actions = near.action_space.sample()
            there, here = envs.step(actions), near.step(actions)
            assert same(there, here), (there, here)
            assert there[0] in envs.observation_space
            ends += int((there[2] | there[3]).sum())
        assert ends > 20


def test_episodes_that_are_reset_by_the_caller() -> None:
    near = SyncVectorEnv(WALKS, autoreset_mode=AutoresetMode.DISABLED)
    with stepping(WALKS, autoreset_mode=AutoresetMode.DISABLED) as envs, contextlib.closing(near):
        assert same(envs.reset(seed=[3, 4, 5]), near.reset(seed=[3, 4, 5]))
        zeros = np.zeros((3, 3), np.float32)
        for i in range(20):
            there, here = envs.step(zeros), near.step(zeros)
            assert same(there, here)
            mask = there[2] | there[3]
            if mask.any():
                options = {"reset_mask": mask.copy()}
                assert same(envs.reset(seed=i, options=options), near.reset(seed=i, options={"reset_mask": mask}))
                assert list(options) == ["reset_mask"]  # the caller's dict is left alone


def test_a_registered_environment() -> None:
    with stepping("Pendulum-v1", 2, make_kwargs={"g": 3.0}) as envs:
        near = gymnasium.vector.SyncVectorEnv([lambda: gymnasium.make("Pendulum-v1", g=3.0)] * 2)
        assert envs.spec is not None
        assert envs.spec.id == "Pendulum-v1"
        assert same(envs.reset(seed=SEED), near.reset(seed=SEED))
        for _ in range(3):
            push = np.ones((2, 1), np.float32)
            assert same(envs.step(push), near.step(push))
        for vector in (envs, near):
            vector.reset(seed=SEED)
        np.testing.assert_allclose(envs.step(np.ones((2, 1)))[0], near.step(push)[0])  # float64 for a float32 space
        near.close()


def test_calls_and_frames() -> None:
    with stepping(WALKS, num_workers=2) as envs:
        envs.reset()
        assert envs.call("name") == ("walk 3", "walk 4", "walk 5")
        assert envs.call("add", 2, right=3) == (5, 5, 5)
        envs.step(np.zeros((3, 3), np.float32))
        frames = envs.render()
        assert [frame.shape for frame in frames] == [(8, 9, 3)] * 3
        assert {int(frame.max()) for frame in frames} == {1}
        for name in ("step", "no_such_name"):
            with pytest.raises(RemoteError, match=name):
                envs.call(name)


def test_copies_and_views() -> None:
    with stepping(WALKS, copy=False) as viewing, stepping(WALKS) as envs:
        zeros = np.zeros((3, 3), np.float32)
        for vector, is_view in ((viewing, True), (envs, False)):
            first = vector.reset(seed=1)[0]
            before = first["place"].copy()
            second = vector.step(zeros)[0]
            assert np.shares_memory(first["place"], second["place"]) is is_view
            assert np.array_equal(first["place"], before) is not is_view
            assert second["image"].shape == (3, 24, 24, 3)


def test_actions_of_every_fixed_kind() -> None:
    with stepping([Echo, Echo], num_workers=1) as envs:
        envs.reset()
        envs.action_space.seed(SEED)
        for _ in range(5):
            actions = envs.action_space.sample()
            assert same(envs.step(actions)[0], actions)


class Echo(gymnasium.Env[Any, Any]):
    """Observes the action."""

    observation_space = action_space = spaces.Dict(
        box=spaces.Box(-1, 1, (2, 2)),
        scalar=spaces.Box(-1, 1, ()),
        rest=spaces.Tuple([spaces.Discrete(5, start=2), spaces.MultiBinary(3), spaces.MultiDiscrete([3, 4])]),
    )

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.action_space.seed(seed)
        return self.action_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert action in self.action_space, action
        action["box"] += 0  # it is the environment's own
        return action, 0.0, False, False, {}


def test_environments_elsewhere() -> None:
    with EnvServer(make_walk, 0, host="tcp://127.0.0.1") as server:
        server.start(threaded=True)
        near = SyncVectorEnv([make_walk, make_walk])
        with stepping([partial(RemoteEnv, server.address)] * 2) as envs, contextlib.closing(near):
            assert envs.call("transport") == ("tcp", "tcp")
            assert same(envs.reset(seed=SEED), near.reset(seed=SEED))
            for _ in range(10):
                assert same(envs.step(np.ones((2, 3), np.float32)), near.step(np.ones((2, 3), np.float32)))


def test_without_shared_memory_for_messages_they_go_over_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    def unavailable(*_: Any, **__: Any) -> None:
        raise TransportUnavailable("not built")

    monkeypatch.setattr(shm.ShmTransport, "listen", unavailable)
    with stepping([make_walk, make_walk], num_workers=1) as envs:
        assert envs._crew._listener.address.startswith("tcp://127.0.0.1:")
        near = SyncVectorEnv([make_walk, make_walk])
        assert same(envs.reset(seed=SEED), near.reset(seed=SEED))
        assert same(envs.step(np.ones((2, 3), np.float32)), near.step(np.ones((2, 3), np.float32)))


# --- what goes wrong ----------------------------------------------------------------------------------------------------------


def actions(*what: int) -> np.ndarray[Any, Any]:
    return np.array(what, np.int64)


@pytest.mark.parametrize(("how", "code"), [(Trap.KILLED, r"-9 \(SIGKILL\)"), (Trap.EXITS, "3")])
def test_a_worker_that_ends_in_a_step_is_named(traps: RemoteVectorEnv, how: int, code: str) -> None:
    pids = traps.call("pid")
    words = rf"worker 1 \(pid {pids[2]}, environments 1 to 2\) ended with exit code {code}"
    with pytest.raises(PeerDied, match=words):
        traps.step(actions(Trap.WELL, Trap.WELL, how))
    with pytest.raises(PeerDied, match=words):
        traps.reset()
    traps.close()
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_a_worker_that_is_killed_between_steps_is_named(traps: RemoteVectorEnv) -> None:
    pid = traps.call("pid")[0]
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(PeerDied, match=rf"worker 0 \(pid {pid}, environment 0\) ended with exit code -9"):
        traps.step(actions(0, 0, 0))


def test_an_environment_that_raises_and_all_go_on(traps: RemoteVectorEnv) -> None:
    with pytest.raises(RemoteError, match=r"environment of worker 1 .* raised ValueError") as caught:
        traps.step(actions(Trap.WELL, Trap.RAISES, Trap.WELL))
    assert "it was a trap" in caught.value.remote_traceback
    with pytest.raises(RemoteError, match="CodecError"):
        traps.step(actions(Trap.UNSENDABLE, Trap.WELL, Trap.WELL))
    with pytest.raises(RemoteError, match=r"shape \(1,\), its space has \(2,\)"):
        traps.step(actions(Trap.WELL, Trap.WELL, Trap.WRONG_SHAPE))
    assert traps.step(actions(Trap.WELL, Trap.WELL, Trap.WELL))[1].tolist() == [1.0, 1.0, 1.0]


def test_an_environment_that_hangs_is_named_and_killed() -> None:
    with stepping([Trap, Trap], timeout=1.0) as envs:
        envs.reset()
        pids = envs.call("pid")
        with pytest.raises(TimeoutError, match=rf"no answer within 1 s from worker 1 \(pid {pids[1]}, environment 1\)"):
            envs.step(actions(Trap.WELL, Trap.HANGS))
        with pytest.raises(AlreadyPendingCallError):
            envs.reset()
        with pytest.raises(TimeoutError):
            envs.step_wait()
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_environments_that_cannot_be_made() -> None:
    with pytest.raises(RemoteError, match="there is no robot"):
        RemoteVectorEnv([make_walk, make_nothing])
    with pytest.raises(PeerDied, match=r"worker 0 \(.*\) ended with exit code 5"):
        RemoteVectorEnv([partial(os._exit, 5)])
    with pytest.raises(ValueError, match=r"environment 1 has .*; the spaces of all must be equal"):
        RemoteVectorEnv([make_walk, Trap])
    assert not [child for child in psutil.Process().children() if "edgeml_ipc-env" in " ".join(child.cmdline())]


class Talker(Trap):
    observation_space = spaces.Dict(said=spaces.Text(10))  # type: ignore[assignment]


def test_spaces_of_no_fixed_shape_are_refused() -> None:
    with pytest.raises(TypeError, match=r"observation_space\['said'\] is a Text"):
        RemoteVectorEnv([Talker])


def test_arguments_that_make_no_sense(traps: RemoteVectorEnv) -> None:
    for envs, options in (("CartPole-v1", {}), ([make_walk], {"num_envs": 2}), ([make_walk], {"num_workers": 2})):
        with pytest.raises(ValueError, match="num_"):
            RemoteVectorEnv(envs, **options)
    with pytest.raises(TypeError, match="functions"):
        RemoteVectorEnv([])
    with pytest.raises(gymnasium.error.NameNotFound):
        RemoteVectorEnv("NoSuchWorld-v0", 1)
    with pytest.raises(ValueError, match=r"actions must have shape \(3,\), got \(2,\)"):
        traps.step(actions(0, 0))
    with pytest.raises(ValueError, match="seed must be an int or 3 of them, got 2"):
        traps.reset(seed=[1, 2])
    with pytest.raises(ValueError, match="reset_mask"):
        traps.reset(options={"reset_mask": np.zeros(3, bool)})
    with pytest.raises(NoAsyncCallError):
        traps.step_wait()
    assert traps.step(actions(0, 0, 0))[1].sum() == 3


def test_the_other_side_of_its_address_is_closed_to_strangers(traps: RemoteVectorEnv) -> None:
    from edgeml_ipc import transports
    from edgeml_ipc.transports.base import HandshakeRejected

    for hello in (b"", b"x" * 20):
        with pytest.raises(HandshakeRejected):
            transports.connect(traps._crew._listener.address, hello=hello, timeout=20)
    assert traps.step(actions(0, 0, 0))[1].sum() == 3


# --- its end ------------------------------------------------------------------------------------------------------------------


def test_nothing_is_left(traps: RemoteVectorEnv) -> None:
    shared = set(os.listdir("/dev/shm"))
    pids = traps.call("pid")
    traps.close()
    traps.close()
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert set(os.listdir("/dev/shm")) <= shared
    with pytest.raises(ClosedEnvironmentError):
        traps.reset()


def test_one_that_is_forgotten_ends_its_processes() -> None:
    envs = RemoteVectorEnv([make_walk])
    pids = envs.call("pid")
    del envs
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_a_parent_that_is_killed_leaves_nothing() -> None:
    shared = set(os.listdir("/dev/shm"))
    command = [sys.executable, "-m", "tests.gym_env.worlds"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        try:
            assert parent.stdout is not None
            pids = [int(pid) for pid in parent.stdout.readline().split()]
            assert len(pids) == 2
            assert all(psutil.pid_exists(pid) for pid in pids)
        finally:
            parent.kill()
    eventually(lambda: not any(psutil.pid_exists(pid) for pid in pids))
    assert set(os.listdir("/dev/shm")) <= shared


def test_the_limit_on_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "_STOP_SECONDS", 0.5)
    envs = RemoteVectorEnv([Trap])
    envs.reset()
    envs.step_async(actions(Trap.HANGS))
    pid = envs._crew._workers[0].process.pid
    envs.close()
    assert not psutil.pid_exists(pid)
