"""CartPole is played in another process as in one's own, in a window too, and both sides end well."""

import re

import pytest

from tests.examples.programs import Program

NAME = "gym_cartpole_env"
EPISODE = r"^client: episode (\d+): return (\d+), [\d,]+ steps/s$"


def returns(output: str) -> list[str]:
    return [found[1] for found in re.findall(EPISODE, output, re.MULTILINE)]


def test_two_clients_play_what_one_would_play_by_itself() -> None:
    with Program(NAME, "--episodes", "3", "--seed", "5") as alone:
        expected = returns(alone.finish())
    assert len(expected) == 3
    assert min(map(int, expected)) > 50
    with Program(NAME, "--server", "--port", "0") as server:
        port = server.wait_for(r"^server: CartPole at auto://127\.0\.0\.1:(\d+)$")[1]
        options = ("--client", "--port", port, "--episodes", "3", "--seed", "5")
        with Program(NAME, *options) as one, Program(NAME, *options) as two:
            for client in (one, two):
                output = client.finish()
                assert re.search(r"^client: connected over (shm|tcp)$", output, re.MULTILINE)
                assert "acts in Discrete(2)" in output
                assert returns(output) == expected
        server.interrupt()
        assert re.search(r"^server: stopped after \d+ requests$", server.finish().splitlines()[-1])


@pytest.mark.parametrize("side", [[], ["--client"]])
def test_a_window_shows_it(side: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")  # a window that no screen shows
    with Program(NAME, "--server", "--port", "0") as server:
        port = server.wait_for(r":(\d+)$")[1]
        with Program(NAME, *side, "--port", port, "--render", "--episodes", "1", "--seed", "5") as client:
            assert len(returns(client.finish())) == 1


def test_a_client_waits_for_its_server_and_says_when_it_is_killed() -> None:
    with Program(NAME, "--server", "--port", "0") as first:
        port = first.wait_for(r":(\d+)$")[1]
        first.kill()
    with Program(NAME, "--client", "--port", port, "--episodes", "1000000") as client:
        with Program(NAME, "--server", "--port", port) as second:
            client.wait_for(EPISODE)
            second.kill()
        client.wait_for(r"^client: the server does not answer any more: ")
        client.finish()


def test_ctrl_c_ends_a_client() -> None:
    with Program(NAME, "--episodes", "1000000") as client:
        client.wait_for(EPISODE)
        client.interrupt()
        assert client.finish().endswith("\ninterrupted")


def test_help() -> None:
    with Program(NAME, "--help") as program:
        output = program.finish()
    for option in ("--server", "--client", "--ip", "--port", "--episodes", "--render", "--insecure"):
        assert option in output
