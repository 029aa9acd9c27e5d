"""Uploads between processes: each item arrives exactly once, whichever side the store is on."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

from edgeml_ipc._deadline import Deadline
from edgeml_ipc.data.data_store import DataStoreBase
from edgeml_ipc.errors import ConnectionRefused, PeerDied, TimeoutError
from edgeml_ipc.testing import _store_children as children
from edgeml_ipc.testing._store_base import CAPACITY, StoreTests
from edgeml_ipc.testing._workers import PATIENCE_S, Background, Child
from edgeml_ipc.trainer import TrainerClient, TrainerServer, UpdateResult

_ROOM = 400
_LOCALHOST = "127.0.0.1"


def _client(address: str, store: DataStoreBase) -> TrainerClient:
    stores = {children.STORE: store}
    return TrainerClient("actor", address, children.CONFIG, data_stores=stores, timeout_ms=int(PATIENCE_S * 1000))


@contextlib.contextmanager
def _server(
    store: DataStoreBase, host: str = _LOCALHOST, data_callback: Callable[[str, dict[str, Any]], Any] | None = None
) -> Iterator[TrainerServer]:
    with TrainerServer(children.CONFIG, data_callback, host=host) as server:
        server.register_data_store(children.STORE, store)
        server.start(threaded=True)
        yield server


def _update_once_it_is_back(client: TrainerClient) -> UpdateResult:
    deadline = Deadline(PATIENCE_S)
    while True:
        try:
            return client.update()
        except (PeerDied, ConnectionRefused, TimeoutError):
            assert not deadline.expired, "the new server cannot be reached"


def _deliver(actor: Child, items: list[Any]) -> None:
    """Have a child upload these, and try again until an update succeeds."""
    deadline = Deadline(PATIENCE_S)
    answer = actor.ask(items)
    while isinstance(answer, str):  # the name of an error
        assert not deadline.expired, f"the upload ends in {answer} again and again"
        answer = actor.ask([])


class UploadTests(StoreTests):
    """A trainer's client here and its server in another process, or the other way round."""

    # ---- the store is the actor's

    def test_an_actors_store_is_uploaded_once(self) -> None:
        store = self.make_store(_ROOM)
        with Child(children.learn, _LOCALHOST) as learner:
            address = learner.hear()
            with _client(address, store) as client:
                assert client.update() == UpdateResult()
                store.batch_insert(self.items(range(10)))
                assert client.update() == UpdateResult(sent=10)
                assert client.update() == UpdateResult()
                store.insert(self.make_item(10))
                assert client.update() == UpdateResult(sent=1)
            with _client(address, store) as client:  # of an actor that connects anew
                store.insert(self.make_item(11))
                assert client.update() == UpdateResult(sent=1)
            assert self.values(learner.ask("content")) == list(range(12))
        assert self.content(store) == list(range(12))

    def test_an_actor_inserts_while_it_uploads(self) -> None:
        store = self.make_store(_ROOM)

        def insert() -> None:
            for value in range(_ROOM):
                store.insert(self.make_item(value))

        with Child(children.learn, _LOCALHOST) as learner, _client(learner.hear(), store) as client:
            sent = 0
            with Background(insert) as inserting:
                while sent < _ROOM and inserting.error is None:
                    sent += client.update().sent
            inserting.get()
            assert self.values(learner.ask("content")) == list(range(_ROOM))

    def test_what_an_actors_store_dropped_is_reported(self) -> None:
        store = self.filled(5)
        with Child(children.learn, _LOCALHOST) as learner, _client(learner.hear(), store) as client:
            assert client.update() == UpdateResult(sent=5)
            store.batch_insert(self.items(range(5, 3 * CAPACITY)))
            oldest = 3 * CAPACITY - len(store)
            assert client.update() == UpdateResult(sent=len(store), evicted=oldest - 5)
            assert self.values(learner.ask("content")) == [*range(5), *range(oldest, 3 * CAPACITY)]

    def test_a_new_learner_gets_what_the_actors_store_still_holds(self) -> None:
        store = self.make_store(CAPACITY)
        with contextlib.ExitStack() as stack:
            with Child(children.learn, _LOCALHOST) as learner:
                address = learner.hear()
                client = stack.enter_context(_client(address, store))
                for value in range(CAPACITY + 4):
                    store.insert(self.make_item(value))
                    client.update()
                assert self.values(learner.ask("content")) == list(range(CAPACITY + 4))
            learner = stack.enter_context(Child(children.learn, address))
            learner.hear()
            store.insert(self.make_item(CAPACITY + 4))
            held = self.content(store)
            assert _update_once_it_is_back(client).lost == CAPACITY + 5 - len(held)
            assert self.values(learner.ask("content")) == held

    # ---- the store is the learner's

    def test_a_learners_store_gets_each_item_once(self) -> None:
        store = self.make_store(_ROOM)
        with _server(store) as server, Child(children.act, server.address, "actor") as actor:
            assert actor.ask(self.items(range(10))) == (10, 0, 0)
            assert actor.ask([]) == (0, 0, 0)
            assert actor.ask(self.items(range(10, 200))) == (190, 0, 0)
            assert server.data_store(children.STORE) is store
        assert self.content(store) == list(range(200))
        assert store.latest_data_id() == 199

    def test_a_learners_store_takes_in_two_actors(self) -> None:
        store = self.make_store(_ROOM)
        with (
            _server(store) as server,
            Child(children.act, server.address, "one") as one,
            Child(children.act, server.address, "two") as two,
        ):
            for begin in range(0, 150, 50):
                for actor, first in ((one, begin), (two, 1000 + begin)):
                    actor.say(self.items(range(first, first + 50)))
                assert [actor.hear() for actor in (one, two)] == [(50, 0, 0)] * 2
        values = self.content(store)
        assert [value for value in values if value < 1000] == list(range(150))
        assert [value for value in values if value >= 1000] == list(range(1000, 1150))

    def test_an_upload_that_timed_out_is_not_inserted_twice(self) -> None:
        store = self.make_store(_ROOM)
        answered = threading.Event()

        def hold_back(_name: str, _payload: dict[str, Any]) -> None:
            assert answered.wait(PATIENCE_S)  # the items are in the store, and the actor does not hear of it

        with (
            _server(store, data_callback=hold_back) as server,
            Child(children.act, server.address, "actor", 0.3) as actor,
        ):
            assert actor.ask(self.items(range(20))) == "TimeoutError"
            answered.set()
            _deliver(actor, self.items(range(20, 25)))
        assert self.content(store) == list(range(25))

    def test_a_new_server_goes_on_with_the_learners_store(self) -> None:
        store = self.make_store(_ROOM)
        with contextlib.ExitStack() as stack:
            with _server(store) as server:
                actor = stack.enter_context(Child(children.act, server.address, "actor"))
                assert actor.ask(self.items(range(10))) == (10, 0, 0)
            stack.enter_context(_server(store, host=server.address))
            _deliver(actor, self.items(range(10, 15)))
        assert self.content(store) == list(range(15))

    def test_a_killed_actor_leaves_the_beginning_of_what_it_sent(self) -> None:
        store = self.make_store(_ROOM)
        enough = threading.Event()

        def count(_name: str, _payload: dict[str, Any]) -> None:
            if store.latest_data_id() >= 20:
                enough.set()

        with _server(store, data_callback=count) as server:
            with Child(children.act_until_killed, server.address, self.items(range(_ROOM))) as actor:
                assert enough.wait(PATIENCE_S)
                actor.kill()
            with Child(children.act, server.address, "another") as actor:  # its upload is served after what was on its way
                assert actor.ask(self.items(range(1000, 1005))) == (5, 0, 0)
        *of_the_first, a, b, c, d, e = self.content(store)
        assert len(of_the_first) > 20 or not self.drops_oldest
        assert of_the_first == list(range(of_the_first[0], of_the_first[0] + len(of_the_first)))
        assert [a, b, c, d, e] == list(range(1000, 1005))
