"""An actor collects transitions, a learner samples them from a replay buffer.

python3 examples/run_data_store             both in this process
python3 examples/run_data_store --server    the learner; on another terminal or machine:
python3 examples/run_data_store --client    the actor, --ip says where the learner is
"""

import argparse
import threading

from actor import collect
from learner import learn
from point_env import say


def both(args):
    """Learn here, act in a thread."""
    stopped = threading.Event()
    actors = []

    def begin_to_act(address):
        here = argparse.Namespace(**{**vars(args), "ip": address})
        actors.append(threading.Thread(target=collect, args=(here, stopped)))
        actors[0].start()

    args.ip = "inproc://learner"
    try:
        learn(args, begin_to_act)
    finally:
        stopped.set()
        for actor in actors:
            actor.join()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    side = parser.add_mutually_exclusive_group()
    side.add_argument("--server", action="store_true", help="be the learner")
    side.add_argument("--client", action="store_true", help="be the actor")
    parser.add_argument("--ip", default="127.0.0.1", help="where the learner is; for the learner: where it listens")
    parser.add_argument("--port", type=int, default=5588, help="of the learner; 0: any that is free")
    parser.add_argument("--steps", type=int, default=20_000, help="transitions after which it ends (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--capacity", type=int, default=10_000, help="of the replay buffer (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--insecure", action="store_true", help="listen beyond this machine without encryption")
    args = parser.parse_args()
    try:
        if args.server:
            learn(args)
        elif args.client:
            collect(args, threading.Event())
        else:
            both(args)
    except KeyboardInterrupt:
        say("interrupted")


if __name__ == "__main__":
    main()
