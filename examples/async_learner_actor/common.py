"""What actor and learner agree on."""

from edgeml_ipc import TrainerConfig

STORE = "replay"
EPISODE = "episode"  # the request by which an actor tells what an episode returned


def trainer_config(args):
    """Return the config that both compare: an actor of another environment is refused."""
    return TrainerConfig(port_number=args.port, request_types=[EPISODE], version=args.env)


def say(line):
    """Print a line in one piece, since two threads do."""
    print(f"{line}\n", end="", flush=True)
