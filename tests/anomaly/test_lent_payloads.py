"""Calls over tcp send from the caller's own arrays: the server never sees what the caller does to them later."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from edgeml_ipc.errors import ConnectionClosed, TimeoutError
from edgeml_ipc.service import Client, Server
from edgeml_ipc.testing._workers import Background
from tests.conftest import eventually
from tests.narrow_link import NarrowLink
from tests.service_processes import CONFIG

pytestmark = pytest.mark.usefixtures("no_threads_left")

LARGE_BYTES = 8 << 20
SHORT_SECONDS = 0.3


class Witness:
    """A server that notes the least and the greatest byte of every request, and answers with an array that it uses again."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []
        self._answer = np.zeros(1 << 20, np.uint8)
        handlers = {"see": self._see}
        self.server = Server("tcp://127.0.0.1:0", service="test", config=CONFIG, handlers=handlers)
        self.server.start(threaded=True)

    def _see(self, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        self.seen.append((int(array.min()), int(array.max())))
        self._answer[:] = array[0]
        return self._answer


@pytest.fixture
def witness() -> Iterator[Witness]:
    witness = Witness()
    with witness.server:
        yield witness


@pytest.fixture
def link(witness: Witness) -> Iterator[NarrowLink]:
    with NarrowLink(witness.server.port) as link:
        yield link


@pytest.fixture
def client(link: NarrowLink) -> Iterator[Client]:
    with Client(link.address, service="test", config=CONFIG, timeout=20) as client:
        yield client


def test_what_changes_after_a_timeout_never_arrives(witness: Witness, link: NarrowLink, client: Client) -> None:
    array = np.full(LARGE_BYTES, 1, np.uint8)
    assert client.call("see", array)[0] == 1
    link.stop()
    array[:] = 2
    with pytest.raises(TimeoutError):
        client.call("see", array, timeout=SHORT_SECONDS)
    array[:] = 3
    link.go_on()
    array[:] = 4
    assert client.call("see", array)[0] == 4
    assert witness.seen == [(1, 1), (4, 4)]
    assert client.stats()["reconnects"] == 1


def test_what_had_left_before_a_timeout_is_executed_as_it_was(witness: Witness, client: Client) -> None:
    array = np.full(LARGE_BYTES, 1, np.uint8)
    for number in range(1, 20):
        array[:] = number
        try:
            client.call("see", array, timeout=0.0005 * number)
        except TimeoutError:
            array[:] = 255
    array[:] = 20
    client.call("see", array)
    assert all(least == greatest for least, greatest in witness.seen)
    assert (255, 255) not in witness.seen
    assert [least for least, _ in witness.seen] == sorted({least for least, _ in witness.seen})


def test_a_request_that_is_cut_off_on_its_way_is_sent_again_as_it_was(
    witness: Witness, link: NarrowLink, client: Client
) -> None:
    array = np.full(LARGE_BYTES, 1, np.uint8)
    client.call("see", array)
    link.stop()
    array[:] = 2
    with Background(client.call, "see", array) as calling:
        eventually(lambda: client._last_link.connection.stats()["messages_sent"] == 2)
        link.cut()
    assert calling.get()[0] == 2
    assert witness.seen == [(1, 1), (2, 2)]
    assert client.stats()["retries"] == 1


def test_what_changes_after_the_client_was_closed_never_arrives(witness: Witness, link: NarrowLink, client: Client) -> None:
    array = np.full(LARGE_BYTES, 1, np.uint8)
    client.call("see", array)
    link.stop()

    array[:] = 2
    with Background(client.call, "see", array) as calling:
        eventually(lambda: client._last_link.connection.stats()["messages_sent"] == 2)
        with Background(client.close) as closing:  # it waits a second for what was sent to leave
            calling.join()
            array[:] = 3
            link.go_on()
    closing.get()
    with pytest.raises(ConnectionClosed):
        calling.get()
    eventually(lambda: not witness.server.stats()["sessions"])
    assert witness.seen == [(1, 1)]


def test_what_was_submitted_may_change_at_once(witness: Witness, client: Client) -> None:
    array = np.full(LARGE_BYTES, 0, np.uint8)
    futures = []
    for number in range(1, 7):
        array[:] = number
        futures.append(client.submit("see", array))
        array[:] = 255
    answers = [future.result(20) for future in futures]  # of an array that the server has filled anew for each
    assert [(int(answer.min()), int(answer.max())) for answer in answers] == [(n, n) for n in range(1, 7)]
    assert witness.seen == [(n, n) for n in range(1, 7)]
