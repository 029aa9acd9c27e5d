"""The command line: `python -m edgeml_ipc`, or `edgeml-ipc`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from edgeml_ipc.cli import demo


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        arguments: of the command line, without the program's name; None means those of this process.
    """
    parser = argparse.ArgumentParser(prog="edgeml-ipc", description="Distributed reinforcement learning between processes.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    demo.add_parser(commands)
    options = parser.parse_args(arguments)
    code: int = options.run(options)
    return code
