"""SAC in two processes: an actor steps an environment, a learner takes gradient steps.

python3 examples/async_learner_actor              both in this process, as two threads
python3 examples/async_learner_actor --learner    the learner; on another terminal or machine:
python3 examples/async_learner_actor --actor      the actor, or one of several; --ip says where the learner is
"""

import _thread
import argparse
import sys
import threading

from actor import act
from common import say
from learner import learn

from edgeml_ipc import EdgeMLError


def both(args):
    """Learn here, act in a thread."""
    stopped, threads = threading.Event(), []

    def run(address):
        ended_well = False
        try:
            act(argparse.Namespace(**{**vars(args), "ip": address}), stopped)
            ended_well = True
        except EdgeMLError as error:
            ended_well = stopped.is_set()  # then the learner is gone before us, and that is all
            if not ended_well:
                say(f"actor: {error}")
        finally:
            if not ended_well:
                _thread.interrupt_main()

    def begin_to_act(address):
        threads.append(threading.Thread(target=run, args=(address,)))
        threads[0].start()

    args.ip = "inproc://learner"
    try:
        learn(args, begin_to_act)
    finally:
        stopped.set()
        for thread in threads:
            thread.join()


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    side = parser.add_mutually_exclusive_group()
    add = side.add_argument
    add("--learner", action="store_true", help="be the learner")
    add("--actor", action="store_true", help="be an actor")
    add = parser.add_argument
    add(
        "--env",
        default="HalfCheetah-v5",
        help="of gymnasium's (default: %(default)s); the quick one: Pendulum-v1",
    )
    add("--ip", default="127.0.0.1", help="where the learner is; for the learner: where it listens (default: %(default)s)")
    add("--port", type=int, default=5588, help="of the learner; 0: any that is free (default: %(default)s)")
    add("--insecure", action="store_true", help="listen beyond this machine without encryption")
    add("--seed", type=int, default=0, help="of networks, sampling, actions and environment (default: %(default)s)")
    add("--render", action="store_true", help="show the actor's environment in a window")
    add = parser.add_argument_group("the learner's").add_argument
    add("--steps", type=int, default=100_000, help="environment steps, of all actors, until the end (default: %(default)s)")
    add("--random-steps", type=int, default=1000, help="steps before the first gradient step (default: %(default)s)")
    add("--updates-per-step", type=float, default=0.5, help="gradient steps per environment step (default: %(default)s)")
    add("--capacity", type=int, default=1_000_000, help="of the buffer, in transitions (default: %(default)s)")
    add("--use_traj_buffer", "--use-traj-buffer", action="store_true", help="a TrajectoryBuffer instead of a ReplayBuffer")
    add("--rlds_log_dir", "--rlds-log-dir", metavar="DIR", help="record all episodes there as an RLDS data set (extra [rlds])")
    add("--checkpoint", metavar="FILE", help="save the networks there; where it exists, go on from it, also after a kill")
    add("--plot", metavar="FILE", default="learning_curve.png", help="the learning curve; '': none (default: %(default)s)")
    add("--tensorboard", metavar="DIR", help="write TensorBoard's files there, too")
    return parser.parse_args()


def main():
    args = parse()
    try:
        if args.learner:
            learn(args)
        elif args.actor:
            act(args, threading.Event())
        else:
            both(args)
    except KeyboardInterrupt:
        say("interrupted")
    except (EdgeMLError, ImportError) as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
