"""What the camera sees: a webcam, or a landscape that is computed, with a ball that flies about."""

import os

import numpy as np


class Scene:
    """A landscape all around the camera, four pictures wide, drawn once; a frame is a cut-out of it with a ball on top.

    Args:
        height, width: of a frame, in pixels.
        grain: brightness levels by which the pixels of a sensor differ; it is what makes the JPEG of a real picture long.
    """

    def __init__(self, height, width, grain):
        self.degrees, self.number = 0.0, 0
        self.frame = np.empty((height, width, 3), np.uint8)
        self.around = _landscape(height, 4 * width, grain)
        self.radius = max(3, height // 12)
        y, x = np.mgrid[-self.radius : self.radius + 1, -self.radius : self.radius + 1]
        self.disc = x**2 + y**2 <= self.radius**2

    def look(self):
        """Return the next frame, RGB; it is valid until the next call."""
        height, width, _ = self.frame.shape
        left = int(self.degrees % 360 / 360 * 4 * width)
        self.frame[:] = self.around[:, left : left + width]
        size = 2 * self.radius + 1
        top, at = (_bounce(self.number * speed, room) for speed, room in ((3, height - size), (5, width - size)))
        self.frame[top : top + size, at : at + size][self.disc] = (235, 90, 30)
        self.number += 1
        return self.frame

    def pan(self, degrees):
        """Turn the camera to the right."""
        self.degrees = (self.degrees + degrees) % 360


class Webcam:
    """The first camera of this machine; to pan it moves the picture."""

    def __init__(self, height, width):
        import cv2  # opencv

        self.degrees = 0.0
        self.size, self.cv2, self.camera = (width, height), cv2, cv2.VideoCapture(0)

    def look(self):
        good, frame = self.camera.read()
        if not good:
            raise SystemExit("the camera gives no picture")
        frame = self.cv2.cvtColor(self.cv2.resize(frame, self.size), self.cv2.COLOR_BGR2RGB)
        return np.roll(frame, -int(self.degrees / 90 * self.size[0]), axis=1)

    def pan(self, degrees):
        self.degrees = (self.degrees + degrees) % 360


def camera_for(height, width, synthetic, grain):
    """Return the webcam if there is one and opencv is installed, else the landscape."""
    if not synthetic and os.path.exists("/dev/video0"):
        try:
            return Webcam(height, width)
        except ImportError:
            print("there is a camera, but no opencv: pip install opencv-python-headless", flush=True)
    return Scene(height, width, grain)


def _bounce(distance, room):
    """Return the place between 0 and `room` of what went that far, to and fro."""
    return abs((distance + room) % max(1, 2 * room) - room)


def _landscape(height, width, grain):
    """Sky, sun, hills and a fence, whose left end fits its right end, and a quarter of it again."""
    x = np.linspace(0, 2 * np.pi, width, endpoint=False)
    y = np.linspace(0, 1, height)[:, None]
    picture = np.empty((height, width, 3))
    picture[:] = np.array([70, 130, 200]) + (np.array([215, 230, 245]) - np.array([70, 130, 200])) * y[..., None] * 1.4
    sun = np.hypot((y - 0.2) * height, (x - 0.6) / (2 * np.pi) * width) < height / 10
    picture[sun] = (255, 225, 120)
    for level, waves, colour in (
        (0.55, (3, 7), (120, 145, 165)),
        (0.68, (5, 2), (90, 140, 100)),
        (0.82, (2, 9), (60, 115, 60)),
    ):
        hill = level + 0.05 * np.sin(waves[0] * x) + 0.03 * np.sin(waves[1] * x + level)
        picture[y > hill] = colour
    posts = (np.arange(width) % (width // 48) < max(1, width // 400)) & (y > 0.8) & (y < 0.92)
    rails = (np.abs(y - 0.83) < 0.006) | (np.abs(y - 0.88) < 0.006)
    picture[posts | (rails & (x >= 0))] = (95, 70, 50)
    picture += np.random.default_rng(0).normal(0, grain, picture.shape)
    picture = np.clip(picture, 0, 255).astype(np.uint8)
    return np.ascontiguousarray(np.concatenate([picture, picture[:, : width // 4]], axis=1))
