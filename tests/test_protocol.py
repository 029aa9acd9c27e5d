"""The protocol: bytes in, verdicts out, no connection anywhere."""

from dataclasses import dataclass, field

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeml_ipc import protocol
from edgeml_ipc.errors import (
    CodecError,
    ConfigMismatch,
    EdgeMLError,
    IncompatiblePeer,
    MessageTooLarge,
    PeerDied,
    RateLimited,
    RemoteError,
)

CLIENT = bytes(range(16))


@dataclass
class Config:
    port_number: int = 1
    broadcast_port: int | None = None
    keys: list[str] = field(default_factory=lambda: ["a", "b"])
    version: str = "1"


def test_envelope_round_trip() -> None:
    packed = protocol.ENVELOPE.pack(protocol.MAGIC, protocol.PUBLISH, 0, 7, 2**64 - 1, 2**63)
    assert len(packed) == 24
    assert protocol.open_envelope(memoryview(packed)) == (protocol.PUBLISH, 7, 2**64 - 1, 2**63)


@pytest.mark.parametrize(
    "envelope",
    [
        b"",
        b"hello",
        bytes(24),
        protocol.ENVELOPE.pack(protocol.MAGIC + (1 << 24), protocol.REQUEST, 0, 0, 1, 1),  # the next version
        protocol.ENVELOPE.pack(protocol.MAGIC, 0, 0, 0, 1, 1),
        protocol.ENVELOPE.pack(protocol.MAGIC, 6, 0, 0, 1, 1),
        protocol.ENVELOPE.pack(protocol.MAGIC, protocol.REQUEST, 1, 0, 1, 1),
        protocol.ENVELOPE.pack(protocol.MAGIC, protocol.REQUEST, 0, 0, 1, 1) + b"x",
    ],
    ids=["empty", "short", "zeros", "other version", "kind 0", "unknown kind", "unknown flag", "too long"],
)
def test_malformed_envelope(envelope: bytes) -> None:
    with pytest.raises(protocol.ProtocolViolation):
        protocol.open_envelope(envelope)


def test_plain_config_leaves_the_ports_out_and_the_object_alone() -> None:
    config = Config()
    assert protocol.plain_config(config) == {"keys": ["a", "b"], "version": "1"}
    assert config == Config()


def test_plain_config_makes_containers_comparable() -> None:
    left = protocol.plain_config({"shape": (1, 2), "keys": {"b", "a"}, "nested": {"x": (3,)}, "big": 2**70})
    right = protocol.plain_config({"shape": [1, 2], "keys": ["a", "b"], "nested": {"x": [3]}, "big": 2**70})
    assert left == right
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(left)) == left


def test_plain_config_refuses_other_objects() -> None:
    with pytest.raises(TypeError, match="int"):
        protocol.plain_config(3)


def judge(client: object, server: object, service: str = "action") -> EdgeMLError | None:
    hello = protocol.pack_hello(service, CLIENT, 0, protocol.plain_config(client))
    rejection = protocol.judge(hello, "action", protocol.plain_config(server))
    return None if rejection is None else protocol.rejection_error(rejection, "tcp://here:1")


def test_equal_configs_with_other_ports_are_accepted() -> None:
    assert judge(Config(port_number=1), Config(port_number=2, broadcast_port=3)) is None


def test_config_mismatch_shows_what_differs() -> None:
    error = judge(Config(keys=["a"]), {"keys": ["a", "b"], "version": "1", "rate": 3})
    assert isinstance(error, ConfigMismatch)
    assert error.differences == {"keys": ("['a']", "['a', 'b']"), "rate": ("(absent)", "3")}
    assert "tcp://here:1" in str(error)
    assert "client ['a'], server ['a', 'b']" in str(error)


def test_version_of_the_config_is_compared() -> None:
    error = judge(Config(version="1"), Config(version="2"))
    assert isinstance(error, ConfigMismatch)
    assert list(error.differences) == ["version"]


