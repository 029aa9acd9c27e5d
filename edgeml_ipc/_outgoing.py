"""What one side sends, as its policies want it: raw on one machine, shortened where a network lies between."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from edgeml_ipc.codec.encoder import encode
from edgeml_ipc.codec.policies import Policies
from edgeml_ipc.transports.base import Buffer, Parts, Shorten

NETWORK: Final = "tcp"


class Outgoing:
    """Encodes payloads, and shortens those that go over tcp. Any thread.

    Args:
        policies: key -> policy, as `edgeml_ipc.codec.policies` describes them; none or empty: everything travels as it is.
    Raises:
        ValueError: a policy is wrong. CodecError: the library that one needs is not installed.
    """

    def __init__(self, policies: Mapping[str, str] | None) -> None:
        self._policies = Policies(policies) if policies else None
        # As `codec.encode`; an array that does not fit its policy raises `CodecError` wherever it is going.
        self.encode: Callable[[Any], list[Buffer]] = encode if self._policies is None else self._policies.encode

    def over(self, transport: str, body: list[Buffer]) -> list[Buffer]:
        """Return what to send over `transport` of what `encode` made."""
        return body if self._policies is None or transport != NETWORK else self._policies.shorten(body)

    @property
    def shorten(self) -> Shorten | None:
        """What makes a message, its envelope first, shorter; None without policies."""
        return None if self._policies is None else self._shorten_message

    def _shorten_message(self, parts: Parts) -> list[Buffer]:
        assert self._policies is not None  # else `shorten` is None
        return [parts[0], *self._policies.shorten(list(parts[1:]))]

    def stats(self) -> dict[str, Any]:
        """Return `{"policies": key -> what its policy did}`, or nothing without policies."""
        return {} if self._policies is None else {"policies": self._policies.stats()}
