"""The other side: it watches what the robot publishes, measures it, shows it, and turns the camera."""

import shutil
import sys
import threading
import time

import numpy as np
from robot import BOOT_ID, CONFIG

from edgeml_ipc import ActionClient, ActionConfig, EdgeMLError

REPORT_SECONDS = 0.5


class Viewer:
    """A client that counts frames, how old they are, and the bytes that they took."""

    def __init__(self, args):
        config = ActionConfig(**{**vars(CONFIG), "port_number": args.port})
        self.client = ActionClient(args.ip, config, wait_for_server=True, timeout_ms=5000, transport=args.transport)
        self.offset, self.clock = self.compare_clocks()
        self.newest, self.frames, self.skipped = None, 0, 0
        self.ages_ms, self.arrived = [], threading.Condition()
        self.line = "waiting for a frame"
        self.bytes_before, self.reported = 0, time.monotonic()

    def compare_clocks(self):
        """Return what to add to the robot's times, and how that was found: on one machine there is one clock."""
        trips = []
        for _ in range(8):
            begin = time.monotonic()
            there, boot_id = self.client.obs(["clock"])["clock"]
            trips.append((time.monotonic() - begin, begin - there))
        if boot_id == BOOT_ID:
            return 0.0, "one clock"
        trip, difference = min(trips)
        return difference + trip / 2, f"clocks compared by round trips, ±{trip / 2 * 1e3:.1f} ms"

    def take(self, observation):
        """Count an observation; called by the client's background thread for each that is published."""
        age = time.monotonic() - observation["time"] - self.offset
        with self.arrived:
            if self.newest is not None:
                self.skipped += max(0, observation["number"] - self.newest["number"] - 1)
            self.newest, self.frames = observation, self.frames + 1
            self.ages_ms.append(age * 1e3)
            self.arrived.notify_all()

    def pull(self):
        """Ask for one picture instead of being sent all of them."""
        self.take(self.client.obs())

    def pan(self, degrees):
        return self.client.act("pan", {"degrees": degrees})["degrees"]

    def report(self):
        """Print a line about the time since the last one."""
        now = time.monotonic()
        with self.arrived:
            ages, self.ages_ms = self.ages_ms, []
            frames, skipped, seconds = self.frames, self.skipped, now - self.reported
        self.reported = now
        stats = self.client.stats()
        received = sum(stats[name].get("bytes_received", 0) for name in ("connection", "background_connection"))
        rate, received, self.bytes_before = len(ages) / seconds, received - self.bytes_before, received
        p50, p99 = np.percentile(ages, [50, 99]) if ages else (0, 0)
        self.line = (
            f"{self.client.transport}: {rate:,.0f} frames/s, {p50:.2f} ms old (p99 {p99:.2f}; {self.clock}), "
            f"{received / seconds / 1e6:.2f} MB/s; {frames} frames, {skipped} skipped"
        )
        if sys.stdout.isatty():
            sys.stdout.write("\r" + self.line[: shutil.get_terminal_size().columns - 1] + "\x1b[K")
        else:
            sys.stdout.write(self.line + "\n")
        sys.stdout.flush()


def watch(args):
    """Watch until there were enough frames, the robot goes, or Ctrl-C."""
    window = None
    if args.show:
        from window import Window

        window = Window()
    viewer = Viewer(args)
    with viewer.client:
        page = None
        if args.web is not None:
            from web import Page

            page = Page(viewer, args.web)
            print(f"the picture is at {page.address}", flush=True)
        try:
            if not args.pull:
                viewer.client.register_obs_callback(viewer.take)
            follow(viewer, window, args)
        except EdgeMLError as error:
            print(f"\nthe robot does not answer any more: {error}")
        finally:
            if page is not None:
                page.close()


def follow(viewer, window, args):
    """Take what comes, and every half second say so and turn the camera."""
    next_report = time.monotonic() + REPORT_SECONDS
    while viewer.frames < args.frames or args.frames == 0:
        if args.pull:
            viewer.pull()
        else:
            with viewer.arrived:  # with a window, awake often enough that its picture moves
                enough = lambda: viewer.frames >= args.frames > 0  # noqa: E731
                viewer.arrived.wait_for(enough, 1 / 60 if window else max(0.0, next_report - time.monotonic()))
        if window is not None and not window.show(viewer):
            break
        if time.monotonic() >= next_report:
            next_report += REPORT_SECONDS
            viewer.report()
            viewer.pan(args.pan * REPORT_SECONDS)
    viewer.report()
