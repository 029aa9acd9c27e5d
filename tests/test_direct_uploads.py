"""Uploads into a buffer on shared memory: streams that never mix, and clients that write their rows themselves."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import gymnasium
import numpy as np
import pytest

from edgeml_ipc import _attachments, _direct, _uploads, trainer
from edgeml_ipc._deadline import Deadline
from edgeml_ipc.data import DataShape, QueuedDataStore, ReplayBuffer, SequenceSampler
from edgeml_ipc.data.limiter import RateLimiter
from edgeml_ipc.data.writer import Writer
from edgeml_ipc.errors import EdgeMLError, RemoteError, SegmentError, TimeoutError
from edgeml_ipc.trainer import TrainerClient, TrainerConfig, TrainerServer
from tests.conftest import eventually, new_address

pytestmark = pytest.mark.usefixtures("no_threads_left")

BOX = gymnasium.spaces.Box(-1e9, 1e9, (2,), np.float32)
CONFIG = TrainerConfig(port_number=0)
FIRST, LAST, CUT = 1, 2, 2 | 8


def make(capacity: int = 2000, **options: Any) -> ReplayBuffer:
    return ReplayBuffer(BOX, BOX, capacity, extra_columns=[DataShape("token", (2,), "int64")], **options)


def step(who: int, number: int, *, has_next: bool = True) -> dict[str, Any]:
    item = {"observations": np.full(2, number), "actions": np.full(2, who), "rewards": 1.0, "masks": 1.0}
    following = {"next_observations": np.full(2, number + 1)} if has_next else {}
    return {**item, **following, "token": np.array([who, number])}


def fill(queue: QueuedDataStore, who: int, begin: int, end: int, *, has_next: bool = True) -> None:
    for number in range(begin, end):
        queue.insert(step(who, number, has_next=has_next))


def tokens(items: Sequence[dict[str, Any]], who: int = 1) -> list[int]:
    return [int(item["token"][1]) for item in items if item["token"][0] == who]


def stored(buffer: ReplayBuffer, who: int = 1) -> list[int]:
    """Return the numbers of all rows of `who`, in the order of their ids, which can have gaps."""
    found: list[dict[str, Any]] = []
    next_id = 0
    while True:
        first_id, items, _ = buffer.read_since(next_id - 1, limit=1000)
        if not items:
            return tokens(found, who)
        found += items
        next_id = first_id + len(items)


class Learner:
    """A server with a buffer, that notes what its callback sees."""

    def __init__(self, address: str, buffer: ReplayBuffer) -> None:
        self.buffer = buffer
        self.seen: list[dict[str, Any]] = []
        self.calls = 0
        self.fails = False
        self.server = TrainerServer(CONFIG, self.note, host=address)
        self.server.register_data_store("steps", buffer)
        self.server._departures._grace = 0.05
        self.server.start(threaded=True)

    def note(self, name: str, payload: dict[str, Any]) -> None:
        self.calls += 1
        self.seen += payload["data"]
        if self.fails:
            raise OSError("the callback failed")

    def counters(self) -> dict[str, int]:
        counters: dict[str, int] = self.server.stats()["stores"]["steps"]
        return counters

    def actor(self, name: str, queue: QueuedDataStore) -> TrainerClient:
        return TrainerClient(name, self.server.address, CONFIG, data_stores={"steps": queue}, timeout_ms=20_000)


@pytest.fixture
def learner(address: str) -> Iterator[Learner]:
    with make() as buffer:
        learner = Learner(address, buffer)
        yield learner
        learner.server.stop()


@pytest.fixture
def near() -> Iterator[Learner]:
    with make() as buffer:
        learner = Learner(new_address("shm"), buffer)
        yield learner
        learner.server.stop()


def is_direct(client: TrainerClient) -> bool:
    return bool(client.stats()["stores"]["steps"]["direct"])


# --- streams ----------------------------------------------------------------------------------------------------------------


def test_actors_never_mix(learner: Learner) -> None:
    queues = [QueuedDataStore(1000) for _ in range(3)]
    with contextlib.ExitStack() as stack:
        actors = [stack.enter_context(learner.actor(f"actor{i}", queue)) for i, queue in enumerate(queues)]
        for begin in range(0, 200, 10):
            for who, (actor, queue) in enumerate(zip(actors, queues, strict=True)):
                fill(queue, who, begin, begin + 10)
                assert actor.update().sent == 10
            learner.buffer.insert(step(9, begin))
        assert {is_direct(actor) for actor in actors} == {actors[0].transport == "shm"}
    learner.buffer.register_sample_config("pairs", {"token": SequenceSampler(begin=0, end=5)}, (0, 5))
    drawn = learner.buffer.sample("pairs", 1000)[0]["token"]
    assert (drawn[:, :, 0] == drawn[:, :1, 0]).all()
    assert (np.diff(drawn[:, :, 1], axis=1)[drawn[:, 0, 0] != 9] == 1).all()
    for who in range(3):
        assert tokens(learner.seen, who) == list(range(200))
        assert stored(learner.buffer, who) == list(range(200))
    assert learner.counters()["inserted"] == 600


def test_an_episode_ends_with_its_client(learner: Learner) -> None:
    queue = QueuedDataStore(100)
    fill(queue, 1, 0, 3)
    with learner.actor("actor", queue) as actor:
        actor.update()
    eventually(lambda: learner.buffer.stats()["writers"] == 0)
    assert learner.buffer.about["flags"][learner.buffer.rows()].tolist() == [FIRST, 0, CUT]
    fill(queue, 1, 3, 5)
    with learner.actor("actor", queue) as actor:  # another client of the same queue
        assert actor.update().sent == 2
    assert tokens(learner.seen) == stored(learner.buffer) == [0, 1, 2, 3, 4]


def test_a_step_that_waits_for_the_next_is_seen_when_it_is_there(learner: Learner) -> None:
    queue = QueuedDataStore(100)
    with learner.actor("actor", queue) as actor:
        fill(queue, 1, 0, 3, has_next=False)
        assert actor.update().sent == 3
        assert tokens(learner.seen) == [0, 1]
        fill(queue, 1, 3, 5, has_next=False)
        actor.update()
        assert tokens(learner.seen) == [0, 1, 2, 3]
    eventually(lambda: learner.buffer.stats()["writers"] == 0)
    fill(queue, 1, 5, 6)
    with learner.actor("actor", queue) as actor:  # the step that waited was dropped with its episode, and comes again
        assert actor.update().sent == 2
    assert tokens(learner.seen) == stored(learner.buffer) == [0, 1, 2, 3, 4, 5]


def test_what_a_full_queue_dropped_is_a_gap(learner: Learner) -> None:
    queue = QueuedDataStore(10)
    with learner.actor("actor", queue) as actor:
        fill(queue, 1, 0, 5)
        actor.update()
        fill(queue, 1, 5, 30)
        result = actor.update()
        assert (result.sent, result.evicted, result.lost) == (10, 15, 0)
        fill(queue, 1, 30, 31)
        actor.update()
    expected = [*range(5), *range(20, 31)]
    assert tokens(learner.seen) == stored(learner.buffer) == expected
    flags = learner.buffer.about["flags"][learner.buffer.rows()].tolist()
    assert flags == [FIRST, 0, 0, 0, CUT, FIRST, *[0] * 9, flags[-1]]
    assert learner.counters()["evicted_by_clients"] == 15


def test_a_step_that_does_not_fit_is_an_error_and_goes_nowhere(learner: Learner) -> None:
    queue = QueuedDataStore(10)
    with learner.actor("actor", queue) as actor:
        fill(queue, 1, 0, 2)
        queue.insert({"observations": "nothing"})
        with pytest.raises(RemoteError) as caught:
            actor.update()
        assert caught.value.remote_type in ("ValueError", "TypeError")
        assert learner.seen == []


def test_a_callback_that_raises_is_told_and_loses_nothing(learner: Learner) -> None:
    queue = QueuedDataStore(100)
    with learner.actor("actor", queue) as actor:
        fill(queue, 1, 0, 5)
        learner.fails = True
        with pytest.raises(RemoteError, match="the callback failed"):
            actor.update()
        learner.fails = False
        fill(queue, 1, 5, 7)
        actor.update()
    assert tokens(learner.seen) == stored(learner.buffer) == list(range(7))


def test_a_rate_limiter_is_waited_for(learner: Learner, monkeypatch: pytest.MonkeyPatch) -> None:
    insert, allowed, refused = Writer.batch_insert, [0], [0]

    def limited(writer: Writer, batch: Any) -> None:
        if not allowed[0]:
            refused[0] += 1
            raise TimeoutError("the learner must sample more")
        allowed[0] -= 1
        insert(writer, batch)

    class UntilRefused(Deadline):
        """Over when the limiter has refused twice, however long the machine takes for that."""

        def remaining(self) -> float:
            return 20.0 if refused[0] < 2 else 0.0

    monkeypatch.setattr(Writer, "batch_insert", limited)
    monkeypatch.setattr(trainer, "Deadline", UntilRefused)
    queue = QueuedDataStore(5000)
    with learner.actor("actor", queue) as actor:
        fill(queue, 1, 0, 1500)
        with pytest.raises(TimeoutError, match="items 0 to 1499 are not yet sent: the learner must sample more"):
            actor.update()
        allowed[0], refused[0] = 1, 0
        with pytest.raises(TimeoutError, match="items 1024 to 1499 are not yet sent: the learner must sample more"):
            actor.update()
        allowed[0], refused[0] = 1, 0
        assert actor.update().sent == 1500
    assert tokens(learner.seen) == stored(learner.buffer) == list(range(1500))


def test_why_a_store_takes_no_more_is_told_also_if_its_last_answer_is_late(
    learner: Learner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_uploads, "direct_writes", lambda *_: None)
    insert, refused, go_on = Writer.batch_insert, threading.Event(), threading.Event()
    left = iter([0.1, 0.1])  # after the refusal: for the pause, for the call that is not answered

    def limited(writer: Writer, batch: Any) -> None:
        if not refused.is_set():
            refused.set()
            raise TimeoutError("the learner must sample more")
        assert go_on.wait(60)
        insert(writer, batch)

    class Scripted(Deadline):
        def remaining(self) -> float:
            return next(left, 0.0) if refused.is_set() else 20.0

    monkeypatch.setattr(Writer, "batch_insert", limited)
    queue = QueuedDataStore(100)
    fill(queue, 1, 0, 5)
    with learner.actor("actor", queue) as actor:
        try:
            with monkeypatch.context() as patched:
                patched.setattr(trainer, "Deadline", Scripted)
                with pytest.raises(TimeoutError, match="items 0 to 4 are not yet sent: the learner must sample more") as caught:
                    actor.update()
        finally:
            go_on.set()
        assert "no reply to 'upload'" in str(caught.value.__cause__)
        assert actor.update().sent == 5
    assert tokens(learner.seen) == stored(learner.buffer) == list(range(5))


def test_the_rate_of_a_buffer_holds_up_its_uploads_and_not_the_server(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wait, refused, enough = RateLimiter.await_insert, [0], threading.Event()

    def counted(limiter: RateLimiter, rows: int, timeout: float) -> None:
        assert timeout == 0.0, "this would hold up the server, or the client past its deadline"
        try:
            wait(limiter, rows, timeout)
        except TimeoutError:
            refused[0] += 1
            raise

    class UntilRefused(Deadline):
        def remaining(self) -> float:
            return 20.0 if refused[0] < 2 else 0.0

    def learn(buffer: ReplayBuffer) -> None:
        while not enough.is_set():
            with contextlib.suppress(TimeoutError):
                buffer.sample(10, timeout=0.01)

    monkeypatch.setattr(RateLimiter, "await_insert", counted)
    with make(samples_per_insert=1.0, slack_samples=50, seed=0) as buffer:
        learner, queue = Learner(address, buffer), QueuedDataStore(1000)
        with learner.actor("actor", queue) as actor:
            fill(queue, 1, 0, 200)
            with monkeypatch.context() as patched:
                patched.setattr(trainer, "Deadline", UntilRefused)
                wanted = "items 50 to 199 are not yet sent: cannot insert 50 rows: .* for the learner to sample"
                with pytest.raises(TimeoutError, match=wanted):
                    actor.update()
            assert tokens(learner.seen) == list(range(50))
            learning = threading.Thread(target=learn, args=(buffer,))
            learning.start()
            try:
                assert actor.update().sent == 200
            finally:
                enough.set()
                learning.join()
            near = is_direct(actor)
        assert near == (actor.transport == "shm")
        assert tokens(learner.seen) == stored(buffer) == list(range(200))
        assert (learner.counters()["inserted"], learner.counters()["direct"]) == (200, 200 if near else 0)
        assert buffer.stats()["granted_inserts"] == 200
        learner.server.stop()


def test_links_cut_under_uploads(learner: Learner) -> None:
    queue = QueuedDataStore(10_000)
    with learner.actor("actor", queue) as actor:
        for begin in range(0, 500, 50):
            fill(queue, 1, begin, begin + 50)
            assert actor.update().sent == 50
            for session in learner.server._server._sessions.values():
                session.connection.close()
    assert tokens(learner.seen) == stored(learner.buffer) == list(range(500))


def test_a_new_server_with_the_same_buffer_goes_on(address: str) -> None:
    with make() as buffer:
        first = Learner(address, buffer)
        queue = QueuedDataStore(1000)
        with first.actor("actor", queue) as actor:
            fill(queue, 1, 0, 10)
            actor.update()
            first.server.stop()
            second = Learner(first.server.address, buffer)
            fill(queue, 1, 10, 15)
            with contextlib.suppress(EdgeMLError):  # it may find the link dead only after it sent
                actor.update()
            fill(queue, 1, 15, 18)
            actor.update()
        second.server.stop()
        assert stored(buffer) == list(range(18))
        assert tokens(first.seen) == list(range(10))
        assert tokens(second.seen) == list(range(10, 18))


def test_a_new_server_with_a_new_buffer_gets_what_is_held(address: str) -> None:
    with make() as old, make() as new:
        first = Learner(address, old)
        queue = QueuedDataStore(8)
        with first.actor("actor", queue) as actor:
            for begin in (0, 6):
                fill(queue, 1, begin, begin + 6)
                actor.update()
            first.server.stop()
            second = Learner(first.server.address, new)
            fill(queue, 1, 12, 14)
            with contextlib.suppress(EdgeMLError):
                actor.update()
            actor.update()
            assert actor.stats()["stores"]["steps"]["lost"] == 6
        second.server.stop()
        assert stored(new) == tokens(second.seen) == list(range(6, 14))


def test_a_cursor_that_went_back_is_followed(near: Learner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_uploads, "direct_writes", lambda *_: None)
    queue = QueuedDataStore(6)
    with near.actor("actor", queue) as actor:
        uploader = actor._uploaders["steps"]
        fill(queue, 1, 0, 8)
        assert actor.update().evicted == 2
        fill(queue, 1, 8, 10)
        actor.update()
        uploader._go_back(3)  # the queue holds 4 to 9
        assert (uploader.next_id, uploader.lost) == (4, 1)
        uploader._go_back(1)  # 1 was evicted, and 3 was lost already
        assert (uploader.next_id, uploader.lost) == (4, 2)
        uploader._go_back(1)
        assert (uploader.next_id, uploader.lost, uploader.evicted) == (4, 2, 2)


# --- direct -----------------------------------------------------------------------------------------------------------------


def test_what_was_written_and_not_announced_is_announced_once(near: Learner) -> None:
    queue = QueuedDataStore(100)
    with near.actor("actor", queue) as actor:
        fill(queue, 1, 0, 4)
        actor.update()
        direct = actor._uploaders["steps"]._direct
        assert direct is not None
        direct.insert(4, [step(1, number) for number in range(4, 9)])  # as if killed before the notice
        assert tokens(near.seen) == list(range(4))
        actor._client.close()
        eventually(lambda: len(near.seen) == 9)
        direct.close()
    assert tokens(near.seen) == list(range(9))
    assert near.counters() == {
        "inserted": 9,
        "repeated": 0,
        "evicted_by_clients": 0,
        "direct": 9,
        "held": 9,
    }


def test_what_was_not_announced_comes_with_the_next_contact(near: Learner) -> None:
    queue = QueuedDataStore(100)
    with near.actor("actor", queue) as actor:
        fill(queue, 1, 0, 4)
        actor.update()
        uploader = actor._uploaders["steps"]
        assert uploader._direct is not None
        fill(queue, 1, 4, 9)
        uploader._direct.insert(4, queue.get_latest_data(3))
        uploader._learner_store = None  # as after an error
        assert actor.update().sent == 5
        assert tokens(near.seen) == list(range(9))
        assert near.calls == 2


def test_a_client_that_dies_after_a_gap_is_announced_too(near: Learner, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = QueuedDataStore(10)
    with near.actor("actor", queue) as actor:
        fill(queue, 1, 0, 5)
        actor.update()
        direct = actor._uploaders["steps"]._direct
        assert direct is not None
        insert, number = direct.insert, direct.number

        def insert_and_die(first_id: int, items: list[Any]) -> None:
            insert(first_id, items)
            actor._client.close()

        monkeypatch.setattr(direct, "insert", insert_and_die)
        fill(queue, 1, 5, 25)
        with pytest.raises(EdgeMLError):
            actor.update()
        assert direct.number > number
        eventually(lambda: tokens(near.seen) == [*range(5), *range(15, 25)])


def test_nothing_is_read_for_nobody() -> None:
    with make() as buffer:
        news = buffer.news()
        buffer.insert(step(1, 0))
        count, items = news.of(1)
        assert (count, items._items) == (1, None)
        assert tokens(items) == [0]
        assert len(items) == len(items[:]) == 1
        assert news.of(1)[0] == news.of(77)[0] == 0


def test_news_begin_with_what_comes_after() -> None:
    with make(100, chunk_rows=5) as buffer, buffer.writer() as one, buffer.writer() as two:
        one.batch_insert([step(1, number) for number in range(7)])
        news = buffer.news()
        two.batch_insert([step(2, number) for number in range(7)])
        one.batch_insert([step(1, number) for number in range(7, 20)])
        assert tokens(news.of(one.number)[1], 1) == list(range(7, 20))
        assert tokens(news.of(two.number)[1], 2) == list(range(7))
        count, items = news.of(one.number)
        assert (count, list(items)) == (0, [])
        one.batch_insert([step(1, number) for number in range(20, 25)])
        count, late = news.of(one.number)
        one.batch_insert([step(1, number) for number in range(25, 300)])
        assert count == 5
        assert tokens(late, 1) == []  # overwritten before they were looked at


@pytest.mark.parametrize("kind", [SegmentError, "full"])
def test_what_cannot_be_attached_is_uploaded(kind: Any, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    def refuse(offer: Any, attach: Any) -> Any:
        raise kind("not from here")

    with make(max_writers=64 if kind is SegmentError else 1) as buffer:
        learner = Learner(new_address("shm"), buffer)
        if kind is SegmentError:
            monkeypatch.setattr(_direct, "attach", refuse)
            held: Any = contextlib.nullcontext()
        else:
            held = buffer.writer()
        queue = QueuedDataStore(100)
        with learner.actor("actor", queue) as actor, caplog.at_level(logging.WARNING, "edgeml_ipc"):
            with held:
                fill(queue, 1, 0, 5)
                with contextlib.suppress(RemoteError):  # the server finds no place for a writer either
                    actor.update()
            for begin in (5, 10):
                fill(queue, 1, begin, begin + 5)
                actor._uploaders["steps"]._learner_store = None
                actor.update()
            assert not is_direct(actor)
        learner.server.stop()
        assert caplog.text.count("uploading by messages, because") == 1
        assert tokens(learner.seen) == stored(buffer) == list(range(15))
        assert buffer.about["flags"][buffer.rows()].tolist() == [FIRST, *[0] * 13, CUT]


def test_notices_of_others_are_refused(near: Learner) -> None:
    offer = _attachments.offer_of(near.buffer)
    assert offer is not None
    names = {"store": "steps", "client": "x", "incarnation": b"x" * 16, "evicted": 0}
    with near.actor("actor", QueuedDataStore(1)) as actor:
        call = actor._client.call
        assert call("announce", {**names, "learner_store": b"0" * 16, "writer": 1}) is False
        assert call("announce", {**names, "learner_store": near.buffer.incarnation, "writer": "1"}) is False
        assert call("announce", {**names, "learner_store": near.buffer.incarnation, "writer": 10**30}) is True
        for wrong in ({"store": "other"}, {"evicted": "many"}):
            with pytest.raises(RemoteError):
                call("announce", {**names, "learner_store": near.buffer.incarnation, "writer": 1, **wrong})
    assert near.calls == 0
