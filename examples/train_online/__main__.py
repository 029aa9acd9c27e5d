"""SAC learns in one process: an environment, a replay buffer, and gradient steps in between.

python3 examples/train_online                          Pendulum, a minute or two
python3 examples/train_online --env HalfCheetah-v5     a MuJoCo environment (the extra [mujoco])
"""

import argparse
import sys

from training import train


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--env", default="Pendulum-v1", help="an environment of gymnasium's with continuous actions (default: %(default)s)")
    add("--steps", type=int, default=15_000, help="environment steps (default: %(default)s)")
    add("--random-steps", type=int, default=1000, help="steps before the first gradient step (default: %(default)s)")
    add("--updates-per-step", type=float, default=1.0, help="gradient steps per environment step (default: %(default)s)")
    add("--seed", type=int, default=0, help="of networks, sampling, actions and environment (default: %(default)s)")
    add("--plot", metavar="FILE", default="learning_curve.png", help="the learning curve; '': none (default: %(default)s)")
    add("--tensorboard", metavar="DIR", help="write TensorBoard's files there, too")
    add("--render", action="store_true", help="show the environment in a window")
    args = parser.parse_args()
    try:
        train(args)
    except KeyboardInterrupt:
        print("interrupted")
    except (ImportError, ValueError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
