"""Buffers elsewhere: the methods of a local one by messages, or the memory itself where it is near."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from edgeml_ipc import _departures, _visits
from edgeml_ipc._attachments import attach, offer_of
from edgeml_ipc._buffer_messages import build, describe
from edgeml_ipc.connect_buffer import split_store
from edgeml_ipc.data import (
    DataShape,
    FutureSampler,
    LatestSampler,
    NStepSampler,
    PrioritySampler,
    QueuedDataStore,
    ReplayBuffer,
    Sampler,
    SequenceSampler,
    TrajectorySampler,
)
from edgeml_ipc.errors import (
    BufferEmpty,
    BufferFull,
    ConfigMismatch,
    ConnectionClosed,
    ConnectionRefused,
    EdgeMLError,
    IncompatiblePeer,
    RemoteError,
    SegmentError,
    TimeoutError,
)
from edgeml_ipc.remote_buffer import RemoteBuffer
from edgeml_ipc.service import Client
from edgeml_ipc.testing._workers import Background
from edgeml_ipc.trainer import TrainerConfig, TrainerServer
from tests.conftest import eventually, new_address

pytestmark = pytest.mark.usefixtures("no_threads_left")

OBSERVATIONS = spaces.Dict({"image": spaces.Box(0, 255, (4, 4), np.uint8), "state": spaces.Box(-1, 1, (3,), np.float32)})
ACTIONS = spaces.Box(-1, 1, (2,), np.float32)
TOKEN = DataShape("token", (2,), "int64")  # who inserted the row, and which of theirs it is
FIRST, LAST, CUT = 1, 2, 2 | 8


def row(who: int, number: int, episode_rows: int = 7) -> dict[str, Any]:
    observation = {"image": np.full((4, 4), number % 251, np.uint8), "state": np.full(3, number, np.float32)}
    return {
        "observations": observation,
        "next_observations": {"image": observation["image"] + np.uint8(1), "state": observation["state"] + np.float32(1)},
        "actions": np.full(2, number, np.float32),
        "rewards": float(number),
        "masks": 1.0,
        "dones": number % episode_rows == episode_rows - 1,
        "token": np.array([who, number]),
        "policy_version": number // 10,
    }


def rows(who: int, first: int, count: int) -> list[dict[str, Any]]:
    return [row(who, number) for number in range(first, first + count)]


def make(**options: Any) -> ReplayBuffer:
    return ReplayBuffer(OBSERVATIONS, ACTIONS, options.pop("capacity", 1000), extra_columns=[TOKEN], **options)


def same(one: Any, other: Any) -> None:
    np.testing.assert_equal(one, other)


@pytest.fixture
def buffer() -> Iterator[ReplayBuffer]:
    with make(seed=1) as buffer:
        yield buffer


@pytest.fixture
def server(address: str, buffer: ReplayBuffer) -> Iterator[TrainerServer]:
    config = TrainerConfig(port_number=0, request_types=["something"], version="of its own")
    with TrainerServer(config, host=address) as server:
        server.register_data_store("steps", buffer)
        server.start(threaded=True)
        yield server


@pytest.fixture
def remote(server: TrainerServer) -> Iterator[RemoteBuffer]:
    with ReplayBuffer.connect(f"{server.address}/steps", seed=5, attach=False) as remote:
        assert isinstance(remote, RemoteBuffer)
        yield remote


# --- connecting -------------------------------------------------------------------------------------------------------------


def test_what_is_near_is_attached_and_what_is_not_is_not(server: TrainerServer, buffer: ReplayBuffer) -> None:
    by_tcp = server.address.startswith("tcp")
    with ReplayBuffer.connect(f"{server.address}/steps") as reached:
        assert type(reached) is (RemoteBuffer if by_tcp else ReplayBuffer)
        reached.insert(row(1, 0))
        assert reached.incarnation == buffer.incarnation
    assert len(buffer) == 1
    if by_tcp:
        with pytest.raises(SegmentError, match="reached by tcp"):
            ReplayBuffer.connect(f"{server.address}/steps", attach=True)


def test_a_bare_address_is_auto() -> None:
    assert split_store("localhost:123/a/b") == ("localhost:123", "a/b")
    assert split_store("shm://learner/steps") == ("shm://learner", "steps")
    with TrainerServer(TrainerConfig(port_number=0)) as server, make() as buffer:
        server.register_data_store("steps", buffer)
        server.start(threaded=True)
        with ReplayBuffer.connect(f"127.0.0.1:{server.port}/steps") as reached:
            assert reached.incarnation == buffer.incarnation


@pytest.mark.parametrize("address", ["localhost:5555", "tcp://localhost:5555", "shm://x/", "/steps", ""])
def test_an_address_without_a_store_is_an_error(address: str) -> None:
    with pytest.raises(ValueError, match="host:5555/name"):
        ReplayBuffer.connect(address)


def test_stores_that_cannot_be_connected_to(server: TrainerServer) -> None:
    server.register_data_store("queue", QueuedDataStore(10))
    for attach_it in (None, False):
        with pytest.raises(ValueError, match=r"no data store 'other' is registered; there are \['queue', 'steps'\]"):
            ReplayBuffer.connect(f"{server.address}/other", attach=attach_it)
        with pytest.raises(ValueError, match="'queue' is a QueuedDataStore"):
            ReplayBuffer.connect(f"{server.address}/queue", attach=attach_it)


def test_nothing_listens() -> None:
    with pytest.raises(ConnectionRefused):
        ReplayBuffer.connect(f"{new_address('shm')}/steps")


def test_a_server_of_another_version_is_named(server: TrainerServer) -> None:
    with pytest.raises(ConfigMismatch, match="version"):
        Client(server.address, service="replay", config={"version": "0"})
    with pytest.raises(IncompatiblePeer, match="trainer"):
        Client(server.address, service="elsewhere", config={})


def test_a_client_of_buffers_cannot_call_the_trainer(server: TrainerServer) -> None:
    with Client(server.address, service="replay", config={"version": "1"}, timeout=20) as client:
        with pytest.raises(ValueError, match="no method 'upload'"):
            client.call("upload", {})
        assert client.call("stats", {}) == {"unknown": "visit"}


# --- near -------------------------------------------------------------------------------------------------------------------


def test_an_offer_of_a_name_or_a_descriptor(request: pytest.FixtureRequest) -> None:
    name = f"test-offer-{threading.get_native_id()}"
    request.addfinalizer(lambda: ReplayBuffer.remove(name))
    for named in (name, None):
        with make(name=named) as buffer:
            offer = offer_of(buffer)
            assert offer is not None
            with attach(offer, ReplayBuffer.attach) as other:
                other.insert(row(1, 2))
            assert len(buffer) == 1
            buffer.unlink()
            with attach(offer, ReplayBuffer.attach) as other:  # a name that is gone: by its descriptor
                assert len(other) == 1


def test_offers_that_are_wrong() -> None:
    with make() as buffer, make() as other, open("/dev/null", "rb") as device, open(__file__, "rb") as file:
        offer = offer_of(buffer)
        assert offer is not None
        for wrong, why in [
            ({"fd": other.fileno()}, "another buffer's"),
            ({"fd": device.fileno()}, "not a memory file"),
            ({"fd": file.fileno()}, "cannot attach|cannot be opened|not a memory file"),
            ({"fd": 1 << 20}, "cannot be opened"),
            ({"pid": 1 << 30}, "cannot be opened"),
            ({"pid": "self"}, "are none"),
            ({"pid": -1}, "are none"),
            ({"incarnation": b"0" * 16}, "another buffer's"),
            ({"name": "../../etc/passwd", "fd": -1}, "are none"),
        ]:
            with pytest.raises(SegmentError, match=why):
                attach({**offer, **wrong}, ReplayBuffer.attach)


def test_an_offer_that_fails_falls_back_to_messages(
    buffer: ReplayBuffer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_visits, "offer_of", lambda _: {"incarnation": b"0" * 16, "name": None, "pid": 1 << 30, "fd": 3})
    with TrainerServer(TrainerConfig(), host=new_address("shm")) as server:
        server.register_data_store("steps", buffer)
        server.start(threaded=True)
        with caplog.at_level(logging.INFO, "edgeml_ipc"), ReplayBuffer.connect(f"{server.address}/steps") as reached:
            assert type(reached) is RemoteBuffer
            assert reached.transport == "shm"
        assert "by messages, because: the owner's memory cannot be opened" in caplog.text
        with pytest.raises(SegmentError, match="cannot be opened"):
            ReplayBuffer.connect(f"{server.address}/steps", attach=True)


# --- the methods ------------------------------------------------------------------------------------------------------------


def test_inserting_reading_and_counting(remote: RemoteBuffer, buffer: ReplayBuffer) -> None:
    assert (len(remote), remote.latest_data_id(), remote.capacity) == (0, -1, 1000)
    remote.insert(row(1, 0))
    remote.batch_insert(rows(1, 1, 20))
    stacked = [row(1, number) for number in range(21, 30)]
    remote.batch_insert({"observations": {"image": np.stack([r["observations"]["image"] for r in stacked]),
                                          "state": np.stack([r["observations"]["state"] for r in stacked])},
                         "next_observations": {"image": np.stack([r["next_observations"]["image"] for r in stacked]),
                                               "state": np.stack([r["next_observations"]["state"] for r in stacked])},
                         **{key: np.stack([r[key] for r in stacked])
                            for key in ("actions", "rewards", "masks", "dones", "token", "policy_version")}})  # fmt: skip
    remote.batch_insert([])
    remote.insert(row(1, 30), end_of_trajectory=True)
    assert len(remote) == len(buffer) == 31
    assert remote.latest_data_id() == 30
    assert remote.stats() == buffer.stats()
    assert remote.incarnation == buffer.incarnation
    assert remote.recover() == 0
    same(remote.get_latest_data(25), buffer.get_latest_data(25))
    same(remote.read_since(3, limit=4), buffer.read_since(3, limit=4))
    assert [int(item["token"][1]) for item in remote.get_latest_data(-1)] == list(range(31))
    assert (buffer.about["flags"][[6, 30]] & LAST != 0).all()


@pytest.mark.parametrize("ahead", [0, 2])
def test_a_sample_waits_for_rows_while_others_go_on(server: TrainerServer, ahead: int) -> None:
    with ReplayBuffer.connect(f"{server.address}/steps", attach=False, ahead=ahead) as remote:
        remote.register_sample_config("windows", {"token": SequenceSampler(begin=0, end=3)}, (0, 3))
        with pytest.raises(TimeoutError, match="waited in vain: cannot sample 3 rows: nothing was inserted yet"):
            remote.sample(3, timeout=0.01)
        with pytest.raises(BufferEmpty):
            remote.sample(3, timeout=0)
        drawn: list[Any] = []
        waiting = [
            threading.Thread(target=lambda: drawn.append(remote.sample(3, timeout=60)["rewards"].shape)),
            threading.Thread(target=lambda: drawn.append(remote.sample("windows", 4, timeout=60)[0]["token"].shape)),
        ]
        for thread in waiting:
            thread.start()
        eventually(lambda: len(server._visits._parking._parked) == 2)
        remote.insert(row(1, 0))  # by the same client, whose calls are not held up
        eventually(lambda: drawn == [(3,)])
        remote.batch_insert(rows(1, 1, 5))
        for thread in waiting:
            thread.join(60)
        assert drawn == [(3,), (4, 3, 2)]


def test_what_waits_ends_with_its_client(server: TrainerServer, buffer: ReplayBuffer) -> None:
    server._departures._grace = 0.05
    remote = ReplayBuffer.connect(f"{server.address}/steps", attach=False)
    failed: list[BaseException] = []

    def wait() -> None:
        try:
            remote.sample(1, timeout=60)
        except EdgeMLError as error:
            failed.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    eventually(lambda: len(server._visits._parking._parked) == 1)
    remote.close()
    thread.join(60)
    assert isinstance(failed[0], EdgeMLError)
    eventually(lambda: not server._visits._parking._parked)


def test_much_is_read_in_pieces(remote: RemoteBuffer, buffer: ReplayBuffer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeml_ipc.remote_buffer._PIECE_BYTES", 3 * remote._facts["row_bytes"])
    remote.batch_insert(rows(1, 0, 20))
    same(remote.read_since(4), buffer.read_since(4))
    same(remote.read_since(4, limit=7), buffer.read_since(4, limit=7))
    same(remote.read_since(19), (20, [], 0))
    same(remote.read_since(2, limit=0), (3, [], 0))


@pytest.mark.parametrize("ahead", [0, 3])
def test_batches_are_those_of_an_attached_process(server: TrainerServer, buffer: ReplayBuffer, ahead: int) -> None:
    buffer.batch_insert(rows(1, 0, 300))
    config: dict[str, Sampler] = {
        "observations": SequenceSampler(begin=-2, end=3),
        "goal": FutureSampler("exponential", lambda_=2.0, source="observations.state"),
        "token": LatestSampler(),
    }
    place = f"{server.address}/steps"
    with (
        ReplayBuffer.connect(place, seed=9, attach=False, ahead=ahead) as far,
        ReplayBuffer.connect(place, seed=9) as reached,
        ReplayBuffer.attach(buffer.fileno(), seed=9) as near,
    ):
        for one in (far, reached, near):
            one.register_sample_config("windows", config, (-1, 2))
        for _ in range(5):
            expected = near.sample(32, about=True)
            same(far.sample(32, about=True), expected)
            same(reached.sample(32, about=True), expected)
        for _ in range(5):
            expected = near.sample("windows", 16)
            same(far.sample("windows", 16), expected)
            same(reached.sample("windows", 16), expected)
        chosen = np.arange(7)
        same(far.sample("windows", 7, force_indices=chosen)[0]["token"], near.sample("windows", 7, chosen)[0]["token"])


def test_batches_are_views_or_copies(server: TrainerServer, buffer: ReplayBuffer) -> None:
    buffer.batch_insert(rows(1, 0, 50))
    with ReplayBuffer.connect(f"{server.address}/steps", attach=False) as remote:
        assert not remote.sample(2000)["observations"]["image"].flags.writeable
    with ReplayBuffer.connect(f"{server.address}/steps", attach=False, copy=True) as remote:
        assert remote.sample(2000)["observations"]["image"].flags.writeable


def test_configs_are_each_clients_own_and_transforms_run_here(remote: RemoteBuffer, server: TrainerServer) -> None:
    remote.batch_insert(rows(1, 0, 20))
    here = []

    def transform(data: dict[str, Any], mask: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        here.append(threading.current_thread())
        return {**data, "twice": 2 * data["rewards"]}, mask

    remote.register_sample_config("mine", {"rewards": LatestSampler()}, transform=transform)
    data, mask = remote.sample("mine", 4)
    same(data["twice"], 2 * data["rewards"])
    assert mask["rewards"].all()
    assert here == [threading.current_thread()]
    with (
        ReplayBuffer.connect(f"{server.address}/steps", attach=False) as other,
        pytest.raises(ValueError, match="no sample config is called 'mine'"),
    ):
        other.sample("mine", 4)


@pytest.mark.parametrize("ahead", [0, 2])
def test_priorities_and_every_sampler(server: TrainerServer, buffer: ReplayBuffer, ahead: int) -> None:
    buffer.batch_insert(rows(1, 0, 300))
    place = f"{server.address}/steps"
    priorities = PrioritySampler(beta=0.1)
    config: dict[str, Sampler] = {
        "target": NStepSampler(3, gamma=0.5, source="next_observations.state"),
        "token": LatestSampler(),
        "priority": priorities,
    }
    with (
        ReplayBuffer.connect(place, seed=9, attach=False, ahead=ahead) as far,
        ReplayBuffer.attach(buffer.fileno(), seed=9) as near,
    ):
        for one in (far, near):
            one.register_sample_config("replay", config, max_age_rows=200)
            one.register_sample_config("episodes", {"token": TrajectorySampler(9)})
        same(far.sample("episodes", 20), near.sample("episodes", 20))
        same(far.sample("replay", 20), near.sample("replay", 20))
        errors = np.linspace(0, 50, 20)
        data, _ = near.sample("replay", 20)
        far.sample("replay", 20)
        for one in (far, near):
            assert one.update_priorities("replay", data["priority"]["indices"], errors) == 20
        priorities.beta = 1.0
        for _ in range(ahead):
            near.sample("replay", 20), far.sample("replay", 20)  # those on their way were drawn before
        if not ahead:
            same(far.sample("replay", 20), near.sample("replay", 20))
        weights = far.sample("replay", 200)[0]["priority"]["importance"]
        assert weights.min() < 0.1
        with pytest.raises(IndexError):
            far.update_priorities("replay", np.array([-1]), np.array([1.0]))
        with pytest.raises(ValueError, match="PrioritySampler"):
            far.update_priorities("episodes", np.array([1]), np.array([1.0]))
        with pytest.raises(TypeError, match="max_agee"):
            far.register_sample_config("x", config, max_agee=3)


def test_batches_on_a_device(remote: RemoteBuffer) -> None:
    remote.batch_insert(rows(1, 0, 50))
    remote.register_sample_config("replay", {"token": LatestSampler(), "priority": PrioritySampler()})
    with remote.prefetch(4) as batches:
        assert next(batches)["rewards"].shape == (4,)
    with remote.prefetch(4, name="replay") as pairs:
        data, mask = next(pairs)
        assert mask["token"].shape == (4,)
        assert data["priority"]["indices"].dtype == np.int64
    with pytest.raises(ValueError, match="no sample config is called 'other'"):
        remote.prefetch(4, name="other")


def test_prefetch_waits_for_rows_and_is_closed_without_them(remote: RemoteBuffer) -> None:
    with remote.prefetch(4, timeout=30) as batches:
        with Background(next, batches) as waiting:
            remote.batch_insert(rows(1, 0, 50))
        assert waiting.get()["rewards"].shape == (4,)
    remote.register_sample_config("far", {"token": SequenceSampler(begin=0, end=90)}, sample_range=(0, 90))
    with remote.prefetch(4, name="far", timeout=600):
        pass  # closing does not wait until there is such a window
    with remote.prefetch(4, name="far", timeout=0.05) as batches, pytest.raises(TimeoutError):
        next(batches)


def test_an_insert_that_waits_for_the_rate_limiter_holds_up_nobody_else(address: str) -> None:
    limited = make(seed=1, samples_per_insert=1.0, slack_samples=20.0)
    with limited as buffer, TrainerServer(TrainerConfig(port_number=0), host=address) as server:
        server.register_data_store("steps", buffer)
        server.start(threaded=True)
        place = f"{server.address}/steps"
        with (
            ReplayBuffer.connect(place, attach=False, flow_timeout=30) as actor,
            ReplayBuffer.connect(place, attach=False) as learner,
        ):
            with Background(lambda: [actor.insert(row(1, number)) for number in range(60)]) as inserting:
                eventually(lambda: buffer.stats()["inserted"] >= 20)
                for _ in range(11):
                    learner.sample(4, timeout=10)
            inserting.get()
        assert buffer.stats()["inserted"] == 60
        late = ReplayBuffer.connect(place, attach=False, flow_timeout=0.1)
        with late, pytest.raises(TimeoutError, match=r"samples_per_insert is 1\.0"):
            late.batch_insert(rows(2, 0, 20))


def test_errors_arrive_as_what_they_are(remote: RemoteBuffer, server: TrainerServer) -> None:
    with pytest.raises(BufferEmpty, match=f"{server.address}/steps: cannot sample 3 rows: nothing was inserted yet"):
        remote.sample(3)
    with pytest.raises(ValueError, match="at least 1 row, got 0"):
        remote.sample(0)
    with pytest.raises(ValueError, match="missing"):
        remote.insert({"rewards": 1.0})
    with pytest.raises(TypeError):
        remote.insert({**row(1, 0), "rewards": "much"})
    with pytest.raises(ValueError, match="no stored field 'other'"):
        remote.register_sample_config("c", {"other": LatestSampler()})
    with pytest.raises(ValueError, match="from_id"):
        remote.read_since(-2)
    assert len(remote) == 0


def test_writers_run_out_as_they_do_nearby(address: str) -> None:
    with make(max_writers=2) as buffer, TrainerServer(TrainerConfig(port_number=0), host=address) as server:
        server.register_data_store("steps", buffer)
        server.start(threaded=True)
        with ReplayBuffer.connect(f"{server.address}/steps", attach=False) as remote:
            first, _ = remote.writer(), remote.writer()
            with pytest.raises(BufferFull, match="max_writers"):
                remote.writer()
            first.close()
            first.close()
            with remote.writer() as third:
                assert third.number == 3


def test_a_batch_that_is_too_large_is_refused_before_it_is_made(remote: RemoteBuffer) -> None:
    remote.batch_insert(rows(1, 0, 20))
    with pytest.raises(ValueError, match="more than the"):
        remote.sample(1 << 40)
    remote.register_sample_config("long", {"rewards": SequenceSampler(begin=0, end=1 << 40)})
    with pytest.raises(ValueError, match="more than the"):
        remote.sample("long", 1)


def test_samplers_of_ones_own_do_not_travel(remote: RemoteBuffer) -> None:
    class Mine(LatestSampler):
        pass

    with pytest.raises(TypeError, match="code does not travel"):
        remote.register_sample_config("c", {"rewards": Mine()})


def test_samplers_as_data() -> None:
    given: dict[str, Sampler] = {
        "a": LatestSampler("observations"),
        "b": SequenceSampler(begin=-1, end=4),
        "c": FutureSampler("exponential", max_future=3, lambda_=0.5, source="x"),
        "d": PrioritySampler(alpha=0.1),
        "e": NStepSampler(3, gamma=0.5, source="next_observations.state"),
        "f": TrajectorySampler(7),
    }
    built = build(describe(given))
    assert {field: type(sampler) for field, sampler in built.items()} == {f: type(s) for f, s in given.items()}
    assert {field: vars(sampler) for field, sampler in built.items()} == {f: vars(s) for f, s in given.items()}


@pytest.mark.parametrize(
    "described",
    [
        [],
        {"a": None},
        {"a": {"kind": "Popen"}},
        {"a": {"kind": "LatestSampler"}},
        {"a": {"kind": "LatestSampler", "source": ["x"]}},
        {"a": {"kind": "LatestSampler", "source": None, "more": 1}},
        {"a": {"kind": ["LatestSampler"], "source": None}},
        {1: {"kind": "LatestSampler", "source": None}},
        {"a": {"kind": "SequenceSampler", "squeeze": True, "begin": 0, "end": "x", "source": None}},
        {"a": {"kind": "SequenceSampler", "squeeze": True, "begin": 3, "end": 1, "source": None}},
    ],
    ids=repr,
)
def test_what_describes_no_sampler_is_an_error(described: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        build(described)


@pytest.mark.parametrize(
    ("method", "request_"),
    [
        ("sample", {}),
        ("sample", {"batch_size": "1", "about": False}),
        ("sample", {"batch_size": 1, "about": False, "self": 1}),
        ("sample", None),
        ("sample", {"batch_size": 1, "about": False, "seconds": "long"}),
        ("sample", {"batch_size": 1, "about": False, "seconds": 1e9}),
        ("insert", {"writer": [], "data": {}, "end_of_trajectory": False}),
        ("batch_insert", {"writer": 0, "batch": {"count": 1 << 30, "columns": {}, "kinds": []}}),
        ("batch_insert", {"writer": 0, "batch": {"items": [1, 2]}}),
        ("batch_insert", {"writer": 0, "batch": {"stacked": 3}}),
        ("register", {"name": ["x"], "samplers": {}, "sample_range": [0, 1], "options": {}}),
        ("register", {"name": "x", "samplers": {}, "sample_range": 5, "options": {}}),
        ("register", {"name": "x", "samplers": {}, "sample_range": [0, 1], "options": {"transform": [1]}}),
        ("register", {"name": "x", "samplers": {}, "sample_range": [0, 1], "options": []}),
        ("sample_config", {"name": "x", "batch_size": 1, "force_indices": "all", "betas": {}}),
        ("read_since", {"from_id": "0", "limit": 1}),
    ],
)
def test_malformed_requests_are_errors_of_the_client_alone(remote: RemoteBuffer, method: str, request_: Any) -> None:
    with pytest.raises((ValueError, TypeError, RemoteError)):
        remote._ask(method, request_)
    remote.insert(row(1, 0))
    assert len(remote) == 1


# --- writers and their ends -------------------------------------------------------------------------------------------------


def test_streams_never_mix(server: TrainerServer, buffer: ReplayBuffer) -> None:
    place = f"{server.address}/steps"
    with ReplayBuffer.connect(place, attach=False) as one, ReplayBuffer.connect(place, attach=False) as two:
        streams = [one, one.writer(), two, two.writer()]
        for number in range(60):
            for who, stream in enumerate(streams):
                stream.insert(row(who, number))
        two.register_sample_config("pairs", {"token": SequenceSampler(begin=0, end=4)}, (0, 4))
        token = two.sample("pairs", 500)[0]["token"]
    assert (token[:, :, 0] == token[:, :1, 0]).all()
    assert (np.diff(token[:, :, 1], axis=1) == 1).all()
    assert set(token[:, 0, 0]) == {0, 1, 2, 3}
    assert buffer.stats()["writers"] == 0


def flags_of(buffer: ReplayBuffer, who: int | None = None) -> list[int]:
    """Return the flags of the rows that `who` inserted, or all, in the order of their ids."""
    about = buffer.about
    mine = np.flatnonzero(about["writer"])
    mine = mine[np.argsort(about["sequence"][mine])]
    if who is not None:
        mine = mine[buffer.columns["token"][mine, 0] == who]
    return [int(flags) for flags in about["flags"][mine]]


def test_closing_a_writer_or_the_client_ends_open_episodes(server: TrainerServer, buffer: ReplayBuffer) -> None:
    with ReplayBuffer.connect(f"{server.address}/steps", attach=False) as remote:
        stream = remote.writer()
        stream.insert(row(2, 0))
        remote.insert(row(1, 0))
        stream.close()
        eventually(lambda: buffer.stats()["writers"] == 1)
        with pytest.raises(ConnectionClosed):
            stream.insert(row(2, 1))
        remote.end_trajectory()
        remote.batch_insert(rows(1, 1, 2))
    assert buffer.stats()["writers"] == 0
    remote.close()
    items = buffer.get_latest_data(-1)
    assert [int(item["token"][0]) for item in items] == [2, 1, 1, 1]
    assert flags_of(buffer) == [FIRST | CUT, FIRST | CUT, FIRST, CUT]
    with pytest.raises(ConnectionClosed):
        remote.sample(1)


def test_a_client_that_goes_away_is_noticed(server: TrainerServer, buffer: ReplayBuffer) -> None:
    server._departures._grace = 0.05
    remote = ReplayBuffer.connect(f"{server.address}/steps", attach=False)
    remote.insert(row(1, 0))
    assert buffer.stats()["writers"] == 1
    remote._client.close()  # as its process's end would
    eventually(lambda: buffer.stats()["writers"] == 0)


def test_a_link_that_breaks_ends_no_episode(server: TrainerServer, buffer: ReplayBuffer, remote: RemoteBuffer) -> None:
    for number in range(5):
        remote.insert(row(1, number))
        for session in server._server._sessions.values():
            session.connection.close()
        eventually(lambda: not server._server._sessions)
    assert flags_of(buffer) == [FIRST, 0, 0, 0, 0]


@pytest.mark.parametrize("ahead", [0, 2])
def test_a_client_that_was_given_up_begins_again(server: TrainerServer, buffer: ReplayBuffer, ahead: int) -> None:
    with ReplayBuffer.connect(f"{server.address}/steps", attach=False, ahead=ahead) as remote:
        remote.register_sample_config("c", {"rewards": LatestSampler()})
        stream = remote.writer()
        stream.batch_insert(rows(1, 0, 3))
        number = stream.number
        server._visits.close()
        stream.insert(row(1, 3))
        assert stream.number > number
        server._visits.close()
        assert remote.sample("c", 3)[0]["rewards"].shape == (3,)
        server._visits.close()
        assert remote.sample(5)["rewards"].shape == (5,)
        assert len(remote) == 4
    assert flags_of(buffer, 1) == [FIRST, 0, CUT, FIRST | CUT]


def test_departures() -> None:
    left = _departures.Departures(0.0)
    assert left.seconds_to_next() is None
    left.note(b"a")
    left.note(b"b")
    assert left.seconds_to_next() == 0.0
    assert left.due(lambda client: client == b"a") == [b"b"]
    assert left.due(lambda client: False) == []
    patient = _departures.Departures(1000.0)
    patient.note(b"a")
    assert patient.due(lambda client: False) == []
    assert 900 < (patient.seconds_to_next() or 0) <= 1000


def test_threads_share_a_remote_buffer(remote: RemoteBuffer) -> None:
    failed: list[BaseException] = []

    def work(who: int) -> None:
        try:
            with remote.writer() as stream:
                for number in range(30):
                    stream.insert(row(who, number))
                    remote.sample(3)
        except (EdgeMLError, ValueError) as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(who,)) for who in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failed == []
    assert len(remote) == 120
