"""One environment served to others: what gymnasium's checker says, what happens once, and who has which environment."""

from __future__ import annotations

import contextlib
import logging
import socket
import subprocess
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env, data_equivalence

from edgeml_ipc.errors import (
    AuthenticationError,
    CodecError,
    ConfigMismatch,
    ConnectionClosed,
    ConnectionRefused,
    IncompatiblePeer,
    PeerDied,
    RemoteError,
    TimeoutError,
)
from edgeml_ipc.gym_env import EnvServer, RemoteEnv, seats
from edgeml_ipc.inference import InferenceServer
from edgeml_ipc.testing._workers import Child
from tests.conftest import eventually
from tests.gym_env.worlds import Trap, Walk, make_nothing, make_walk, serve_traps, serve_walks
from tests.meta.source import ROOT

pytestmark = pytest.mark.usefixtures("no_threads_left")


@pytest.fixture
def served(process_address: str) -> Iterator[str]:
    """The address of walks that another process serves."""
    with Child(serve_walks, process_address) as server:
        yield server.hear()


@contextlib.contextmanager
def serving(what: Any, address: str = "inproc://envs", **options: Any) -> Iterator[EnvServer]:
    with EnvServer(what, 0, host=address, **options) as server:
        server.start(threaded=True)
        yield server


# --- an environment like any other ------------------------------------------------------------------------------------------


def checked(env: RemoteEnv) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*Not able to test alternative render modes.*")  # without a spec
        check_env(env)


def test_gymnasiums_checker_passes(served: str) -> None:
    with RemoteEnv(served) as env:
        checked(env)


def test_gymnasiums_checker_passes_for_an_environment_that_is_shared(process_address: str) -> None:
    with serving(make_walk(), process_address) as server, RemoteEnv(server.address) as env:
        checked(env)


def test_it_does_what_the_environment_itself_does(served: str) -> None:
    with RemoteEnv(served) as remote, contextlib.closing(make_walk()) as near:
        assert remote.observation_space == near.observation_space
        assert remote.action_space == near.action_space
        near.action_space.seed(5)
        for seed in (3, None):
            assert data_equivalence(remote.reset(seed=seed), near.reset(seed=seed), exact=True)
            assert np.array_equal(remote.render(), near.render())
            for _ in range(7):
                action = near.action_space.sample()
                there, here = remote.step(action), near.step(action)
                assert data_equivalence(there, here, exact=True)
                assert [type(value) for value in there] == [type(value) for value in here]
                assert np.array_equal(remote.render(), near.render())


def test_options_reach_the_environment(served: str) -> None:
    with RemoteEnv(served) as env:
        there = env.reset(seed=1)[0]["place"]
        shifted = env.reset(seed=1, options={"offset": np.array([1.0, 2.0, 3.0])})[0]["place"]
        np.testing.assert_allclose(shifted - there, [1, 2, 3])


def test_observations_belong_to_the_caller_unless_views_are_asked_for(served: str) -> None:
    with RemoteEnv(served) as env, RemoteEnv(served, copy=False) as viewing:
        assert env.reset()[0]["place"].flags.writeable
        assert not viewing.reset()[0]["place"].flags.writeable


