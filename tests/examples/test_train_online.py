"""SAC in one process learns Pendulum, draws its curve, and says what is missing."""

import re
from pathlib import Path

import pytest
from PIL import Image

from tests.examples.programs import Program

pytestmark = pytest.mark.timeout(300)  # the networks are compiled first

STEP = re.compile(r"step (\d+)  return (-?[\d.]+) \(mean of (\d+)\)  updates (\d+)  .*critic_loss [\d.e+-]+ .* [\d.]+ s")
END = r"^episodes (\d+): the last 10 returned (-[\d.]+) on average$"


def test_it_learns_pendulum(tmp_path: Path) -> None:
    picture, boards = tmp_path / "curve.png", tmp_path / "boards"
    options = ["--steps", "5500", "--plot", str(picture), "--tensorboard", str(boards)]
    with Program("train_online", *options) as program:
        lines = program.finish().splitlines()
        steps = [match for match in map(STEP.fullmatch, lines) if match]
        assert int(steps[-1][1]) == 5500
        assert int(steps[-1][4]) > 4450  # one update for each step after the random ones
        end = re.search(END, lines[-2])
        assert end is not None, lines
        assert int(end[1]) == 27
        assert float(end[2]) > -600, lines  # at random it is about -1200
        assert lines[-1] == f"the learning curve is in {picture}"
        assert all(line.startswith("step ") for line in lines[:-2]), lines  # no warning, nothing else
    with Image.open(picture) as image:
        assert image.format == "PNG"
        assert len(image.convert("RGB").getcolors(2**20)) > 10  # more than a blank sheet
    assert any(path.stat().st_size > 1000 for path in boards.iterdir())


def test_halfcheetah_runs_and_prints_nothing_but_its_lines(tmp_path: Path) -> None:
    options = ["--env", "HalfCheetah-v5", "--steps", "1100", "--updates-per-step", "0.5", "--plot", str(tmp_path / "curve.svg")]
    with Program("train_online", *options) as program:
        lines = program.finish().splitlines()
        assert int(STEP.fullmatch(lines[-3])[4]) >= 50, lines  # type: ignore[index]
        assert all(line.startswith(("step ", "episodes 1: ", "the learning curve is in ")) for line in lines), lines
    assert (tmp_path / "curve.svg").read_text(encoding="utf-8").startswith("<?xml")


def test_ctrl_c_ends_it_and_draws_what_there_is(tmp_path: Path) -> None:
    picture = tmp_path / "curve.png"
    with Program("train_online", "--steps", "1000000", "--plot", str(picture)) as program:
        program.wait_for(r"^step \d+  return -[\d.]+ ")
        program.interrupt()
        assert program.finish().endswith(f"the learning curve is in {picture}\ninterrupted")
    assert picture.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_an_environment_with_other_actions_is_refused() -> None:
    with Program("train_online", "--env", "CartPole-v1", "--plot", "") as program:
        program.wait_for(r"the actions of CartPole-v1 must be a Box of shape \(n,\), got Discrete\(2\)")
        assert program.process.wait(20) == 1
