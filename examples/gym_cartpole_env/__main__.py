"""CartPole in one process, the program that plays it in another.

python3 examples/gym_cartpole_env --server    the environment; on another terminal or machine:
python3 examples/gym_cartpole_env --client    the player, --ip says where the environment is
python3 examples/gym_cartpole_env             the same player with an environment of its own, to compare
"""

import argparse

from client import play, play_remotely
from server import make_env, serve


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    side = parser.add_mutually_exclusive_group()
    side.add_argument("--server", action="store_true", help="serve the environment")
    side.add_argument("--client", action="store_true", help="play it")
    parser.add_argument("--ip", default="127.0.0.1", help="where the server is; for the server: where it listens")
    parser.add_argument("--port", type=int, default=5557, help="of the server; 0: any that is free (default: %(default)s)")
    parser.add_argument("--episodes", type=int, default=10, help="to play (default: %(default)s)")
    parser.add_argument("--render", action="store_true", help="show what the player sees in a window (needs pygame)")
    parser.add_argument("--seed", type=int, default=None, help="of the first episode")
    parser.add_argument("--insecure", action="store_true", help="listen beyond this machine without encryption")
    args = parser.parse_args()
    try:
        if args.server:
            serve(args)
        elif args.client:
            play_remotely(args)
        else:
            play(make_env(), args)
    except KeyboardInterrupt:
        print("interrupted")


if __name__ == "__main__":
    main()
