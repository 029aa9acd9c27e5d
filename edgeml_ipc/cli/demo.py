"""`edgeml-ipc demo`: the whole demo, or one of its halves."""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from edgeml_ipc.errors import EdgeMLError

if TYPE_CHECKING:
    from edgeml_ipc.demo.accounting import Audit
    from edgeml_ipc.demo.dashboard import Dashboard
    from edgeml_ipc.demo.settings import Settings

DEFAULT_PORT = 5588
EXIT_UNSATISFIED, EXIT_FAILED, EXIT_INTERRUPTED = 1, 2, 130

_DESCRIPTION = """\
Two actor processes feed a learner process, which learns Pendulum-v1 by SAC; one actor is killed in mid-run and replaced.
Exits 0 if the policy learned (mean evaluation return above -300), nothing that was acknowledged was lost, and nothing was
duplicated. With --learner or --actor only that half runs, in several terminals or on several machines.
"""


def add_parser(commands: Any) -> None:
    """Add the command `demo` to the subparsers of the command line."""
    help_text = "learn Pendulum-v1 in several processes"
    parser: argparse.ArgumentParser = commands.add_parser("demo", help=help_text, description=_DESCRIPTION)
    half = parser.add_mutually_exclusive_group()
    half.add_argument("--learner", action="store_true", help="run only the learner")
    half.add_argument("--actor", action="store_true", help="run only an actor")
    add = parser.add_argument
    add("--transport", choices=["auto", "shm", "tcp"], default="auto", help="how the processes talk (default: auto)")
    add("--steps", type=int, default=15_000, help="environment steps of all actors (default: %(default)s)")
    add("--seed", type=int, default=0, help="of networks, environments and the kill (default: %(default)s)")
    add("--ip", default="127.0.0.1", metavar="HOST", help="where --learner listens or --actor finds it (default: %(default)s)")
    add("--port", type=int, default=DEFAULT_PORT, help="of the learner, for the halves (default: %(default)s)")
    add("--insecure", action="store_true", help="let --learner listen beyond this machine, unencrypted")
    add("--plain", "--no-ui", action="store_true", help="print lines even to a terminal")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the demo as the options say; return the exit code."""
    try:
        from edgeml_ipc.demo.launcher import set_environment
        from edgeml_ipc.demo.settings import Settings

        settings = Settings(steps=options.steps, seed=options.seed, transport=options.transport)
        set_environment()
        if options.actor:
            return _run_actor(settings, options)
        return _run_learner(settings, options) if options.learner else _run_all(settings, options)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except ImportError as error:
        print(f"the demo needs more packages ({error}): pip install 'edgeml_ipc[rl]'", file=sys.stderr)
    except (EdgeMLError, ValueError) as error:
        print(f"the demo failed: {error}", file=sys.stderr)
    return EXIT_FAILED


def _run_all(settings: Settings, options: argparse.Namespace) -> int:
    from edgeml_ipc.demo.launcher import Launcher

    started = time.monotonic()
    with _dashboard(settings, options) as dashboard, Launcher(settings, dashboard) as launcher:
        outcome = launcher.run()
    return _conclude(outcome.mean_return, outcome.transport, outcome.audit, time.monotonic() - started)


def _run_learner(settings: Settings, options: argparse.Namespace) -> int:
    from edgeml_ipc.demo.learner import Learner

    started = time.monotonic()
    with Learner(settings, settings.address(options.ip, options.port), insecure=options.insecure) as learner:
        print(f"the learner listens at {learner.server.address}; now start: edgeml-ipc demo --actor", flush=True)
        with _dashboard(settings, options) as dashboard:
            learner.train(lambda progress: dashboard.show(asdict(progress), options.transport))
        acknowledged = learner.farewells()
        mean_return = learner.evaluate()
        learner.stop()
        audit = learner.audit(acknowledged)
    transport = "+".join(sorted({known.transport for known in acknowledged.values()}))
    return _conclude(mean_return, transport, audit, time.monotonic() - started)


def _run_actor(settings: Settings, options: argparse.Namespace) -> int:
    from edgeml_ipc.demo.accounting import Source
    from edgeml_ipc.demo.actor import run_actor

    source = Source(os.getpid(), time.time_ns())  # nobody hands out numbers here; these differ for each actor ever started
    last = run_actor(settings, source, settings.address(options.ip, options.port), lambda known: None)
    print(f"acknowledged={last.sent} evicted={last.evicted} transport={last.transport}")
    return 0


def _dashboard(settings: Settings, options: argparse.Namespace) -> Dashboard:
    from edgeml_ipc.demo.dashboard import LiveDashboard, PlainDashboard

    if options.plain or not sys.stdout.isatty():
        return PlainDashboard(settings.steps, sys.stdout)
    return LiveDashboard(settings.steps)


def _conclude(mean_return: float, transport: str, audit: Audit, seconds: float) -> int:
    """Print the reasons for a failure, if any, and the summary; return the exit code."""
    from edgeml_ipc.demo.settings import GOAL_RETURN

    reasons = []
    if not mean_return > GOAL_RETURN:
        reasons.append(f"did not learn: the mean evaluation return is {mean_return:.1f}, above {GOAL_RETURN:.0f} is required")
    if audit.lost:
        reasons.append(f"lost {audit.lost} transitions that were acknowledged")
    if audit.duplicated:
        reasons.append(f"stored {audit.duplicated} transitions more than once")
    for reason in reasons:
        print(reason)
    print(
        f"return={mean_return:.1f} transport={transport or 'none'} inserted={audit.inserted} lost={audit.lost} "
        f"duplicated={audit.duplicated} evicted={audit.evicted} seconds={seconds:.1f}",
        flush=True,
    )
    return EXIT_UNSATISFIED if reasons else 0
