"""Two network namespaces joined by a slow cable. For root."""

import os
import subprocess
import sys

from cable import Cable


class Link:
    """Makes them when `with` is entered, and takes them down when it is left, for whatever reason.

    Attributes:
        edge_ip: where the edge's end is.
        namespaces: side -> name.
    """

    edge_ip = "10.77.0.1"

    def __init__(self, mbit, round_trip_ms):
        self.mbit, self.round_trip_ms, self.cable = mbit, round_trip_ms, None
        pid = os.getpid()  # in all the names, so that several may run at one time
        self.namespaces = {side: f"edgeml-{side}-{pid}" for side in ("edge", "server")}
        self.ports = [f"edge{pid}", f"serv{pid}"]

    def __enter__(self):
        if os.geteuid() != 0:
            sys.exit("to make network namespaces takes root: sudo -E python3 examples/remote_edge")
        try:
            self.cable = Cable(self.ports, self.mbit, self.round_trip_ms)
            for namespace, port, ip in zip(self.namespaces.values(), self.ports, (self.edge_ip, "10.77.0.2"), strict=True):
                run("ip", "netns", "add", namespace)
                run("ip", "link", "set", port, "netns", namespace)
                run("ip", "-n", namespace, "address", "add", f"{ip}/24", "dev", port)
                run("ip", "-n", namespace, "link", "set", port, "up")
            self.cable.plug_in()
        except BaseException:
            self.__exit__()
            raise
        return self

    def start(self, side, *command):
        """Start a command on one side."""
        return subprocess.Popen(["ip", "netns", "exec", self.namespaces[side], *command])

    def __exit__(self, *exc):
        if self.cable is not None:
            self.cable.close()
        for namespace in self.namespaces.values():
            if os.path.exists(f"/run/netns/{namespace}"):
                run("ip", "netns", "delete", namespace)


def run(*command):
    """Run a command, and end the program if it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        sys.exit(f"{command[0]} is not installed: apt-get install iproute2")
    if done.returncode:
        sys.exit(f"{' '.join(command)}: {done.stderr.strip()}")
