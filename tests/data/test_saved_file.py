"""Tests of the file that a buffer is saved in: damage of any kind is refused, and deaths and full disks leave the old file."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import signal
import stat
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeml_ipc.data import ReplayBuffer, saved_file
from edgeml_ipc.errors import SegmentError
from tests.data.test_windows import fill, make

PREFIX = struct.Struct("<8sIIQQQ")


def saved_bytes(folder: Path, rounds: int = 20) -> bytes:
    buffer = make(130, chunk_rows=8, seed=1)
    fill(buffer, rounds)
    buffer.save(folder / "whole")
    return (folder / "whole").read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return saved_bytes(tmp_path_factory.mktemp("whole"))


def assert_refused(data: bytes, folder: Path, match: str = "cannot be loaded: ") -> None:
    """Load a damaged file, then see that the buffer is as empty as it was."""
    path = folder / "damaged"
    path.write_bytes(data)
    buffer = make(130, chunk_rows=8, seed=3)
    with pytest.raises(SegmentError, match=match):
        buffer.load(path)
    assert buffer.stats() | {"capacity": 0} == dict.fromkeys(buffer.stats(), 0)
    assert not any(np.any(column) for column in buffer.columns.values())
    assert make(130, seed=3)._batches.generator_state() == buffer._batches.generator_state()
    with pytest.raises(SegmentError):
        ReplayBuffer.from_file(path)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_flipped_byte_is_refused(data: st.DataObject, whole: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    _, _, _, header_at, _, _ = PREFIX.unpack(whole[: PREFIX.size])
    at = data.draw(st.one_of(st.integers(0, len(whole) - 1), st.integers(0, 80), st.integers(header_at, len(whole) - 1)), "at")
    flip = data.draw(st.integers(1, 255), "flip")
    folder = tmp_path_factory.getbasetemp()
    assert_refused(whole[:at] + bytes([whole[at] ^ flip]) + whole[at + 1 :], folder)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_another_length_is_refused(data: st.DataObject, whole: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    length = data.draw(st.integers(0, len(whole) + 5000).filter(lambda length: length != len(whole)), "length")
    assert_refused(whole[:length].ljust(length, b"\0"), tmp_path_factory.getbasetemp())


def resigned(whole: bytes, change: Callable[[dict[str, Any]], object], body: bytes | None = None) -> bytes:
    """Return a file with another header, and a digest that is right for it."""
    magic, version, reserved, at, nbytes, _ = PREFIX.unpack(whole[: PREFIX.size])
    header = json.loads(whole[at : at + nbytes])
    change(header)
    text = json.dumps(header).encode()
    prefix = PREFIX.pack(magic, version, reserved, at, len(text), at + len(text))
    digest = hashlib.blake2b(prefix + text, digest_size=16).digest()
    return prefix + digest + (body or whole)[PREFIX.size + 16 : at] + text


def patched(whole: bytes, name: str, offset: int, value: bytes) -> bytes:
    """Return a file with other bytes in a section, and checksums that are right for them."""
    _, _, _, at, nbytes, _ = PREFIX.unpack(whole[: PREFIX.size])
    section = next(section for section in json.loads(whole[at : at + nbytes])["sections"] if section[0] == name)
    begin = section[1] + offset
    body = whole[:begin] + value + whole[begin + len(value) :]
    crc = zlib.crc32(body[section[1] : section[1] + section[2]])

    def change(header: dict[str, Any]) -> None:
        next(section for section in header["sections"] if section[0] == name)[3] = crc

    return resigned(whole, change, body)


def columns(header: dict[str, Any], change: Callable[[list[Any]], object]) -> None:
    """Change the columns of a header's schema, which is JSON within JSON."""
    schema = json.loads(header["schema"])
    change(schema["columns"])
    header["schema"] = json.dumps(schema)


def nothing(header: dict[str, Any]) -> None:
    pass


