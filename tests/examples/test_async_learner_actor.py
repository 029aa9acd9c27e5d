"""Actor and learner, as threads and as processes: every transition arrives, and either may be killed and started again."""

import contextlib
import os
from pathlib import Path

import pytest

from edgeml_ipc import ReplayBuffer
from tests.examples.programs import Program

pytestmark = pytest.mark.timeout(300)  # each program compiles its networks first

PENDULUM = ("--env", "Pendulum-v1", "--updates-per-step", "1")
STEP = r"^step (\d+)  return -[\d.]+ \(mean of (\d+)\)  updates (\d+)  actor_loss "
LISTENS = r"^learner: has (\d+) updates and (\d+) transitions, and waits for actors at auto://127\.0\.0\.1:(\d+)$"
SENT = r"^actor: sent (\d+) transitions of (\d+) whole episodes$"
TOOK = r"^learner: took (\d+) transitions$"
EPISODE = r"^actor: episode \d+ returned -[\d.]+; policy (\d+), (\d+) steps sent$"


def is_png(path: Path) -> bool:
    return path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def start_learner(tmp_path: Path, *options: str, port: str = "0") -> Program:
    return Program(
        "async_learner_actor", "--learner", *PENDULUM, "--port", port, "--plot", str(tmp_path / "curve.png"), *options
    )


def start_actor(port: str, *options: str) -> Program:
    return Program("async_learner_actor", "--actor", *PENDULUM, "--port", port, *options)


@pytest.mark.parametrize("options", [(), ("--use_traj_buffer",)], ids=["replay_buffer", "traj_buffer"])
def test_one_process(options: tuple[str, ...], tmp_path: Path) -> None:
    picture = tmp_path / "curve.png"
    with Program("async_learner_actor", *PENDULUM, "--steps", "2000", "--plot", str(picture), *options) as program:
        steps = program.wait_for(STEP)
        sent = program.wait_for(SENT)
        took = program.wait_for(TOOK)
        program.finish()
        assert int(steps[3]) >= 50
        assert 2000 <= int(took[1]) == int(sent[1]) < 2500
        known = ("learner: ", "actor: ", "step ", "episodes ", "the learning curve is in ")
        assert all(line.startswith(known) for line in program.lines), program.output
    assert is_png(picture)


def test_an_actor_that_is_killed_is_replaced(tmp_path: Path) -> None:
    with start_learner(tmp_path, "--steps", "2500") as learner:
        port = learner.wait_for(LISTENS)[3]
        with start_actor(port) as first:
            first.wait_for(r"connected over shm")
            acknowledged = int(first.wait_for(r"^actor: episode [2-9] .* (\d+) steps sent$")[1])
            first.kill()
        with start_actor(port, "--seed", "1") as second:
            versions = second.wait_for(r"; policy ([1-9]\d*), ")
            sent = int(second.wait_for(SENT)[1])
            second.finish()
        took = int(learner.wait_for(TOOK)[1])
        learner.finish()
    assert int(versions[1]) >= 1
    assert acknowledged + sent <= took < 3000  # the first may have sent some that it did not live to tell
    assert is_png(tmp_path / "curve.png")


def test_a_learner_that_is_killed_goes_on_where_its_rows_end(tmp_path: Path) -> None:
    checkpoint = ("--checkpoint", str(tmp_path / "agent"))
    with start_learner(tmp_path, *checkpoint, "--steps", "100000") as first, contextlib.ExitStack() as stack:
        port = first.wait_for(LISTENS)[3]
        name = f"async-learner-actor-{port}"
        stack.callback(ReplayBuffer.remove, name)  # where this test fails
        with start_actor(port) as actor:
            first.wait_for(STEP)
            first.kill()
            actor.wait_for(r"^actor: waiting for the learner: .*(nothing listens|ended)")
            with start_learner(tmp_path, *checkpoint, "--steps", "2500", port=port) as second:
                updates, rows, _ = map(int, second.wait_for(LISTENS).groups())
                sent = int(actor.wait_for(SENT)[1])
                took = int(second.wait_for(TOOK)[1])
                actor.finish()
                second.finish()
        assert f"edgeml_ipc.{name}" not in os.listdir("/dev/shm")
    assert updates >= 50
    assert rows >= 1000
    assert took == sent >= 2500


def test_ctrl_c_ends_both_sides(tmp_path: Path) -> None:
    with start_learner(tmp_path) as learner, start_actor(learner.wait_for(LISTENS)[3]) as actor:
        learner.wait_for(STEP)
        actor.interrupt()
        assert actor.finish().endswith("\ninterrupted")
        learner.interrupt()
        assert learner.finish().endswith("curve.png\ninterrupted")
    assert is_png(tmp_path / "curve.png")


def test_ctrl_c_ends_both_threads(tmp_path: Path) -> None:
    with Program("async_learner_actor", *PENDULUM, "--plot", str(tmp_path / "curve.png")) as program:
        program.wait_for(STEP)
        program.interrupt()
        output = program.finish()
    assert output.endswith("interrupted")
    assert "Traceback" not in output


def test_an_actor_of_another_environment_is_refused(tmp_path: Path) -> None:
    with start_learner(tmp_path) as learner:
        port = learner.wait_for(LISTENS)[3]
        with Program("async_learner_actor", "--actor", "--port", port) as actor:
            actor.wait_for("ConfigMismatch: .*these fields differ:")
            actor.wait_for("Pendulum-v1.*HalfCheetah-v5|HalfCheetah-v5.*Pendulum-v1")
            assert actor.process.wait(20) == 1


def test_help() -> None:
    with Program("async_learner_actor", "--help") as program:
        output = program.finish()
    for option in (
        "--env",
        "--learner",
        "--actor",
        "--ip",
        "--render",
        "--use_traj_buffer",
        "--rlds_log_dir",
        "HalfCheetah-v5",
    ):
        assert option in output
