"""The robot's side: it publishes what its camera sees, answers `obs`, and pans when it is told to."""

import threading
import time
from pathlib import Path

from scene import camera_for

from edgeml_ipc import ActionConfig, ActionServer

CONFIG = ActionConfig(port_number=0, action_keys=["pan"], observation_keys=["image", "number", "time", "clock"])
BOOT_ID = Path("/proc/sys/kernel/random/boot_id").read_text().strip()  # clocks of one running kernel are one clock


class Robot:
    """A camera that others see and turn.

    Args:
        policies: how the image travels over tcp; see docs/image_policies.md.
    """

    def __init__(self, args, policies):
        self.camera = camera_for(*args.size, args.synthetic, args.grain)
        self.frames, self.moving = 0, threading.RLock()  # the loop looks, and the server's thread looks and pans
        config = ActionConfig(**{**vars(CONFIG), "port_number": args.port})
        self.server = ActionServer(
            config, self.observe, self.act, host=args.ip, transport=args.transport, insecure=args.insecure, policies=policies
        )
        self.newest = self.see()

    def see(self):
        """Take a picture; `time` is from before it was taken, on the clock that `clock` tells."""
        with self.moving:
            taken = time.monotonic()
            return {"image": self.camera.look(), "number": self.frames, "time": taken}

    def observe(self, keys):
        """Answer `obs`: those who pull get a picture of their own."""
        with self.moving:
            known = self.see() if "image" in keys else self.newest
            image = known["image"].copy()  # the loop goes on to the next frame while this one is sent
        known = {**known, "image": image, "clock": [time.monotonic(), BOOT_ID]}
        return {key: known[key] for key in keys}

    def act(self, key, payload):
        """Answer `act`: the one action is to pan by some degrees."""
        with self.moving:
            self.camera.pan(float(payload["degrees"]))
            return {"degrees": self.camera.degrees}

    def stream(self, frames_per_second, frames):
        """Publish pictures, `frames` of them, or without end; at that rate, or as fast as it goes."""
        pause, due, reported = threading.Event(), time.monotonic(), 0.0
        while self.frames < frames or frames == 0:
            self.newest = self.see()
            self.server.publish_obs(self.newest)
            self.frames += 1
            now = time.monotonic()
            if now - reported >= 1:
                reported = now
                print(f"robot: {self.frames} frames published, {len(self.server.stats()['lag'])} clients watch", flush=True)
            if frames_per_second:
                due = max(due + 1 / frames_per_second, now - 0.1)  # after a break it does not hurry to make up for it
                pause.wait(max(0.0, due - now))


def serve(args):
    """Be the robot until the frames are out, or Ctrl-C."""
    parts = [f"resize:{args.resize[0]}x{args.resize[1]}"] if args.resize else []
    parts += [f"jpeg:{args.jpeg}"] if args.jpeg else []
    robot = Robot(args, {"image": "+".join(parts)} if parts else None)
    with robot.server as server:
        server.start(threaded=True)
        print(f"robot: {type(robot.camera).__name__.lower()} {args.size[1]} x {args.size[0]} at {server.address}", flush=True)
        robot.stream(args.fps, args.frames)
        print(f"robot: {robot.frames} frames published", flush=True)
