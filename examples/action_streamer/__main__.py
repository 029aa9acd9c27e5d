"""A robot's camera, seen and turned from elsewhere.

python3 examples/action_streamer --server           the robot; on another terminal or machine:
python3 examples/action_streamer --client --web     watch it in a browser; --ip says where the robot is
"""

import argparse

from robot import serve
from viewer import watch


def size(text):
    """Read HEIGHTxWIDTH."""
    height, width = map(int, text.split("x"))
    if min(height, width) < 16:
        raise ValueError
    return height, width


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    side = parser.add_mutually_exclusive_group(required=True)
    side.add_argument("--server", action="store_true", help="be the robot")
    side.add_argument("--client", action="store_true", help="watch it")
    parser.add_argument(
        "--ip", default="127.0.0.1", help="where the robot is; for the robot: where it listens (default: %(default)s)"
    )
    parser.add_argument("--port", type=int, default=5577, help="of the robot; 0: any that is free (default: %(default)s)")
    parser.add_argument("--transport", choices=["auto", "tcp", "shm"], help="by default shared memory on one machine, else tcp")
    parser.add_argument("--frames", type=int, default=0, help="end after so many; 0: go on (default: %(default)s)")
    robot = parser.add_argument_group("the robot")
    robot.add_argument("--fps", type=float, default=30, help="frames per second; 0: as fast as it goes (default: %(default)s)")
    robot.add_argument(
        "--size", type=size, default=(480, 640), metavar="HxW", help="height and width of a frame (default: 480x640)"
    )
    robot.add_argument("--synthetic", action="store_true", help="the computed landscape, also where there is a webcam")
    robot.add_argument("--grain", type=float, default=0, help="of the landscape, in levels (default: %(default)s)")
    robot.add_argument(
        "--jpeg", type=int, metavar="Q", help="over tcp send JPEG of that quality, 1 to 100; needs the extra [video]"
    )
    robot.add_argument("--resize", type=size, metavar="HxW", help="over tcp send smaller pictures")
    robot.add_argument("--insecure", action="store_true", help="listen beyond this machine without encryption")
    viewer = parser.add_argument_group("the client")
    viewer.add_argument(
        "--web", type=int, nargs="?", const=0, metavar="PORT", help="show the picture on a page of this machine"
    )
    viewer.add_argument("--show", action="store_true", help="show the picture in a window; needs opencv")
    viewer.add_argument("--pull", action="store_true", help="ask for each frame by obs() instead of being sent them")
    viewer.add_argument(
        "--pan", type=float, default=10, help="degrees by which to turn the camera each second (default: %(default)s)"
    )
    args = parser.parse_args()
    try:
        serve(args) if args.server else watch(args)
    except KeyboardInterrupt:
        print("\ninterrupted")


if __name__ == "__main__":
    main()
