"""Addresses as users write them (a bare host, or with a scheme) made complete with the port that a config holds."""

from __future__ import annotations

from edgeml_ipc.transports import DEFAULT_SCHEME

_SCHEMES_WITH_PORT = frozenset({"auto", "tcp"})


def complete_address(host: str, port: int, transport: str | None = None) -> str:
    """Return `scheme://...` for a host or an address.

    Args:
        host: `"localhost"`, `"10.0.0.5"`, `"::1"`, or an address with a scheme, which may leave the port out.
        port: used where `host` names none.
        transport: scheme to use instead of `auto`; None takes the address's own, or the default.
    Raises:
        ValueError: the address is empty, or names another transport than `transport`.
    """
    scheme, separator, rest = host.partition("://")
    if not separator:
        scheme, rest = transport or DEFAULT_SCHEME, host
    elif transport is not None and transport != scheme:
        if scheme != DEFAULT_SCHEME:
            raise ValueError(f"address {host!r} names the transport {scheme!r}, and transport is {transport!r}; leave one out")
        scheme = transport
    if not rest:
        raise ValueError(f"address {host!r} names no host; examples: 'localhost', 'tcp://10.0.0.5:5555', 'shm://robot'")
    if separator and scheme not in _SCHEMES_WITH_PORT:
        return f"{scheme}://{rest}"
    return f"{scheme}://{rest if _has_port(rest) else f'{_bracketed(rest)}:{port}'}"


def _has_port(rest: str) -> bool:
    host, colon, port = rest.rpartition(":")
    return bool(colon) and port.isdigit() and (":" not in host or host.endswith("]"))


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host and not host.startswith("[") else host
