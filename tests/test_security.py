"""Keys: made, saved, loaded, refused."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from edgeml_ipc.errors import AuthenticationError
from edgeml_ipc.security import Keys


def test_generate_makes_a_server_and_the_only_client_that_it_allows() -> None:
    server, client = Keys.generate()
    assert client.server_public == server.public
    assert server.server_public is None
    assert server.allowed_clients == {client.public}
    assert len({server.public, server.secret, client.public, client.secret}) == 4


def test_allowing_adds_clients() -> None:
    open_server = Keys.generate_server()
    assert open_server.allowed_clients is None
    one, two = (Keys.generate_client(open_server.public) for _ in range(2))
    assert open_server.allowing([one.public]).allowing([two.public]).allowed_clients == {one.public, two.public}
    assert open_server.allowed_clients is None


def test_secret_is_not_shown() -> None:
    server, client = Keys.generate()
    assert server.secret not in repr(server)
    assert client.secret not in repr(client)


@pytest.mark.parametrize("which", [0, 1])
def test_save_and_load(tmp_path: Path, which: int) -> None:
    keys = Keys.generate()[which]
    path = tmp_path / "keys"
    keys.save(path)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert Keys.load(path) == keys
    with pytest.raises(FileExistsError):
        keys.save(path)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666])
def test_a_file_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "keys"
    Keys.generate_server().save(path)
    path.chmod(mode)
    with pytest.raises(AuthenticationError, match="chmod 600"):
        Keys.load(path)


@pytest.mark.parametrize("content", ["", "[]", "{}", '"text"', '{"public": 1}', '{"unknown": 1}', "\x00\x01"])
def test_a_file_with_something_else_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "keys"
    path.write_text(content)
    path.chmod(0o600)
    with pytest.raises(AuthenticationError, match="does not hold keys"):
        Keys.load(path)


@pytest.mark.parametrize("wrong", ["", "x" * 39, "x" * 41, "é" * 40, '"' * 40, 7])
@pytest.mark.parametrize("field", ["public", "secret", "server_public", "allowed_clients"])
def test_a_wrong_key_is_named(tmp_path: Path, field: str, wrong: object) -> None:
    fields = {"public": Keys.generate_server().public, "secret": Keys.generate_server().secret}
    path = tmp_path / "keys"
    path.write_text(json.dumps({**fields, field: [wrong] if field == "allowed_clients" else wrong}))
    path.chmod(0o600)
    with pytest.raises(AuthenticationError, match=field):
        Keys.load(path)
