"""Importing the library starts nothing, sets nothing up and pulls in nothing heavy. Each case is a fresh interpreter."""

import json
import subprocess
import sys

import pytest

from tests.meta.source import ROOT

HEAVY = ["jax", "flax", "optax", "gymnasium", "zmq", "rich", "tensorflow", "torch", "ml_dtypes"]
PROBE = """
import json, logging, multiprocessing, os, signal, sys, threading
handlers = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL, signal.SIGCHLD: signal.SIG_DFL}
for number, handler in handlers.items():
    signal.signal(number, handler)  # an ignored signal is inherited from whoever runs the tests
STATEMENT
import multiprocess
print(json.dumps({
    "threads": len(os.listdir("/proc/self/task")),
    "heavy": [m for m in HEAVY if m in sys.modules],
    "root_handlers": len(logging.root.handlers),
    "root_level": logging.root.level,
    "our_handlers": [repr(h) for n in logging.root.manager.loggerDict if n.split(".")[0] == "edgeml_ipc"
                     for h in logging.getLogger(n).handlers if not isinstance(h, logging.NullHandler)],
    "start_methods": [multiprocessing.get_start_method(allow_none=True), multiprocess.get_start_method(allow_none=True)],
    "signals": all(signal.getsignal(s) == h for s, h in handlers.items()),
    "children": open(f"/proc/self/task/{os.getpid()}/children").read().split(),
    "python_threads": threading.active_count(),
}))
"""
STATEMENTS = [
    "import edgeml_ipc",
    "from edgeml_ipc import *",
    "import edgeml_ipc.action, edgeml_ipc.inference, edgeml_ipc.trainer, edgeml_ipc.data, edgeml_ipc.cli, edgeml_ipc.testing",
    "import edgeml_ipc.compat, edgeml_ipc.compat.data.jaxrl_data_store, edgeml_ipc.compat.internal.utils",
    "import edgeml_ipc.compat.zmq_wrapper.pair, edgeml_ipc.compat.zmq_wrapper.pipeline, edgeml_ipc.compat.zmq_wrapper.req_rep",
]

# What nobody needs who only names the services and the buffers: it is imported by who calls what needs it.
SELDOM_USED = [
    *("asyncio", "concurrent.futures.process", "concurrent.futures.thread", "dill", "email", "hashlib", "http"),
    *("importlib.metadata", "logging.handlers", "lz4", "multiprocess", "multiprocessing", "selectors", "simplejpeg", "socket"),
    *("sqlite3", "ssl", "subprocess", "tempfile", "urllib.request", "xml", "zipfile", "zstandard"),
    *("edgeml_ipc.cli", "edgeml_ipc.compat", "edgeml_ipc.connect_buffer", "edgeml_ipc.data.loading", "edgeml_ipc.data.saving"),
    *("edgeml_ipc.datasets", "edgeml_ipc.gym_env", "edgeml_ipc.launch", "edgeml_ipc.remote_buffer", "edgeml_ipc.security"),
    *("edgeml_ipc.transports.inproc", "edgeml_ipc.transports.shm", "edgeml_ipc.transports.zeromq"),
]
NAMED = """
import json, sys, numpy
numpys = set(sys.modules)
from edgeml_ipc import (
    ActionClient, ActionServer, InferenceClient, InferenceServer, QueuedDataStore, ReplayBuffer, TrainerClient, TrainerServer,
    TrajectoryBuffer,
)
print(json.dumps(sorted(set(sys.modules) - numpys)))
"""


def run_fresh(code: str) -> str:
    """Run `code` in a new interpreter and return what it printed."""
    # numpy's BLAS starts its own threads when numpy is imported; one is enough here, so that any more are ours.
    environment = {"PATH": "/usr/bin:/bin", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize("statement", STATEMENTS)
def test_import_has_no_effects(statement: str) -> None:
    code = PROBE.replace("STATEMENT", statement).replace("HEAVY", repr(HEAVY))
    assert json.loads(run_fresh(code)) == {
        "threads": 1,
        "heavy": [],
        "root_handlers": 0,
        "root_level": 30,
        "our_handlers": [],
        "start_methods": [None, None],
        "signals": True,
        "children": [],
        "python_threads": 1,
    }


def test_the_services_and_buffers_import_little() -> None:
    """A robot starts as fast as its imports; a benchmark tells the time, this tells what must not come back into it."""
    imported = json.loads(run_fresh(NAMED))
    assert "edgeml_ipc.data.replay_buffer" in imported
    assert not set(imported) & {*HEAVY, *SELDOM_USED}
