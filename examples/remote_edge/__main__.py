"""A robot at the edge and a policy on a server, with a slow link between them: once with raw frames, once with JPEG.

sudo -E python3 examples/remote_edge                     both, in two network namespaces that are made for them
python3 examples/remote_edge --edge --ip 0.0.0.0 ...     the robot alone
python3 examples/remote_edge --server --ip 10.0.0.5      the policy alone, --ip says where the robot is
"""

import argparse
import signal
import sys
from contextlib import ExitStack

from edge import run_edge
from link import Link
from policy import run_server


def run_both(args):
    """Run both sides in namespaces of their own, once for each way that frames can travel."""
    command = [sys.executable, "-u", sys.argv[0], "--port", str(args.port)]
    with Link(args.mbit, args.round_trip_ms) as link:
        print(f"link: {args.mbit:g} Mbit/s, {args.round_trip_ms:g} ms round trip", flush=True)
        if args.link:
            for side, namespace in link.namespaces.items():
                print(f"link: the {side}'s programs: ip netns exec {namespace} ...", flush=True)
            print(f"link: the edge's address is {link.edge_ip}; Ctrl-C takes it all down", flush=True)
            signal.pause()
        for policy in args.policies:
            edge = [*command, "--edge", "--ip", link.edge_ip, "--insecure", "--policy", policy, "--fps", str(args.fps)]
            server = [*command, "--server", "--ip", link.edge_ip, "--seconds", str(args.seconds)]
            with ExitStack() as running:
                for side, of_side in (("edge", edge), ("server", server)):
                    process = link.start(side, *of_side)
                    running.callback(end, process)
                if process.wait():
                    sys.exit(f"the server ended with exit code {process.returncode}")


def end(process):
    """Have a process end, within some seconds."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(5)
    except BaseException:  # time is out, or Ctrl-C once more
        process.kill()
        process.wait()
        raise


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    side = parser.add_mutually_exclusive_group()
    side.add_argument("--edge", action="store_true", help="be the robot")
    side.add_argument("--server", action="store_true", help="be the policy")
    parser.add_argument(
        "--ip", default="127.0.0.1", help="where the robot is; for the robot: where it listens (default: %(default)s)"
    )
    parser.add_argument("--port", type=int, default=5578, help="of the robot (default: %(default)s)")
    parser.add_argument("--policy", default="jpeg:90", help="how the robot's frames travel (default: %(default)s)")
    parser.add_argument(
        "--fps", type=float, default=30, help="frames per second that the robot publishes (default: %(default)s)"
    )
    parser.add_argument("--insecure", action="store_true", help="listen beyond this machine without encryption")
    parser.add_argument("--seconds", type=float, default=10, help="how long the policy acts (default: %(default)s)")
    both = parser.add_argument_group("both sides here")
    both.add_argument("--link", action="store_true", help="only make the link, for other programs, until Ctrl-C")
    both.add_argument("--policies", nargs="+", default=["raw", "jpeg:90"], help="one run for each (default: raw jpeg:90)")
    both.add_argument("--mbit", type=float, default=20, help="of the link, per second and direction (default: %(default)s)")
    both.add_argument("--round-trip-ms", type=float, default=40, help="of the link (default: %(default)s)")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # leaves every `with`, as Ctrl-C does
    try:
        run_edge(args) if args.edge else run_server(args) if args.server else run_both(args)
    except KeyboardInterrupt:
        print("interrupted", flush=True)


if __name__ == "__main__":
    main()
