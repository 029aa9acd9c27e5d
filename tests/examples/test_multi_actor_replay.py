"""Several actors write into the learner's buffer; one is killed, Ctrl-C ends all, and nothing is left."""

import os
import re

import psutil

from tests.examples.programs import Program

LINE = re.compile(r"[\d.]+ s: (\d+) rows in \([\d,]+/s\) by (\d+) writers, (\d+) rows out \([\d,]+/s\) in (\d+) batches")


def left(pid: int) -> list[str]:
    return [name for name in os.listdir("/dev/shm") if name == f"edgeml_ipc.multi-actor-replay-{pid}"]


def test_three_actors_write_until_all_rows_are_there() -> None:
    with Program("multi_actor_replay", "--actors", "3", "--rows", "5000") as program:
        lines = program.finish().splitlines()
        matches = [LINE.fullmatch(line) for line in lines]
        assert all(matches), lines
        inserted, _, rows_out, batches = map(int, matches[-1].groups())  # type: ignore[union-attr]
        assert 5000 <= inserted < 5000 + 4 * 50
        assert rows_out == batches * 256 * 8 > 0
        assert left(program.process.pid) == []


def test_a_killed_actor_is_replaced_and_the_rows_go_on() -> None:
    with Program("multi_actor_replay", "--kill", "--rows", "600000") as program:
        at = program.wait_for(r"^killed actor-1 by SIGKILL at (\d+) rows; actor-3 takes its place$")
        after = program.wait_for(LINE.pattern)
        last = program.finish().splitlines()[-1]
        assert int(at[1]) < int(after[1])
        match = LINE.fullmatch(last)
        assert match is not None, last
        assert int(match[1]) >= 600_000
        assert left(program.process.pid) == []


def test_ctrl_c_ends_all_processes() -> None:
    with Program("multi_actor_replay", "--rows", "1000000000") as program:
        program.wait_for(LINE.pattern)
        actors = psutil.Process(program.process.pid).children(recursive=True)
        assert len(actors) >= 2
        assert left(program.process.pid) != []
        program.interrupt()
        assert program.finish().endswith("\ninterrupted")
        assert psutil.wait_procs(actors, timeout=20)[1] == []
        assert left(program.process.pid) == []


def test_an_actor_that_ends_by_itself_ends_the_program() -> None:
    with Program("multi_actor_replay", "--rows", "1000000000") as program:
        program.wait_for(LINE.pattern)
        one = next(c for c in psutil.Process(program.process.pid).children() if "spawn_main" in " ".join(c.cmdline()))
        one.kill()
        program.wait_for(r"^actor-\d ended with exit code -9$")
        assert program.process.wait(20) == 1
        assert left(program.process.pid) == []
