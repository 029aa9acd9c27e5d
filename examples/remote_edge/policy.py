"""The server: a policy that keeps the ball in the middle of the robot's picture."""

import threading
import time

import numpy as np
from edge import BALL, CONFIG, WIDTH

from edgeml_ipc import ActionClient, ActionConfig

GAIN = 0.3


def choose(image):
    """Return by how many pixels the camera should turn: a part of the error only, since what is seen is old. The policy."""
    columns = np.nonzero(np.abs(image[230].astype(int) - BALL).sum(axis=-1) < 120)[0]  # a row through the ball's middle
    return float(GAIN * (columns.mean() - WIDTH / 2)) if len(columns) else 0.0


def run_server(args):
    """Act on the newest frame for `args.seconds`, then say how it went."""
    config = ActionConfig(**{**vars(CONFIG), "port_number": args.port})
    with ActionClient(args.ip, config, wait_for_server=True, timeout_ms=20_000, transport="tcp") as edge:
        newest, ages_ms, reactions_ms, off = [], [], [], []
        arrived = threading.Event()

        def take(observation):  # on the client's background thread, for each frame that comes
            ages_ms.append((time.monotonic() - observation["time"]) * 1e3)
            newest[:] = [observation]
            arrived.set()

        edge.register_obs_callback(take)
        if not arrived.wait(30):
            raise SystemExit("no frame came within 30 s")
        begin, before = time.monotonic(), edge.stats()["background_connection"]["bytes_received"]
        ages_ms.clear()
        while time.monotonic() < begin + args.seconds:
            arrived.wait(5)
            arrived.clear()
            observation = newest[0]
            pixels = choose(observation["image"])
            off.append(abs(pixels) / GAIN)
            reactions_ms.append(edge.act("pan", {"pixels": pixels, "time": observation["time"]})["reaction_ms"])
        seconds = time.monotonic() - begin
        received = edge.stats()["background_connection"]["bytes_received"] - before
        p50, p99 = np.percentile(ages_ms or [0], [50, 99])
        print(
            f"server: {edge.transport}: {len(ages_ms) / seconds:.1f} frames/s, {p50:.0f} ms old (p99 {p99:.0f}), "
            f"{received / seconds / 1e6:.2f} MB/s; {len(reactions_ms) / seconds:.1f} actions/s, "
            f"{np.median(reactions_ms):.0f} ms after the frame; the ball is {np.mean(off):.0f} pixels off",
            flush=True,
        )
