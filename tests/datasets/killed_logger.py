"""Loggers that are killed before each of their operations on files: python killed_logger.py FOLDER

For each number of operations, from 1 until a logger comes to its end, FOLDER/<number> has: `killed`, the data set as the
logger left it, `recorded`, a byte for each episode that it had recorded, and `again`, the same after another logger added one.
"""

import os
import shutil
import signal
import sys

import numpy as np
from gymnasium.spaces import Box

from edgeml_ipc import RLDSLogger

EPISODES = 7
_OPERATIONS = {"open", "os.rename", "os.link", "os.remove", "os.mkdir"}
_left = 0


def count(event, _arguments):
    global _left
    if event in _OPERATIONS and _left:
        _left -= 1
        if not _left:
            os.kill(os.getpid(), signal.SIGKILL)


def episode(number):
    seen = np.full(2, number)
    step = {"observations": seen, "next_observations": seen, "actions": seen, "rewards": 0.0, "masks": 1.0}
    return [step, {**step, "dones": True}]


def record(folder, numbers, recorded=None):
    box = Box(-np.inf, np.inf, (2,))
    with RLDSLogger(box, box, "walks", folder, max_episodes_per_file=3) as log:
        for number in numbers:
            log.batch_record(episode(number))
            if recorded is not None:
                os.write(recorded, b".")


def in_child(work):
    child = os.fork()
    if not child:
        work()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main(folder):
    sys.addaudithook(count)
    for operations in range(1, 10_000):
        here = os.path.join(folder, str(operations))
        os.mkdir(here)
        recorded = os.open(os.path.join(here, "recorded"), os.O_CREAT | os.O_WRONLY)

        def killed(operations=operations, here=here, recorded=recorded):
            global _left
            _left = operations
            record(os.path.join(here, "killed"), range(EPISODES), recorded)

        status = in_child(killed)
        os.close(recorded)
        if os.path.exists(os.path.join(here, "killed")):
            shutil.copytree(os.path.join(here, "killed"), os.path.join(here, "again"))
        assert in_child(lambda here=here: record(os.path.join(here, "again"), [99])) == 0
        if status == 0:
            print(operations)
            return
        assert status == -signal.SIGKILL, status


if __name__ == "__main__":
    main(sys.argv[1])