class Meddler(Walk):
    """Changes the action and the options that it was given."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        assert options is not None
        options["seen"][0] = 1
        return super().reset(seed=seed, options={})

    def step(self, action: Any) -> Any:
        action *= 0.5
        return super().step(action)


def test_an_environment_may_change_what_it_is_given() -> None:
    with serving(Meddler) as server, RemoteEnv(server.address) as env:
        env.reset(options={"seen": np.zeros(5000)})
        env.step(np.ones(3, np.float32))


class Bright(Walk):
    observation_space = gymnasium.spaces.Dict(image=gymnasium.spaces.Box(0, 255, (64, 64, 3), np.uint8))

    def observe(self) -> dict[str, Any]:
        return {"image": np.full((64, 64, 3), 200, np.uint8)}


def test_images_may_be_compressed_on_the_way() -> None:
    with serving(Bright, "tcp://127.0.0.1", policies={"image": "zstd"}) as server, RemoteEnv(server.address) as env:
        assert env.reset()[0]["image"].shape == (64, 64, 3)
        sent = server.stats()["policies"]["image"]
        assert sent["bytes_before"] == 64 * 64 * 3
        assert sent["bytes_after"] < 1000


def test_metadata_render_mode_and_spec(served: str) -> None:
    with RemoteEnv(served) as env:
        assert env.render_mode == "rgb_array"
        assert env.metadata == {"render_modes": ["rgb_array"], "render_fps": 20}  # `home` cannot travel
        assert env.remote_spec is None
        assert env.spec is not None
        assert env.spec.id == "Remote-v0"
        with RemoteEnv(served, render_mode="rgb_array"):
            pass
        with pytest.raises(ValueError, match=r"'human'.* was made with 'rgb_array'"):
            RemoteEnv(served, render_mode="human")


def test_what_a_registered_environments_spec_says() -> None:
    with serving(lambda: gymnasium.make("CartPole-v1")) as server, RemoteEnv(server.address) as env:
        said = {"id": "CartPole-v1", "reward_threshold": 475.0, "nondeterministic": False, "max_episode_steps": 500}
        assert env.remote_spec == said
        assert env.spec is not None
        with contextlib.closing(env.spec.make()) as another:
            another.reset(seed=1)
            assert isinstance(another.unwrapped, RemoteEnv)
            assert another.spec is not None
            assert another.spec.max_episode_steps == 500
            assert server.stats()["sessions"] == 2


# --- executed once ----------------------------------------------------------------------------------------------------------


class Cutter(Walk):
    """Cuts the links to all clients in the middle of each step."""

    server: EnvServer

    def step(self, action: Any) -> Any:
        for session in list(self.server._server._sessions.values()):
            session.connection.close()
        return super().step(action)


@pytest.mark.parametrize("one_for_all", [True, False])
def test_a_step_whose_link_is_cut_is_taken_once(address: str, one_for_all: bool) -> None:
    env = Cutter(length=100)
    with serving(env if one_for_all else lambda: env, address) as server:
        env.server = server
        with RemoteEnv(server.address) as remote:
            remote.reset(seed=0)
            steps = [remote.step(np.zeros(3, np.float32))[0]["phase"][0] for _ in range(10)]
            assert steps == list(range(1, 11))
            assert env.all_steps == 10
            assert remote.stats()["retries"] == 10
            assert server.stats()["retries_answered"] == 10


def test_a_server_that_is_killed_in_a_step_and_its_successor(process_address: str) -> None:
    with Child(serve_traps, process_address) as first:
        address = first.hear()
        with RemoteEnv(address) as env:
            env.reset()
            env.step(np.int64(Trap.WELL))
            with pytest.raises(PeerDied) as caught:
                env.step(np.int64(Trap.KILLED))
            assert caught.value.outcome_unknown
            assert first.exit_code == -9
            with pytest.raises((ConnectionRefused, PeerDied)):
                env.reset()
            with Child(serve_traps, address) as second:
                assert second.hear() == address
                with pytest.raises(RemoteError, match="call reset") as unready:
                    env.step(np.int64(Trap.WELL))
                assert unready.value.remote_type == "ResetNeeded"
                env.reset()
                env.step(np.int64(Trap.WELL))


def test_a_successor_with_another_environment_is_noticed(process_address: str) -> None:
    with Child(serve_traps, process_address) as first:
        address = first.hear()
        env = RemoteEnv(address)
        env.reset()
        first.kill()
    with Child(serve_walks, address) as second, env:
        second.hear()
        with pytest.raises(ConfigMismatch) as caught:
            env.reset()
        assert set(caught.value.differences) == {"observation_space", "action_space"}


# --- errors -----------------------------------------------------------------------------------------------------------------


def test_errors_of_the_environment_reach_the_caller(address: str) -> None:
    with serving(Trap, address) as server, RemoteEnv(server.address) as env:
        with pytest.raises(RemoteError, match="call reset") as unready:
            env.step(np.int64(Trap.WELL))
        assert unready.value.remote_type == "ResetNeeded"
        env.reset()
        with pytest.raises(RemoteError, match="it was a trap") as caught:
            env.step(np.int64(Trap.RAISES))
        assert caught.value.remote_type == "ValueError"
        assert "worlds.py" in caught.value.remote_traceback
        with pytest.raises(RemoteError, match=r"cannot encode payload.*'odd'"):
            env.step(np.int64(Trap.UNSENDABLE))
        with pytest.raises(CodecError):
            env.step(object())
        assert env.step(np.int64(Trap.WELL))[1] == 1.0


def test_an_environment_that_cannot_be_made() -> None:
    with serving(make_nothing) as server, pytest.raises(RemoteError, match="there is no robot"):
        RemoteEnv(server.address)
    with serving(lambda: 3) as server, pytest.raises(RemoteError, match=r"must make a gymnasium\.Env, and made a int"):
        RemoteEnv(server.address)


def test_a_step_that_takes_too_long(process_address: str) -> None:
    with Child(serve_traps, process_address) as server, RemoteEnv(server.hear(), timeout=0.3) as env:
        env.reset()
        with pytest.raises(TimeoutError, match=r"within 0\.3 s"):
            env.step(np.int64(Trap.HANGS))


def test_what_cannot_be_served() -> None:
    class OddSpace(gymnasium.Space[Any]):
        pass

    env = Walk()
    env.action_space = OddSpace()  # type: ignore[assignment]
    with pytest.raises(CodecError, match=r"action_space is a .*OddSpace"):
        EnvServer(env, 0)
    with pytest.raises(TypeError, match="got a str"):
        EnvServer("CartPole-v1", 0)  # type: ignore[arg-type]
    with pytest.raises(AuthenticationError):
        EnvServer(Walk, 0, host="0.0.0.0")


def test_another_service_is_refused() -> None:
    with InferenceServer(0, host="inproc://no-env") as server:
        server.start(threaded=True)
        with pytest.raises(IncompatiblePeer, match="gym_env"):
            RemoteEnv("inproc://no-env")


def test_a_closed_one_is_closed(served: str) -> None:
    env = RemoteEnv(served)
    env.reset()
    env.close()
    env.close()
    with pytest.raises(ConnectionClosed):
        env.reset()


# --- who has which environment ----------------------------------------------------------------------------------------------


def test_a_factory_gives_each_client_its_own_and_closes_it() -> None:
    made: list[Walk] = []

    def factory() -> Walk:
        made.append(Walk(length=100))
        return made[-1]

    with serving(factory, max_clients=2) as server:
        with RemoteEnv(server.address) as one, RemoteEnv(server.address) as two:
            one.reset()
            two.reset()
            for _ in range(3):
                one.step(np.zeros(3, np.float32))
            two.step(np.zeros(3, np.float32))
            assert [env.all_steps for env in made] == [3, 1]
            with pytest.raises(RemoteError, match="2 clients have an environment here, and max_clients=2"):
                RemoteEnv(server.address)
            two.close()
            assert [env.closed for env in made] == [False, True]
            with RemoteEnv(server.address):
                assert len(made) == 3
        assert [env.closed for env in made] == [True, True, True]
        left_open = RemoteEnv(server.address)
    assert [env.closed for env in made] == [True] * 4  # by the server's end
    left_open.close()


def test_what_a_lost_client_had_is_closed_after_a_while(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seats, "AWAY_SECONDS", 0.2)
    made: list[Walk] = []

    def factory() -> Walk:
        made.append(Walk())
        return made[-1]

    with serving(factory, address) as server:
        lost, kept = RemoteEnv(server.address), RemoteEnv(server.address)
        kept.reset()
        lost._client.close()
        eventually(lambda: made[0].closed)
        assert not made[1].closed
        kept.step(np.zeros(3, np.float32))
        kept.close()
        lost.close()


def test_a_failure_to_close_is_logged_and_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    class Sticky(Walk):
        def close(self) -> None:
            raise OSError("stuck")

    with serving(Sticky) as server:
        with caplog.at_level(logging.ERROR, "edgeml_ipc"), RemoteEnv(server.address) as env:
            env.reset()
        assert "failed to close" in caplog.text
        with RemoteEnv(server.address) as env:
            env.reset()


def test_one_environment_belongs_to_one_client_at_a_time(address: str) -> None:
    robot = Walk(length=100)
    action = np.zeros(3, np.float32)
    with serving(robot, address) as server:
        first, second = RemoteEnv(server.address), RemoteEnv(server.address)
        assert first.spec is None
        first.reset()
        with pytest.raises(RemoteError, match="another client uses this environment"):
            second.reset()
        with pytest.raises(RemoteError, match="call reset"):
            second.step(action)
        first.step(action)
        first.close()
        second.reset()
        second._client.close()  # as if its process had been killed
        third = RemoteEnv(server.address)
        eventually(lambda: server.stats()["sessions"] == 1)
        third.reset()
        third.step(action)
        third.close()
        second.close()
    assert not robot.closed  # it is ours
    assert robot.all_steps == 2


def test_a_client_whose_link_broke_lost_its_turn_to_the_next() -> None:
    robot = Walk(length=100)
    with serving(robot) as server, RemoteEnv(server.address) as first, RemoteEnv(server.address) as second:
        first.reset()
        for session in list(server._server._sessions.values()):
            session.connection.close()
        eventually(lambda: server.stats()["sessions"] == 0)
        second.reset()
        with pytest.raises(RemoteError, match="did not reset the environment last"):
            first.step(np.zeros(3, np.float32))


# --- beside the point -------------------------------------------------------------------------------------------------------


def test_without_gymnasium_the_extra_is_named() -> None:
    code = "import sys; sys.modules['gymnasium'] = None\nimport edgeml_ipc\nedgeml_ipc.RemoteEnv"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "needs gymnasium: pip install 'edgeml_ipc[gym]'" in done.stderr


def test_the_port_is_part_of_the_address_or_given() -> None:
    with EnvServer(Walk, 0) as server:
        server.start(threaded=True)
        with RemoteEnv("localhost", server.port) as env:
            assert env.transport in ("shm", "tcp")
        with socket.create_server(("127.0.0.1", 0)) as nobody:
            port = nobody.getsockname()[1]
        with pytest.raises(ConnectionRefused):
            RemoteEnv("localhost", port)
