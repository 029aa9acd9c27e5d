"""CURVE keys for the tcp transport: who may connect, and to whom.

A server has a key pair, of which each client knows the public half; without it nothing can be read or said. With
`allowed_clients` the server also turns away every client whose own key it does not know. Keys are text, 40 characters of Z85.

    server, client = Keys.generate()
    server.save("server.key"); client.save("client.key")   # the second one goes to the client's machine
"""

from __future__ import annotations

import dataclasses
import json
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from edgeml_ipc.errors import AuthenticationError

if TYPE_CHECKING:
    from typing import Any

    import zmq

_KEY_CHARACTERS: Final = 40
_MAX_FILE_BYTES: Final = 1 << 20


@dataclass(frozen=True)
class Keys:
    """The keys of one side.

    Attributes:
        public: this side's public key.
        secret: this side's secret key; not shown by `repr`.
        server_public: on a client, the public key of the server that it means to reach; None on a server.
        allowed_clients: on a server, public keys of the clients that may connect; None allows all that know `server_public`.
    """

    public: str
    secret: str = field(repr=False)
    server_public: str | None = None
    allowed_clients: frozenset[str] | None = None

    def __post_init__(self) -> None:
        if self.allowed_clients is not None:
            object.__setattr__(self, "allowed_clients", frozenset(self.allowed_clients))
        named = [("public", self.public), ("secret", self.secret), ("server_public", self.server_public)]
        named += [("allowed_clients", key) for key in self.allowed_clients or ()]
        for name, key in named:
            if key is not None and not _is_key(key):
                raise AuthenticationError(f"{name} must be {_KEY_CHARACTERS} characters of Z85, as `Keys.generate` makes them")

    @classmethod
    def generate(cls) -> tuple[Keys, Keys]:
        """Return new keys for a server and for the only client that it allows."""
        server = cls.generate_server()
        client = cls.generate_client(server.public)
        return server.allowing([client.public]), client

    @classmethod
    def generate_server(cls) -> Keys:
        """Return new keys for a server that allows every client that knows its public key."""
        return cls(*_new_pair())

    @classmethod
    def generate_client(cls, server_public: str) -> Keys:
        """Return new keys for a client of the server that has that public key."""
        return cls(*_new_pair(), server_public=server_public)

    def allowing(self, clients: Iterable[str]) -> Keys:
        """Return a server's keys with these clients allowed as well, and all that are not named turned away."""
        return dataclasses.replace(self, allowed_clients=(self.allowed_clients or frozenset()) | frozenset(clients))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the keys to a new file that only this user may read.

        Raises:
            FileExistsError: there is such a file; keys are never overwritten.
        """
        content = dataclasses.asdict(self)
        if self.allowed_clients is not None:
            content["allowed_clients"] = sorted(self.allowed_clients)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(descriptor, "w", encoding="ascii") as file:
            json.dump(content, file, indent=2)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Keys:
        """Read keys that `save` wrote.

        Raises:
            AuthenticationError: others may read or write the file, or it holds something else.
        """
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            if stat.S_IMODE(status.st_mode) & 0o077:
                raise AuthenticationError(
                    f"{os.fspath(path)} has mode {stat.S_IMODE(status.st_mode):o}; keys must be readable by their owner only "
                    "(chmod 600)"
                )
            text = file.read(_MAX_FILE_BYTES)
        try:
            return cls(**_fields(json.loads(text)))
        except (ValueError, TypeError) as error:
            raise AuthenticationError(f"{os.fspath(path)} does not hold keys: {error}") from error

    def apply_to_server(self, socket: zmq.Socket[Any]) -> None:
        """Set up a socket that will listen."""
        import zmq

        socket.setsockopt(zmq.CURVE_SERVER, 1)
        socket.setsockopt_string(zmq.CURVE_PUBLICKEY, self.public)
        socket.setsockopt_string(zmq.CURVE_SECRETKEY, self.secret)

    def apply_to_client(self, socket: zmq.Socket[Any]) -> None:
        """Set up a socket that will connect."""
        if self.server_public is None:
            raise AuthenticationError("keys without server_public are a server's; a client needs `Keys.generate_client(...)`")
        import zmq

        socket.setsockopt_string(zmq.CURVE_SERVERKEY, self.server_public)
        socket.setsockopt_string(zmq.CURVE_PUBLICKEY, self.public)
        socket.setsockopt_string(zmq.CURVE_SECRETKEY, self.secret)


def _is_key(key: object) -> bool:
    if not isinstance(key, str) or len(key) != _KEY_CHARACTERS or not key.isascii():
        return False
    from zmq.utils import z85

    try:
        z85.decode(key.encode())
    except (KeyError, ValueError):
        return False
    return True


def _new_pair() -> tuple[str, str]:
    import zmq

    public, secret = zmq.curve_keypair()
    return public.decode(), secret.decode()


def _fields(content: object) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise ValueError(f"expected an object, found {type(content).__name__}")
    return content