def test_a_file_that_was_signed_again_is_whole(whole: bytes, tmp_path: Path) -> None:
    """So what the next tests see refused is refused for what they changed."""
    for data in (resigned(whole, nothing), patched(whole, "columns.rewards", 0, b"\x01")):
        (tmp_path / "again").write_bytes(data)
        assert len(ReplayBuffer.from_file(tmp_path / "again")) > 10


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda h: h.update(rows=h["rows"] + 1), "97 rows of 96"),
        (lambda h: h.update(rows=-1), "-1 rows"),
        (lambda h: h.update(rows=1 << 60), "rows"),
        (lambda h: h.update(capacity=1 << 60), "cannot be$"),
        (lambda h: h.update(chunk_rows=0), "cannot be$"),
        (lambda h: h.update(capacity=20), "room for 20"),
        (lambda h: h.update(next_sequence=5), "rows of|it says"),
        (lambda h: h.update(next_sequence=-1), "its next sequence number is -1"),
        (lambda h: h["counters"].update(sampled=-1), "its counters are"),
        (lambda h: h["counters"].update(more=1), "its counters are"),
        (lambda h: h.update(byte_order="big"), "in 'big' order"),
        (lambda h: h.update(more=1), "unknown field `more`"),
        (lambda h: h.pop("rows"), "missing required field `rows`"),
        (lambda h: h.update(rows="7"), "Expected `int`, got `str`"),
        (lambda h: columns(h, lambda c: c.append(["more", [2], "float32", 0, 0])), "section 'columns.more'"),
        (lambda h: columns(h, lambda c: c.append(["more", [1 << 60], "float32", 0, 0])), "is not one"),
        (lambda h: columns(h, lambda c: c.append(["more", [2], "object", 0, 0])), "Python objects"),
        (lambda h: columns(h, lambda c: c.append(c[0])), "not a set of names"),
        (lambda h: columns(h, lambda c: c.clear()), "not a set of names"),
        (lambda h: h.update(schema="{}"), "KeyError|is not one"),
        (lambda h: h.update(schema="[" * 100_000), "is not one"),
        (lambda h: h["generators"]["rows"].update(name="MT19937"), "not one of PCG64"),
        (lambda h: h["generators"]["rows"].update(state="xyz"), "invalid literal"),
        (lambda h: h["generators"]["rows"].update(increment="1" * 40), "not one of PCG64"),
        (lambda h: h["generators"]["rows"].update(left=1 << 32), "not one of PCG64"),
        (lambda h: h["sections"].reverse(), "its section"),
        (lambda h: h["sections"].pop(), "there is something before its header|has 0 bytes"),
        (lambda h: h["sections"].pop(0), "there is something before its section"),
        (lambda h: h["sections"].append(["more", h["sections"][-1][1] + h["sections"][-1][2], 0, 0]), "are not known"),
        (lambda h: h["sections"][0].__setitem__(1, -64), "lies at"),
        (lambda h: h["sections"][0].__setitem__(2, 1 << 62), "lies at"),
        (lambda h: h["sections"][0].__setitem__(2, -8), "lies at"),
        (lambda h: h["sections"][1].__setitem__(1, h["sections"][0][1]), "lies at"),
        (lambda h: h["sections"][0].__setitem__(3, 7), "checksum of its section"),
    ],
)
def test_a_header_that_cannot_be_is_refused(
    change: Callable[[dict[str, Any]], object], match: str, whole: bytes, tmp_path: Path
) -> None:
    assert_load_fails(resigned(whole, change), tmp_path, match)


def assert_load_fails(data: bytes, folder: Path, match: str) -> None:
    (folder / "damaged").write_bytes(data)
    buffer = make(130, chunk_rows=8)
    with pytest.raises(SegmentError, match=match):
        buffer.load(folder / "damaged")
    assert len(buffer) == 0
    assert buffer.stats()["inserted"] == 0


@pytest.mark.parametrize(
    ("name", "offset", "value", "match"),
    [
        ("about.flags", 3, b"\xff", "of its row 3 it says"),
        ("about.position", 8, b"\xff" * 8, "of its row 1 it says"),
        ("about.position", 8, b"\x00" * 7 + b"\x01", "of its row 1 it says"),
        ("about.policy_version", 0, b"\xfe" + b"\xff" * 7, "of its row 0 it says"),
        ("about.sequence", 8, b"\x00" * 8, "it says"),
        ("about.sequence", 0, b"\xff" * 7 + b"\x0f", "it says"),
        ("stored_next", 0, b"\x02", "has the byte 2"),
        ("stored_next", 0, b"\x00", "section 'next.next_observations' has 1,152 bytes, 1,140 are needed"),
        ("columns.dones", 0, b"\x03", "has the byte 3"),
        ("runs", 0, b"\x00" * 8, "its runs are not"),
        ("runs", 8, b"\x02", "its runs are not"),
        ("runs", 16, b"\x00" * 8, "its runs are not"),
        ("runs", 16, b"\xff" * 8, "its runs are not"),
        ("runs", 24, b"\xff" * 7 + b"\x7f", "its runs are not"),
        ("runs", 24, b"\x83", "its runs are not"),
    ],
)
def test_a_section_that_cannot_be_is_refused(
    name: str, offset: int, value: bytes, match: str, whole: bytes, tmp_path: Path
) -> None:
    assert_load_fails(patched(whole, name, offset, value), tmp_path, match)


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", r"it begins with b''"),
        (b"hello", "it begins with b'hello'"),
        (saved_file.MAGIC, "fewer than the shortest"),
        (saved_file.MAGIC + bytes(5000), "of version 0, this program reads version 1"),
        (b"PK\x03\x04" + bytes(100), "not a zip file"),
    ],
)
def test_a_foreign_file_is_refused(data: bytes, match: str, tmp_path: Path) -> None:
    assert_load_fails(data, tmp_path, match)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SegmentError, match=r"missing' cannot be read: No such file"):
        make(10).load(tmp_path / "missing")
    with pytest.raises(SegmentError, match="cannot be read: Is a directory"):
        make(10).load(tmp_path)
    with pytest.raises(SegmentError, match=r"cannot be written: .*No such file"):
        make(10).save(tmp_path / "no" / "folder")


