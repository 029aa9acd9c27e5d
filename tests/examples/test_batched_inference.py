"""Clients of one model get batched answers; the table and the picture are made, on one side or on two."""

import re
from pathlib import Path

from tests.examples.programs import Program

NAME = "batched_inference"
SMALL = ("--clients", "3", "--payload", "16", "--seconds", "0.4")
LINE = re.compile(r" +(\d+) \| +([\d.]+) \| +([\d.]+) \| +([\d.]+) \| +([\d,]+)")


def table(output: str) -> dict[int, tuple[float, ...]]:
    """Return largest batch -> mean batch, p50, p99, requests per second."""
    rows = [match.groups() for match in map(LINE.fullmatch, output.splitlines()) if match]
    return {int(size): tuple(float(value.replace(",", "")) for value in values) for size, *values in rows}


def check(output: str) -> None:
    rows = table(output)
    assert list(rows) == [1, 3]
    for size, (batch, p50, p99, rate) in rows.items():
        assert 1 <= batch <= size
        assert 0 < p50 <= p99
        assert rate > 0
    assert rows[3][0] > 1.0, output  # requests of several clients were answered together


def test_one_command_gives_a_table_and_a_picture(tmp_path: Path) -> None:
    picture = tmp_path / "batches.png"
    options = ("--batch-sizes", "1", "3", "--max-wait-ms", "50", "--plot", str(picture))
    with Program(NAME, *SMALL, *options) as program:
        check(program.finish())
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_server_and_clients_apart_and_ctrl_c() -> None:
    options = ("--port", "0", "--payload", "16", "--batch-sizes", "1", "3", "--max-wait-ms", "50")
    with Program(NAME, "--server", *options) as server:
        port = server.wait_for(r"^server: auto://127\.0\.0\.1:(\d+)$")[1]
        with Program(NAME, "--client", "--port", port, *SMALL) as clients:
            check(clients.finish())
        with Program(NAME, "--client", "--port", port, "--payload", "16", "--seconds", "600") as endless:
            endless.wait_for("^connected over (shm|tcp)$")
            endless.interrupt()
            assert endless.finish().endswith("\ninterrupted")
        server.interrupt()
        server.finish()


def test_help() -> None:
    with Program(NAME, "--help") as program:
        output = program.finish()
    for option in ("--server", "--client", "--clients", "--batch-sizes", "--max-wait-ms", "--payload", "--plot"):
        assert option in output
