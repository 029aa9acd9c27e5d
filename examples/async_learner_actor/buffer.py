"""The learner's replay buffer: of transitions or of trajectories, and a record of what comes into it."""

import re

from edgeml_ipc import ReplayBuffer, make_default_trajectory_buffer

WAIT_SECONDS = 1.0  # of a sample for transitions, before the learner looks whether the run is over
BATCH_ROWS = 128  # of a gradient step


def make_buffer(args, env, port, rows_per_call, stack):
    """Make the buffer; with a checkpoint it has a name, and what a killed learner left is found again.

    Actors and learner wait for each other, so that `args.updates_per_step` is kept: a sample is worth a gradient step's rows.
    """
    make = make_default_trajectory_buffer if args.use_traj_buffer else ReplayBuffer
    buffer = make(
        env.observation_space,
        env.action_space,
        args.capacity,
        name=f"async-learner-actor-{port}" if args.checkpoint else None,
        reattach=bool(args.checkpoint),
        seed=args.seed,
        samples_per_insert=args.updates_per_step * BATCH_ROWS,
        min_rows=args.random_steps,
        slack_samples=2 * rows_per_call,
        flow_timeout=WAIT_SECONDS,
    )
    stack.enter_context(buffer)
    if args.checkpoint:
        stack.callback(buffer.unlink)
    return buffer


def sampler(buffer):
    """Return what draws so many rows of a buffer of either kind."""
    if isinstance(buffer, ReplayBuffer):
        return buffer.sample
    return lambda rows: buffer.sample("training", rows)[0]


def record(args, env, buffer, stack):
    """Record every episode that comes into the buffer as an RLDS data set, which tensorflow-datasets reads."""
    from edgeml_ipc.datasets import RLDSLogger

    name = re.sub(r"\W", "_", args.env)
    log = stack.enter_context(RLDSLogger(env.observation_space, env.action_space, name, args.rlds_log_dir))
    log.attach(buffer)
