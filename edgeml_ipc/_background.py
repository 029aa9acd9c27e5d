"""A client's second lane: futures, subscriptions and callbacks, on one thread with a connection of its own.

The thread and the connection come with the first use. While there is something to wait for, a connection that breaks is made
anew: requests without a reply are sent again to the same life of the server, and fail if it is another one.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from time import monotonic
from typing import Any, Final

from edgeml_ipc._dial import Dialer, Link, Pauses
from edgeml_ipc._outgoing import Outgoing
from edgeml_ipc._relay import RelayedDialer
from edgeml_ipc._replies import hold
from edgeml_ipc.codec.decoder import decode
from edgeml_ipc.errors import (
    BufferFull,
    CodecError,
    ConnectionClosed,
    EdgeMLError,
    IncompatiblePeer,
    PeerDied,
    TimeoutError,
    TransportUnavailable,
)
from edgeml_ipc.protocol import (
    ACK,
    BACKGROUND_LANE,
    ENVELOPE,
    ERROR,
    MAGIC,
    PUBLISH,
    REPLY,
    REQUEST,
    ProtocolViolation,
    failure_error,
    open_envelope,
)
from edgeml_ipc.transports.base import Buffer

logger = logging.getLogger("edgeml_ipc")

TOPIC: Final = 0
MAX_OUTSTANDING: Final = 256
_STOP_SECONDS: Final = 5.0
# How long the thread waits for a message before it looks at the deadlines of futures: how late a future may time out.
_LOOK_EVERY_SECONDS: Final = 0.25
# The same for a client without futures so far: how late its first one may time out.
_LOOK_IDLE_SECONDS: Final = 1.0
_MAX_FRUITLESS_CONNECTIONS: Final = 3
_ENDED: Final = (PeerDied, ConnectionClosed, IncompatiblePeer)  # what says that a connection is of no more use

Callback = Callable[[Any, int], None]


class _Request:
    """A request whose future is not done. `sent_to` is the server's incarnation, None before it was sent."""

    __slots__ = ("body", "end", "future", "method", "seconds", "sent_to", "sequence")

    def __init__(self, sequence: int, method: str, body: list[Buffer], seconds: float, start: float) -> None:
        self.sequence = sequence
        self.method = method
        self.body = body
        self.seconds = seconds
        self.end = start + seconds
        self.sent_to: bytes | None = None
        self.future: Future[Any] = Future()
        self.future.set_running_or_notify_cancel()  # a request that was sent can't be taken back


