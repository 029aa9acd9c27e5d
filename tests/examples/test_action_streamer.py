"""The streamer as a user runs it: over shared memory, over tcp, in a browser, until Ctrl-C."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest

from tests.examples.programs import Program
from tests.meta.source import ROOT

LINE = (
    r"^(?P<transport>\w+): (?P<rate>[\d,]+) frames/s, (?P<age>[\d.]+) ms old \(p99 [\d.]+; (?P<clock>[^)]*)\), "
    r"(?P<rate_mb>[\d.]+) MB/s; (?P<frames>\d+) frames, \d+ skipped$"
)


class Robot(Program):
    """The server, with the port that the system chose."""

    def __init__(self, *options: str) -> None:
        super().__init__("action_streamer", "--server", "--port", "0", "--synthetic", *options)
        self.port = self.wait_for(r"^robot: scene \d+ x \d+ at auto://127\.0\.0\.1:(\d+)$")[1]

    def client(self, *options: str) -> Program:
        return Program("action_streamer", "--client", "--port", self.port, *options)


@pytest.fixture
def robot() -> Iterator[Robot]:
    with Robot() as robot:
        yield robot


def last_line(output: str) -> dict[str, str]:
    found = re.search(LINE, output.splitlines()[-1])
    assert found, output
    return found.groupdict()


def test_over_shared_memory() -> None:
    with Robot("--fps", "0") as robot, robot.client("--frames", "200") as client:
        line = last_line(client.finish())
        assert line["transport"] == "shm"
        assert line["clock"] == "one clock"
        assert int(line["frames"]) >= 200
        assert float(line["age"]) < 1000


def test_over_tcp_frames_are_as_short_as_was_asked_for() -> None:
    with Robot("--jpeg", "80", "--resize", "120x160", "--fps", "60") as robot:
        for options in (["--frames", "40"], ["--frames", "40", "--pull"]):
            with robot.client("--transport", "tcp", *options) as client:
                lines = [match.groupdict() for line in client.finish().splitlines() if (match := re.search(LINE, line))]
            assert lines[-1]["transport"] == "tcp"
            rates = [(float(line["rate_mb"]), int(line["rate"].replace(",", ""))) for line in lines]
            mb_per_frame = [megabytes / frames for megabytes, frames in rates if frames > 5]
            assert mb_per_frame
            assert max(mb_per_frame) < 0.02


def test_pull_gets_whole_frames_over_shared_memory(robot: Robot) -> None:
    with robot.client("--pull", "--frames", "20") as client:
        assert int(last_line(client.finish())["frames"]) == 20


def test_the_robot_ends_after_its_frames() -> None:
    with Robot("--frames", "10") as robot:
        assert robot.finish().endswith("robot: 10 frames published")


def test_a_client_says_that_its_robot_went(robot: Robot) -> None:
    with robot.client() as client:
        client.wait_for(LINE)
        robot.interrupt()
        assert robot.finish().endswith("interrupted")
        client.wait_for("^the robot does not answer any more: ")
        client.finish()


def test_ctrl_c_ends_a_client(robot: Robot) -> None:
    with robot.client("--web") as client:
        client.wait_for(LINE)
        client.interrupt()
        assert client.finish().endswith("interrupted")


# In a browser


@pytest.fixture
def page(robot: Robot) -> Iterator[str]:
    """The address of the page, once there is a picture."""
    with robot.client("--web", "--pan", "0") as client:
        address = client.wait_for(r"^the picture is at (http://127\.0\.0\.1:\d+/)$")[1]
        client.wait_for(LINE)
        yield address


def bitmap(page: str) -> np.ndarray[Any, Any]:
    """Fetch the picture, RGB."""
    body = urlopen(f"{page}picture.bmp", timeout=20).read()
    assert body[:2] == b"BM"
    return np.frombuffer(body, np.uint8, offset=54).reshape(480, 640, 3)[..., ::-1]


def test_the_camera_turns_when_the_page_says_so(page: str) -> None:
    before = bitmap(page)
    fence = before[400]  # a row that the ball does not reach in the time of this test, or only in part
    urlopen(Request(f"{page}pan/15", method="POST", headers={"Origin": page.rstrip("/")}), timeout=20)
    moved = int(15 / 360 * 4 * 640)
    for _ in range(100):
        if (bitmap(page)[400, :-moved] == fence[moved:]).all(axis=-1).mean() > 0.8:
            break
    else:
        pytest.fail("the picture did not move")
    assert "frames/s" in urlopen(f"{page}line", timeout=20).read().decode()


def test_other_pages_cannot_turn_the_camera(page: str) -> None:
    for headers in ({}, {"Origin": "http://elsewhere.example"}):
        with pytest.raises(HTTPError, match="403"):
            urlopen(Request(f"{page}pan/15", method="POST", headers=headers), timeout=20)
    with pytest.raises(HTTPError, match="404"):
        urlopen(f"{page}../robot.py", timeout=20)


# Options


def test_a_window_without_opencv_says_what_to_install() -> None:
    code = "import sys, runpy; sys.modules['cv2'] = None; runpy.run_path('examples/action_streamer', run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", code, "--client", "--show"], cwd=ROOT, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 1
    assert done.stderr == "--show needs opencv: pip install opencv-python; --web shows the picture in a browser without it\n"


def test_help() -> None:
    with Program("action_streamer", "--help") as program:
        text = program.finish()
    for option in (
        "server",
        "client",
        "ip",
        "port",
        "show",
        "web",
        "jpeg",
        "resize",
        "fps",
        "size",
        "transport",
        "frames",
        "pull",
    ):
        assert f"--{option}" in text
