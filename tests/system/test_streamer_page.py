"""The streamer's page in a browser. Needs chromium."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np

from tests.examples.test_action_streamer import LINE, Robot

SKY, GRASS, BALL = (110, 165, 220), (60, 115, 60), (235, 90, 30)


def is_near(picture: np.ndarray[Any, Any], colour: tuple[int, int, int]) -> int:
    """Return how many pixels are nearly of that colour."""
    return int((np.abs(picture[..., :3].astype(int) - colour).max(axis=-1) < 30).sum())


def test_chromium_shows_the_picture(tmp_path: Path) -> None:
    with Robot() as robot, robot.client("--web", "--pan", "0") as client:
        address = client.wait_for(r"^the picture is at (http://127\.0\.0\.1:\d+/)$")[1]
        client.wait_for(LINE)
        picture = screenshot(address, tmp_path)
    assert picture.shape[:2] == (640, 760)
    assert is_near(picture, BALL) > 3000
    assert is_near(picture, GRASS) > 30_000
    assert is_near(picture, SKY) > 15_000
    assert is_near(picture[:200], GRASS) == is_near(picture[450:530], SKY) == 0


def screenshot(page: str, tmp_path: Path) -> np.ndarray[Any, Any]:
    """Return what chromium shows of a page."""
    browser = shutil.which("chromium")
    assert browser, "this test needs chromium: apt-get install chromium"
    shot = tmp_path / "shot.png"
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=760,640"]
    places = [f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={shot}"]
    command = [browser, *options, *places, "--virtual-time-budget=3000", page]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    picture: np.ndarray[Any, Any] = (matplotlib.image.imread(shot) * 255).astype(np.uint8)
    return picture
