"""The edge: a robot that publishes what its camera sees, and turns the camera as it is told."""

import threading
import time

import numpy as np

from edgeml_ipc import ActionConfig, ActionServer

HEIGHT, WIDTH, RADIUS = 480, 640, 30
CONFIG = ActionConfig(port_number=0, action_keys=["pan"], observation_keys=["image", "number", "time"])
BALL = (235, 90, 30)


class Camera:
    """A ball that flies over a meadow. It has the grain of a sensor, so that its JPEG is about as long as a real picture's."""

    def __init__(self, rng):
        y = np.linspace(0, 1, HEIGHT)[:, None, None]
        meadow = np.array([90, 140, 200]) * (1 - y) + np.array([50, 110, 50]) * y + rng.normal(0, 6, (HEIGHT, 2 * WIDTH, 3))
        self.meadow = meadow.clip(0, 255).astype(np.uint8)
        x, y = np.ogrid[-RADIUS : RADIUS + 1, -RADIUS : RADIUS + 1]
        self.disc = x * x + y * y <= RADIUS * RADIUS
        self.frame = np.empty((HEIGHT, WIDTH, 3), np.uint8)
        self.ball, self.pan = WIDTH / 2, 0.0  # pixels: where the ball is in the world, and where the camera looks

    def look(self):
        """Return the next frame, which is valid until the next call."""
        self.ball += 3
        left = int(self.pan) % WIDTH
        self.frame[:] = self.meadow[:, left : left + WIDTH]
        at = int(np.clip(self.ball - self.pan, RADIUS, WIDTH - RADIUS - 1)) - RADIUS
        self.frame[200 : 200 + 2 * RADIUS + 1, at : at + 2 * RADIUS + 1][self.disc] = BALL
        return self.frame


def run_edge(args):
    """Publish `args.fps` frames per second until Ctrl-C, or a SIGTERM."""
    camera, moving = Camera(np.random.default_rng(0)), threading.Lock()  # the server's thread pans while this one looks

    def pan(_key, payload):
        with moving:
            camera.pan += float(payload["pixels"])
        return {"reaction_ms": (time.monotonic() - payload["time"]) * 1e3}  # since the frame was taken that it is based on

    config = ActionConfig(**{**vars(CONFIG), "port_number": args.port})
    policies = None if args.policy == "raw" else {"image": args.policy}
    with ActionServer(config, lambda keys: {}, pan, host=args.ip, insecure=args.insecure, policies=policies) as server:
        server.start(threaded=True)
        print(f"edge: publishes {args.fps:g} frames/s, {args.policy}, at {server.address}", flush=True)
        pause, due = threading.Event(), time.monotonic()
        for number in range(1 << 62):
            with moving:
                frame = {"image": camera.look(), "number": number, "time": time.monotonic()}
                server.publish_obs(frame)
            due = max(due + 1 / args.fps, time.monotonic() - 0.1)
            pause.wait(max(0.0, due - time.monotonic()))
