"""Tests of edgeml_ipc.data.segment."""

from __future__ import annotations

import fcntl
import itertools
import os
import re
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgeml_ipc.data import segment as segments
from edgeml_ipc.data.segment import Segment
from edgeml_ipc.errors import SegmentError

ROOT = Path(__file__).parents[2]
_names = itertools.count()


@pytest.fixture
def name() -> Iterator[str]:
    made = f"test-segment-{os.getpid()}-{next(_names)}"
    yield made
    segments.unlink(made)


def file_of(name: str) -> Path:
    return Path("/dev/shm") / f"edgeml_ipc.{name}"


def test_two_that_attach_see_the_same_bytes(name: str) -> None:
    with Segment.create(name, 5000) as one, Segment.attach(name) as other:
        assert (one.nbytes, other.nbytes, other.name) == (5000, 5000, name)
        one.memory[4000:4003] = b"abc"
        assert other.memory[4000:4003] == b"abc"


def test_a_named_segment_is_its_owners_alone(name: str) -> None:
    before = os.umask(0)
    try:
        with Segment.create(name, 100):
            assert stat.S_IMODE(file_of(name).stat().st_mode) == 0o600
    finally:
        os.umask(before)


def test_all_memory_is_reserved(name: str) -> None:
    with Segment.create(name, 1 << 20):
        assert file_of(name).stat().st_blocks * 512 >= 1 << 20


@pytest.mark.parametrize("named", [True, False])
def test_too_much_is_refused_and_leaves_nothing(named: bool, name: str) -> None:
    with pytest.raises(
        SegmentError, match=r"needs 1,152,921,504,606,846,976 bytes; .*free memory has [0-9,]+: make the capacity"
    ):
        Segment.create(name if named else None, 1 << 60)
    assert not file_of(name).exists()


def test_a_small_dev_shm_is_refused_before_anything_is_written() -> None:
    """A tmpfs of 1 MiB over /dev/shm, in a mount namespace of its own."""
    code = (
        "from edgeml_ipc.data.segment import Segment; from edgeml_ipc.errors import SegmentError; import os\n"
        "try: Segment.create('big', 2 << 20)\n"
        "except SegmentError as error: print(error)\n"
        "print(os.listdir('/dev/shm'))\n"
        "Segment.create('small', 1 << 19).unlink()\n"
    )
    shell = f'mount -t tmpfs -o size=1m tmpfs /dev/shm && exec "$0" -c "{code}"'
    command = ["unshare", "--mount", "--map-root-user", "sh", "-c", shell, sys.executable]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert re.match(r"the segment 'big' needs 2,097,152 bytes; /dev/shm or free memory has 1,048,576: make", done.stdout)
    assert done.stdout.endswith("[]\n")


def test_a_name_that_is_taken(name: str) -> None:
    with Segment.create(name, 100), pytest.raises(SegmentError, match="exists already: attach to it, or unlink it first"):
        Segment.create(name, 100)
    assert file_of(name).exists()


def test_a_name_that_is_not_there(name: str) -> None:
    with pytest.raises(SegmentError, match="there is no segment"):
        Segment.attach(name)
    assert not segments.exists(name)
    segments.unlink(name)


@pytest.mark.parametrize("bad", ["", "a/b", "../x", ".hidden", "x" * 201, "ä", "a b"])
def test_not_a_name(bad: str) -> None:
    for use in (lambda: Segment.create(bad, 10), lambda: Segment.attach(bad), lambda: segments.unlink(bad)):
        with pytest.raises(ValueError, match="a segment's name has up to 200 letters"):
            use()


def test_a_segment_without_a_size_is_not_ready(name: str) -> None:
    file_of(name).touch(0o600)
    with pytest.raises(SegmentError, match="is not ready: its creator is still at it, or died"):
        Segment.attach(name)


def test_close_and_unlink_can_be_repeated_and_views_live_on(name: str) -> None:
    segment = Segment.create(name, 4096)
    view = np.frombuffer(segment.memory, np.uint8)
    view[7] = 9
    for _ in range(2):
        segment.unlink()
        segment.close()
    assert not file_of(name).exists()
    del segment
    assert view[7] == 9


def test_an_anonymous_segment_is_reached_by_its_descriptor() -> None:
    with Segment.create(None, 4096) as one, Segment.attach(one.fileno()) as other:
        one.memory[5] = 77
        assert other.memory[5] == 77
        assert other.fileno() != one.fileno()


def test_a_descriptor_that_is_none() -> None:
    with pytest.raises(SegmentError, match="the file descriptor 1000000 is not a segment"):
        Segment.attach(1_000_000)


def test_descriptors_are_closed() -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        segment = Segment.create(None, 4096)
        Segment.attach(segment.fileno())  # closed when it is gone
        segment.close()
    assert len(os.listdir("/proc/self/fd")) <= before + 1  # that of listdir


def test_an_abandoned_segment_is_removed_only_if_its_maker_is_gone(name: str) -> None:
    making = Segment.create(name, 4096)
    assert not segments.unlink_abandoned(name, lambda _: False)
    making.finish()
    assert not segments.unlink_abandoned(name, lambda _: True)
    assert file_of(name).exists()
    assert segments.unlink_abandoned(name, lambda _: False)
    assert not file_of(name).exists()


def test_the_makers_lock_ends_with_the_maker(name: str) -> None:
    code = f"from edgeml_ipc.data.segment import Segment; import os; Segment.create({name!r}, 64); os._exit(0)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)
    fd = os.open(file_of(name), os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(fd)
    assert segments.unlink_abandoned(name, lambda _: False)