class Background:
    """See the module. Any thread may call the public methods."""

    def __init__(self, dialer: Dialer | RelayedDialer, outgoing: Outgoing, *, copy: bool, connect_seconds: float) -> None:
        self._dialer = dialer
        self._outgoing = outgoing
        self._copy = copy
        self._connect_seconds = connect_seconds
        self._sending = threading.Lock()  # sequences go out in order; taken before _changed
        self._changed = threading.Condition()  # guards what follows
        self._requests: dict[int, _Request] = {}  # in the order of their sequences
        self._callbacks: list[Callback] = []
        self._link: Link | None = None
        self._subscribed = False  # whether _link was made with the topic
        self._thread: threading.Thread | None = None
        self._sequence = 0
        self._futures_used = False
        self._closing = threading.Event()
        self._taken_from: bytes | None = None
        self.taken_version = 0
        self._submitted = self._received = self._skipped = self._callback_errors = 0
        self._reconnects = self._timeouts = self._resent = self._undecodable = self._answers = 0
        self._transport = ""  # of the newest link

    # --- called by users' threads ---------------------------------------------------------------------------------------

    def submit(self, method: str, body: list[Buffer], seconds: float) -> Future[Any]:
        start = monotonic()
        if not self._sending.acquire(timeout=seconds):
            raise TimeoutError(f"{self._dialer.address}: requests of other threads took all of the {seconds:g} s of {method!r}")
        try:
            with self._changed:
                self._start()
                if len(self._requests) >= MAX_OUTSTANDING:
                    raise BufferFull(f"{self._dialer.address}: {MAX_OUTSTANDING} requests are outstanding; await some of them")
                self._sequence += 1
                request = _Request(self._sequence, method, hold(body)[0], seconds, start)
                self._requests[request.sequence] = request
                self._submitted += 1
                self._futures_used = True
                link = self._link
                self._changed.notify_all()
            if link is not None:
                try:
                    self._send(link, request)
                except _ENDED:
                    pass  # the thread notices too, and sends it over the next connection
                except Exception:
                    with self._changed:
                        self._requests.pop(request.sequence, None)
                    raise
        finally:
            self._sending.release()
        return request.future

    def subscribe(self, callback: Callback) -> None:
        with self._changed:
            self._start()
            self._callbacks.append(callback)
            if self._link is not None and not self._subscribed:
                self._link.connection.close()  # topics are chosen when connecting: the thread connects anew
            self._changed.notify_all()

    def lag(self, other: Link | None) -> int:
        """Return the versions published and not taken, as far as this lane's link and `other` know."""
        links = [link for link in (self._link, other) if link and self._taken_from in (None, link.incarnation)]
        return max([0, *(link.newest_version - self.taken_version for link in links)])

    def close(self) -> None:
        self._closing.set()
        with self._changed:
            thread, link = self._thread, self._link
            self._changed.notify_all()
        if link is not None:
            link.connection.close()
        if thread is not None and thread is not threading.current_thread():
            thread.join(_STOP_SECONDS)
            if thread.is_alive():
                logger.warning("%s: a callback runs for more than %g s; leaving it", self._dialer.address, _STOP_SECONDS)

    def stats(self) -> dict[str, Any]:
        with self._changed:
            outstanding, link = len(self._requests), self._link
        return {
            "submitted": self._submitted,
            "outstanding": outstanding,
            "resent": self._resent,
            "future_timeouts": self._timeouts,
            "versions_received": self._received,
            "versions_skipped": self._skipped,
            "version": self.taken_version,
            "versions_undecodable": self._undecodable,
            "callback_errors": self._callback_errors,
            "background_reconnects": self._reconnects,
            "background_transport": self._transport,
            "background_connection": link.connection.stats() if link is not None else {},
        }

    def _start(self) -> None:
        if self._closing.is_set():
            raise ConnectionClosed(f"{self._dialer.address}: this client was closed")
        if self._thread is None:
            name = f"edgeml_ipc-{self._dialer.service}-client"
            self._thread = threading.Thread(target=self._run, name=name, daemon=True)
            self._thread.start()

    def _send(self, link: Link, request: _Request) -> None:
        """Send a request. Called with `_sending` held."""
        number = link.methods.get(request.method)
        if number is None:
            known = sorted(link.methods)
            raise ValueError(f"{self._dialer.address}: the server has no method {request.method!r}; it has {known}")
        with self._changed:
            oldest = next(iter(self._requests), request.sequence)
        envelope = ENVELOPE.pack(MAGIC, REQUEST, 0, number, request.sequence, oldest)
        body = self._outgoing.over(link.connection.transport, request.body)
        link.connection.send([envelope, *body], max(0.0, request.end - monotonic()))
        request.sent_to = link.incarnation

    # --- the thread -----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        pauses = Pauses()
        failed_with: type[Exception] | None = None
        connected_before = False
        fruitless = 0  # connections in a row that ended without an answer to any request
        try:
            while self._wait_until_wanted():
                with self._changed:
                    topics = (TOPIC,) if self._callbacks else ()
                try:
                    link = self._dialer.dial(BACKGROUND_LANE, topics, self._connect_seconds)
                except (EdgeMLError, OSError) as error:
                    if type(error) is not failed_with:
                        failed_with = type(error)
                        logger.warning("background connection: %s; trying again", error)
                    self._fail_all(error if isinstance(error, EdgeMLError) else self._translated(error))
                    self._closing.wait(pauses.next())
                    continue
                failed_with = None
                self._transport = link.connection.transport
                self._reconnects += connected_before
                connected_before = True
                answers, received = self._answers, self._received
                try:
                    self._use(link, subscribed=bool(topics))
                finally:
                    with self._changed:
                        self._link = None
                    link.connection.close()
                fruitless = fruitless + 1 if self._answers == answers and self._requests else 0
                if fruitless >= _MAX_FRUITLESS_CONNECTIONS:
                    fruitless = 0
                    self._fail_all(PeerDied(f"it broke {_MAX_FRUITLESS_CONNECTIONS} times; the server may refuse its size"))
                if self._answers == answers and self._received == received:
                    self._closing.wait(pauses.next())
                else:
                    pauses = Pauses()
        finally:
            with self._changed:
                if not self._closing.is_set():
                    self._thread = None  # it ends by a defect: the next use starts another
            self._fail_all(ConnectionClosed(f"{self._dialer.address}: this client's background thread ended"))

    def _translated(self, error: OSError) -> EdgeMLError:
        translated = TransportUnavailable(f"{self._dialer.address}: {type(error).__name__}: {error}")
        translated.__cause__ = error
        return translated

    def _wait_until_wanted(self) -> bool:
        """Wait until there is something to connect for; return False when closing."""
        with self._changed:
            self._changed.wait_for(lambda: self._closing.is_set() or self._requests or self._callbacks)
            return not self._closing.is_set()

    def _fail_all(self, error: EdgeMLError) -> None:
        """End the requests: those that were sent with an unknown outcome, the others with `error`."""
        with self._changed:
            requests, self._requests = list(self._requests.values()), {}
        for request in requests:
            if request.sent_to is None:
                self._complete(request, error)
            else:
                message = f"{self._dialer.address}: the connection ended with {request.method!r} in flight ({error})"
                died = PeerDied(message, outcome_unknown=True)
                died.__cause__ = error
                self._complete(request, died)

    def _use(self, link: Link, *, subscribed: bool) -> None:
        """Receive from a new connection until it ends."""
        try:
            if not self._take_over(link, subscribed):
                return
            while not self._closing.is_set():
                with suppress(TimeoutError):  # the message gets no name: one would keep its memory in use during the next wait
                    self._take(link, link.connection.recv(_LOOK_EVERY_SECONDS if self._futures_used else _LOOK_IDLE_SECONDS))
                self._expire()
        except _ENDED as error:
            logger.debug("%s: background connection ended: %s", self._dialer.address, error)
        except ProtocolViolation as error:
            logger.warning("%s: closing the connection to a server that sent %s", self._dialer.address, error)
        except EdgeMLError as error:
            logger.warning("%s: background connection ended: %s: %s", self._dialer.address, type(error).__name__, error)

    def _take_over(self, link: Link, subscribed: bool) -> bool:
        """Send over the new connection what has no reply yet; return False if it must be made anew."""
        self._expire()
        with self._changed:
            orphans = [r for r in self._requests.values() if r.sent_to not in (None, link.incarnation)]
        for request in orphans:
            place = self._dialer.address
            message = f"{place}: the server ended with {request.method!r} in flight; another took its place"
            self._finish(request.sequence, PeerDied(message, outcome_unknown=True))
        failed: list[tuple[_Request, Exception]] = []
        try:
            return self._send_all(link, subscribed, failed)
        finally:  # with no lock held: what waits for a future may submit the next request
            for request, error in failed:
                self._finish(request.sequence, error)

    def _send_all(self, link: Link, subscribed: bool, failed: list[tuple[_Request, Exception]]) -> bool:
        with self._sending:
            with self._changed:
                requests = list(self._requests.values())
            for request in requests:
                self._resent += request.sent_to is not None
                try:
                    self._send(link, request)
                except _ENDED:
                    raise
                except (EdgeMLError, ValueError) as error:
                    failed.append((request, error))
            with self._changed:
                self._link = link
                self._subscribed = subscribed
                if bool(self._callbacks) != subscribed:
                    return False
        if subscribed:
            self._acknowledge(link, 0)
        return True

    def _take(self, link: Link, parts: list[Buffer]) -> None:
        kind, _, sequence, number = open_envelope(parts[0])
        if kind == PUBLISH:
            self._take_version(link, number, parts)
        elif kind in (REPLY, ERROR):
            self._answers += 1
            link.newest_version = max(link.newest_version, number)
            try:
                if kind == ERROR:
                    raise failure_error(parts[1] if len(parts) > 1 else b"", self._dialer.address)
                result = decode(parts, 1, self._copy)
            except EdgeMLError as error:
                self._finish(sequence, error)
            else:
                self._finish(sequence, None, result)

    def _take_version(self, link: Link, version: int, parts: list[Buffer]) -> None:
        link.newest_version = max(link.newest_version, version)
        if self._taken_from != link.incarnation:
            self._taken_from, self.taken_version = link.incarnation, 0
        elif version <= self.taken_version:  # seen before the connection was made anew
            self._acknowledge(link, self.taken_version)
            return
        elif self.taken_version:
            self._skipped += version - self.taken_version - 1
        self.taken_version = version
        try:
            value = decode(parts, 1, self._copy)
        except CodecError as error:
            self._undecodable += 1
            logger.error("%s: version %d was published and cannot be decoded here: %s", self._dialer.address, version, error)
        else:
            self._received += 1
            self._call_back(value, version)
        self._acknowledge(link, version)

    def _call_back(self, value: Any, version: int) -> None:
        for callback in list(self._callbacks):
            try:
                callback(value, version)
            except BaseException:  # a user's callback: it must not end the thread that all callbacks share
                self._callback_errors += 1
                logger.exception("%s: a callback raised for version %d", self._dialer.address, version)

    def _acknowledge(self, link: Link, version: int) -> None:
        with self._sending:
            try:
                link.connection.send([ENVELOPE.pack(MAGIC, ACK, 0, 0, 0, version)], 0)
            except (BufferFull, TimeoutError):
                return  # the next version's says more

    def _finish(self, sequence: int, error: Exception | None, result: Any = None) -> None:
        with self._changed:
            request = self._requests.pop(sequence, None)
        if request is None:
            return  # it timed out before
        self._complete(request, error, result)

    def _complete(self, request: _Request, error: Exception | None, result: Any = None) -> None:
        try:
            if error is not None:
                request.future.set_exception(error)
            else:
                request.future.set_result(result)
        except BaseException:  # a user's callback, which was added to the future
            self._callback_errors += 1
            logger.exception("%s: what waited for %r raised", self._dialer.address, request.method)

    def _expire(self) -> None:
        now = monotonic()
        with self._changed:
            late = [request for request in self._requests.values() if request.end <= now]
        for request in late:
            self._timeouts += 1
            message = f"{self._dialer.address}: no reply to {request.method!r} within {request.seconds:g} s"
            self._finish(request.sequence, TimeoutError(message))
