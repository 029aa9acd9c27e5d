"""What the tests share: addresses on every transport, and waiting without guessing."""

from __future__ import annotations

import itertools
import os
import signal
import threading
from collections.abc import Callable, Iterator

import pytest

from edgeml_ipc.codec import decoder, encoder

# Every transport that the services are tested on.
SCHEMES = ("inproc", "tcp", "shm", "auto")

# A shell that starts us in the background has us ignore Ctrl-C, and our children would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

_numbers = itertools.count()


def new_address(scheme: str) -> str:
    """Return an address of that scheme that nothing listens at; the system chooses ports."""
    if scheme in ("inproc", "shm"):
        return f"{scheme}://test-{os.getpid()}-{next(_numbers)}"
    return f"{scheme}://127.0.0.1:0"


def eventually(condition: Callable[[], object], seconds: float = 20.0) -> None:
    """Wait until a condition that has no event of its own holds; fail after a generous deadline."""
    pause = threading.Event()
    for _ in range(int(seconds / 0.005)):
        if condition():
            return
        pause.wait(0.005)
    pytest.fail(f"did not come about within {seconds} s")


@pytest.fixture(params=SCHEMES)
def address(request: pytest.FixtureRequest) -> str:
    return new_address(request.param)


@pytest.fixture(params=[scheme for scheme in SCHEMES if scheme != "inproc"])
def process_address(request: pytest.FixtureRequest) -> str:
    """An address that other processes reach."""
    return new_address(request.param)


@pytest.fixture
def no_threads_left() -> Iterator[None]:
    """Fail if a thread of this library outlives the test."""
    before = set(threading.enumerate())
    yield
    left = [thread for thread in threading.enumerate() if thread.name.startswith("edgeml_ipc-") and thread not in before]
    for thread in left:
        thread.join(5)
    assert [thread.name for thread in left if thread.is_alive()] == []


@pytest.fixture(scope="module", params=["compiled", "python"])
def codec_half(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run a module's tests twice: with the codec's compiled half, and without it."""
    assert encoder.encode is not encoder.encode_in_python
    assert decoder.decode is not decoder.decode_in_python
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "python":
            patch.setattr(encoder, "encode", encoder.encode_in_python)
            patch.setattr(decoder, "decode", decoder.decode_in_python)
        yield