def test_the_file_is_its_owners_alone_and_replaces_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "buffer"
    path.write_bytes(b"old")
    make(10).save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["buffer"]
    assert len(ReplayBuffer.from_file(path)) == 0


def test_where_every_file_needs_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "O_TMPFILE")
    make(10).save(tmp_path / "buffer")
    assert os.listdir(tmp_path) == ["buffer"]
    (tmp_path / "folder").mkdir()
    with pytest.raises(SegmentError, match="cannot be written"):
        make(10).save(tmp_path / "folder")
    assert sorted(os.listdir(tmp_path)) == ["buffer", "folder"]


def test_columns_can_be_mapped(whole: bytes, tmp_path: Path) -> None:
    (tmp_path / "whole").write_bytes(whole)
    _, _, _, at, nbytes, _ = PREFIX.unpack(whole[: PREFIX.size])
    header = json.loads(whole[at : at + nbytes])
    _, begin, length, _ = next(section for section in header["sections"] if section[0] == "columns.token")
    assert begin % 4096 == 0
    token = np.memmap(tmp_path / "whole", np.int64, "r", begin, (length // 32, 4))
    held = make(130, chunk_rows=8)
    held.load(tmp_path / "whole")
    np.testing.assert_array_equal(token, held.columns["token"][held._windows._map.steps().rows()])


# ---- deaths, and a disk that is full


def in_child(task: Callable[[], object]) -> int:
    """Run a task in a forked child, which may save; return how it ended."""
    pid = os.fork()
    if pid == 0:
        try:
            task()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def traced(at_line: Callable[[int], object]) -> None:
    """Have a function called with the number of each line of writing the file, before it is run, in this thread."""

    def trace(frame: FrameType, event: str, arg: object) -> Any:
        if frame.f_code.co_filename != saved_file.__file__:
            return None
        if event == "line":
            at_line(frame.f_lineno)
        return trace

    sys.settrace(trace)


def dies_at(step: int) -> None:
    """Have this process killed before its n-th line of writing the file."""
    steps = iter(range(step))
    traced(lambda _: next(steps, None) is None and os.kill(os.getpid(), signal.SIGKILL))


def test_who_is_killed_at_any_line_leaves_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    """At each line, the first and the last time that it is run."""
    old, new = make(130, chunk_rows=8, seed=1), make(130, chunk_rows=8, seed=1)
    fill(old, 3)
    fill(new, 6)
    path, lines = tmp_path / "buffer", list[int]()
    tracing = sys.gettrace()
    traced(lines.append)
    old.save(path)
    sys.settrace(tracing)
    before, found = path.read_bytes(), list[int]()
    firsts = {line: step for step, line in reversed(list(enumerate(lines)))}
    lasts = {line: step for step, line in enumerate(lines)}
    for step in sorted({*firsts.values(), *lasts.values()}):
        path.write_bytes(before)
        assert in_child(lambda: (dies_at(step), new.save(path))) == -signal.SIGKILL  # noqa: B023
        found.append(len(ReplayBuffer.from_file(path)))
        litter = set(os.listdir(tmp_path)) - {"buffer"}
        assert len(litter) <= 1
        for name in litter:
            (tmp_path / name).unlink()
    assert len(found) > 50
    assert set(found) == {len(old), len(new)}
    assert found == sorted(found)


@pytest.mark.parametrize("named", [False, True])
def test_a_full_disk_is_an_error_and_leaves_the_old_file(named: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if named:
        monkeypatch.delattr(os, "O_TMPFILE")
    old, new = make(130, chunk_rows=8, seed=1), make(130, chunk_rows=8, seed=1)
    fill(old, 3)
    fill(new, 6)
    path = tmp_path / "buffer"
    old.save(path)

    def save_where_files_are_limited(nbytes: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, nbytes))
        with pytest.raises(SegmentError, match="what was there stays: File too large"):
            new.save(path)

    for nbytes in (100, 5_000, 30_000, os.path.getsize(path) - 2000):
        assert in_child(lambda: save_where_files_are_limited(nbytes)) == 0  # noqa: B023
        assert os.listdir(tmp_path) == ["buffer"]
        assert len(ReplayBuffer.from_file(path)) == len(old)
    new.save(path)
    assert len(ReplayBuffer.from_file(path)) == len(new)
