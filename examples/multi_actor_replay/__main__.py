"""Actors in processes of their own write into one replay buffer while a learner samples it.

python3 examples/multi_actor_replay            two actors
python3 examples/multi_actor_replay --kill     one of them is killed on the way, and replaced
"""

import argparse
import os
import sys

import numpy as np
from actor import act
from gymnasium.spaces import Box
from learner import learn

from edgeml_ipc import ReplayBuffer
from edgeml_ipc.launch import spawn


class Crew:
    """The actors' processes."""

    def __init__(self, args, buffer):
        self.args, self.buffer = args, buffer
        self.to_kill, self.started = args.kill, 0
        self.actors = [self.start() for _ in range(args.actors)]

    def start(self):
        self.started += 1
        return spawn(act, self.started, self.buffer.name, self.args.rows, name=f"actor-{self.started}")

    def look_after(self, inserted):
        """Kill an actor and replace it if that is asked for; end the program if one ended by itself."""
        if self.to_kill:
            self.to_kill = False
            self.actors[0].kill()
            self.actors[0].join()
            self.actors[0] = self.start()
            print(f"killed actor-1 by SIGKILL at {inserted} rows; actor-{self.started} takes its place", flush=True)
        failed = [f"{actor.name} ended with exit code {actor.exitcode}" for actor in self.actors if actor.exitcode]
        if failed:
            sys.exit("; ".join(failed))

    def stop(self):
        for actor in self.actors:
            actor.kill()
            actor.join()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--actors", type=int, default=2, help="processes that write (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=300_000, help="transitions after which it ends (default: %(default)s)")
    parser.add_argument("--capacity", type=int, default=100_000, help="of the buffer, in transitions (default: %(default)s)")
    parser.add_argument("--kill", action="store_true", help="kill an actor after the first line, and start another")
    parser.add_argument("--seed", type=int, default=0, help="of the sampling (default: %(default)s)")
    args = parser.parse_args()
    states, actions = Box(-np.inf, np.inf, (4,)), Box(-1, 1, (2,))
    name = f"multi-actor-replay-{os.getpid()}"
    with ReplayBuffer(states, actions, args.capacity, name=name, seed=args.seed) as buffer:
        try:
            crew = Crew(args, buffer)
            try:
                learn(buffer, args.rows, crew.look_after)
            finally:
                crew.stop()
        except KeyboardInterrupt:
            print("interrupted")
        finally:
            buffer.unlink()  # else the memory stays, for the next learner to attach to


if __name__ == "__main__":
    main()