def test_other_service() -> None:
    error = judge({}, {}, service="trainer")
    assert isinstance(error, IncompatiblePeer)
    assert "'action'" in str(error)
    assert "'trainer'" in str(error)


def test_other_protocol_version() -> None:
    hello = msgspec.msgpack.encode([protocol.VERSION + 1, "action", CLIENT, 0, {}])
    rejection = protocol.judge(hello, "action", {})
    assert rejection is not None
    error = protocol.rejection_error(rejection, "tcp://here:1")
    assert isinstance(error, IncompatiblePeer)
    assert "version" in str(error)


@pytest.mark.parametrize("client", [b"", b"short", bytes(17)])
def test_client_id_of_the_wrong_size(client: bytes) -> None:
    with pytest.raises(protocol.ProtocolViolation, match="client id"):
        protocol.unpack_hello(msgspec.msgpack.encode([protocol.VERSION, "action", client, 0, {}]))


@given(st.binary(max_size=200))
def test_any_bytes_as_hello_give_a_rejection(blob: bytes) -> None:
    rejection = protocol.judge(blob, "action", {})
    assert rejection is not None
    assert isinstance(protocol.rejection_error(rejection, "x"), IncompatiblePeer)


@given(st.binary(max_size=200))
def test_any_bytes_in_place_of_an_answer_give_an_error_of_ours(blob: bytes) -> None:
    assert isinstance(protocol.failure_error(blob, "x"), EdgeMLError)
    assert isinstance(protocol.rejection_error(blob, "x"), EdgeMLError)
    with pytest.raises(IncompatiblePeer):
        protocol.unpack_welcome(blob + b"\xc1", "x")


def test_deeply_nested_hello() -> None:
    deep = b"\x81\xa1a" * 20_000 + b"\xc0"
    blob = msgspec.msgpack.encode([protocol.VERSION, "action", CLIENT, 0])[1:]
    rejection = protocol.judge(b"\x95" + blob + deep, "action", {})
    assert rejection is not None


@pytest.mark.parametrize("error", [RateLimited("r"), CodecError("c"), MessageTooLarge("m")])
def test_errors_of_ours_arrive_as_their_type(error: EdgeMLError) -> None:
    arrived = protocol.failure_error(protocol.pack_failure(error, within_callback=False), "tcp://here:1")
    assert type(arrived) is type(error)
    assert str(error) in str(arrived)


def test_forgotten_reply_has_an_unknown_outcome() -> None:
    arrived = protocol.failure_error(protocol.pack_failure(PeerDied("gone"), within_callback=False), "x")
    assert isinstance(arrived, PeerDied)
    assert arrived.outcome_unknown


def test_callback_error_arrives_with_its_traceback_whatever_its_type() -> None:
    for raised in (ZeroDivisionError("nought"), RateLimited("mine"), ValueError("\udcff")):
        try:
            raise raised
        except (ValueError, ZeroDivisionError, RateLimited) as error:
            arrived = protocol.failure_error(protocol.pack_failure(error, within_callback=True), "x")
        assert isinstance(arrived, RemoteError)
        assert arrived.remote_type == type(raised).__name__
        assert "test_protocol.py" in arrived.remote_traceback


def test_a_traceback_is_bounded() -> None:
    packed = protocol.pack_failure(ValueError("x" * 1_000_000), within_callback=True)
    assert len(packed) < 200_000


def test_configs_with_numpy_values_are_compared_by_value() -> None:
    long = np.arange(5000)
    ours = protocol.plain_config({"rate": np.float64(5), "table": long, "name": np.str_("a")})
    assert protocol.unpack_hello(protocol.pack_hello("s", bytes(16), 0, ours)).config == ours
    assert not protocol.differences(ours, protocol.plain_config({"rate": 5.0, "table": long.copy(), "name": "a"}))
    long[2500] = 0  # where its repr shows dots
    assert list(protocol.differences(ours, protocol.plain_config({"rate": 5.0, "table": long, "name": "a"}))) == ["table"]
