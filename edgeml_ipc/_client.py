"""The client's side of every service: calls on the caller's thread, and a lane in the background for the rest."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from time import monotonic
from typing import Any, Final

from edgeml_ipc._background import Background
from edgeml_ipc._dial import Dialer, Link
from edgeml_ipc._outgoing import NETWORK, Outgoing
from edgeml_ipc._relay import RelayedDialer
from edgeml_ipc.codec.decoder import decode
from edgeml_ipc.errors import (
    ConnectionClosed,
    EdgeMLError,
    IncompatiblePeer,
    PeerDied,
    TimeoutError,
)
from edgeml_ipc.protocol import (
    BLOCKING_LANE,
    ENVELOPE,
    ERROR,
    MAGIC,
    REPLY,
    REQUEST,
    ProtocolViolation,
    failure_error,
    open_envelope,
)
from edgeml_ipc.transports.base import Buffer, Options

DEFAULT_TIMEOUT_SECONDS: Final = 0.8
DEFAULT_WAIT_SECONDS: Final = 60.0
_FIRST_CONNECT_SECONDS: Final = 3.0  # a handshake may take longer than a call: the server's machine may be starting up
_MAX_SENDINGS: Final = 3
_pack = ENVELOPE.pack


class Client:
    """Call a server's methods. Thread-safe; blocking calls of several threads go one after the other.

    Args:
        address: with a scheme, as `edgeml_ipc.transports` takes it.
        service, config: must equal the server's; the config is read once and never changed.
        timeout: seconds for a call, from start to end, where the call names none.
        wait_for_server: keep trying while nothing answers, up to `wait_timeout` seconds. Otherwise one attempt is made.
        copy: give received arrays as writable copies instead of read-only views.
        policies: key -> how the arrays of requests travel over tcp; see `edgeml_ipc.codec.policies`.
        relay: over tcp, share one subscription with the other clients on this machine that ask for it; see `_relay`.
    Raises:
        ConnectionRefused: nothing listens. TimeoutError: silence. ConfigMismatch, IncompatiblePeer, AuthenticationError.
    """

    def __init__(
        self,
        address: str,
        *,
        service: str,
        config: object,
        timeout: float = DEFAULT_TIMEOUT_SECONDS,
        wait_for_server: bool = False,
        wait_timeout: float = DEFAULT_WAIT_SECONDS,
        options: Options | None = None,
        copy: bool = False,
        policies: Mapping[str, str] | None = None,
        relay: bool = False,
    ) -> None:
        self.address = address
        self._dialer = Dialer(address, service, config, options or Options())
        self._timeout = timeout
        self._copy = copy
        self._outgoing = Outgoing(policies)
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._sequence = 0
        self._calls = self._retries = self._timeouts = self._reconnects = self._late_replies = 0
        self._total_latency = self._last_latency = 0.0
        connect_seconds = max(timeout, _FIRST_CONNECT_SECONDS)
        self._background = Background(self._dialer, self._outgoing, copy=copy, connect_seconds=connect_seconds)
        if wait_for_server:
            link = self._dialer.dial_until(BLOCKING_LANE, wait_timeout, self._closing)
        else:
            link = self._dialer.dial(BLOCKING_LANE, (), connect_seconds)
        self._relayed = RelayedDialer(self._dialer) if relay and link.connection.transport == NETWORK else None
        self._subscriber = self._background
        if self._relayed is not None:
            self._subscriber = Background(self._relayed, self._outgoing, copy=copy, connect_seconds=connect_seconds)
        self._link: Link | None = link
        self._last_link = link

    # --- calls ----------------------------------------------------------------------------------------------------------

    def call(self, method: str, payload: Any, timeout: float | None = None) -> Any:
        """Send `payload` to a method of the server and return its result.

        Args:
            timeout: seconds for all of it; None takes the client's.
        Returns:
            The result; arrays are read-only views unless the client copies.
        Raises:
            TimeoutError: no reply in time; the request may still be executed. RemoteError: the handler raised.
            PeerDied: the server ended; `outcome_unknown` tells whether it may have executed the request. The next call
                connects anew. ConnectionRefused: no connection, and nothing listens.
            RateLimited, CodecError, MessageTooLarge: the request was not executed. ConnectionClosed: the client was closed.
        """
        seconds = self._timeout if timeout is None else timeout
        start = monotonic()
        body = self._outgoing.encode(payload)
        if not self._lock.acquire(timeout=seconds):
            raise TimeoutError(f"{self.address}: calls of other threads took all of the {seconds:g} s of {method!r}")
        try:
            result = self._exchange(method, body, start + seconds)
            self._last_latency = latency = monotonic() - start
            self._total_latency += latency
            return result
        except TimeoutError as error:
            self._timeouts += 1
            raise TimeoutError(
                f"{self.address}: no reply to {method!r} within {seconds:g} s ({error}); is a callback of the server "
                "slower than that?"
            ) from error
        finally:
            self._lock.release()

    def _exchange(self, method: str, body: list[Buffer], end: float) -> Any:
        """Send one request and receive its reply, over a new connection where the present one breaks."""
        self._sequence = sequence = self._sequence + 1
        self._calls += 1
        link = self._link
        sent_to: bytes | None = None
        lost: PeerDied | None = None
        for _ in range(_MAX_SENDINGS):
            if link is None:
                link = self._connect_again(end - monotonic(), sent_to, lost)
            number = link.methods.get(method)
            if number is None:
                raise ValueError(f"{self.address}: the server has no method {method!r}; it has {sorted(link.methods)}")
            try:
                shorter = self._outgoing.over(link.connection.transport, body)
                parts = [_pack(MAGIC, REQUEST, 0, number, sequence, sequence), *shorter]
                link.connection.lend(parts, left if (left := end - monotonic()) > 0 else 0.0)
                if sent_to is not None:
                    self._retries += 1
                sent_to = link.incarnation
                answer = self._receive(link, sequence, end)
            except PeerDied as error:
                lost = error
                self._drop(link)
                link = None
            except (ConnectionClosed, IncompatiblePeer):
                self._drop(link)  # the next call connects anew, unless this client was closed
                raise
            except BaseException:
                if not link.connection.reclaim():  # the payload is the caller's again, and may change
                    self._drop(link)
                raise
            else:
                if isinstance(answer, EdgeMLError):
                    raise answer
                return decode(answer, 1, self._copy)
        raise PeerDied(
            f"{self.address}: the connection broke {_MAX_SENDINGS} times while {method!r} was sent; the server may refuse "
            f"its size ({lost})",
            outcome_unknown=sent_to is not None,
        ) from lost

    def _receive(self, link: Link, sequence: int, end: float) -> list[Buffer] | EdgeMLError:
        """Return the parts of a request's reply, or the error that came in its place."""
        receive = link.connection.recv
        while True:
            parts = receive(left if (left := end - monotonic()) > 0 else 0.0)
            try:
                kind, _, answered, link.newest_version = open_envelope(parts[0])
            except ProtocolViolation as error:
                raise IncompatiblePeer(f"{self.address}: the server sent {error}") from error
            if answered != sequence:  # the late reply to a request that timed out
                self._late_replies += 1
            elif kind == REPLY:
                return parts
            elif kind == ERROR:
                failure = failure_error(parts[1] if len(parts) > 1 else b"", self.address)
                if isinstance(failure, IncompatiblePeer):
                    raise failure
                return failure

    def _connect_again(self, seconds: float, sent_to: bytes | None, lost: PeerDied | None) -> Link:
        """Connect after a connection broke, or fail the request that may have been on it."""
        if self._closing.is_set():
            raise ConnectionClosed(f"{self.address}: this client was closed") from lost
        if seconds <= 0:
            raise TimeoutError("the connection broke, and no time was left to make a new one") from lost
        try:
            link = self._dialer.dial(BLOCKING_LANE, (), seconds)
        except TimeoutError:
            raise
        except EdgeMLError as error:
            if lost is None:
                raise
            raise PeerDied(
                f"{self.address}: the server ended ({lost}), and there is none to take its place ({error})",
                outcome_unknown=sent_to is not None,
            ) from error
        self._link = self._last_link = link
        self._reconnects += 1
        if self._closing.is_set():
            self._drop(link)
            raise ConnectionClosed(f"{self.address}: this client was closed") from lost
        if sent_to is not None and link.incarnation != sent_to:
            raise PeerDied(
                f"{self.address}: the server ended with the request in flight; another one has taken its place",
                outcome_unknown=True,
            ) from lost
        return link

    def _drop(self, link: Link) -> None:
        link.connection.reclaim()
        link.connection.close()
        self._link = None

    # --- in the background ----------------------------------------------------------------------------------------------

    def submit(self, method: str, payload: Any, timeout: float | None = None) -> Future[Any]:
        """Send a request without waiting; the future completes on the client's background thread.

        Raises:
            BufferFull: too many requests are outstanding. CodecError, MessageTooLarge: it cannot be sent. TimeoutError: the
                server took nothing in for all of the timeout.
                What `call` raises for the outcome comes out of the future.
        """
        return self._background.submit(method, self._outgoing.encode(payload), self._timeout if timeout is None else timeout)

    def subscribe(self, callback: Callable[[Any, int], None]) -> None:
        """Call `callback(value, version)` on the background thread for the newest published value, and those that follow.

        A callback that raises is logged and counted. A slow one makes the client skip versions. A callback that is added
        to others sees the next value that is published.
        """
        self._subscriber.subscribe(callback)

    @property
    def timeout(self) -> float:
        """Seconds for a call that names none."""
        return self._timeout

    @timeout.setter
    def timeout(self, seconds: float) -> None:
        self._timeout = seconds

    @property
    def version(self) -> int:
        """The newest published version that this client has taken; 0 before the first."""
        return self._subscriber.taken_version

    @property
    def lag(self) -> int:
        """Published versions that this client knows of and has not taken; known from the server's messages."""
        return self._subscriber.lag(self._link)

    @property
    def server_incarnation(self) -> bytes:
        """16 bytes that name the life of the server which was connected last."""
        return self._last_link.incarnation

    @property
    def transport(self) -> str:
        """What the calls travel by: "shm", "tcp" or "inproc". `stats` has it also for futures and published values."""
        return self._last_link.connection.transport

    # --- life -----------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close both connections and end the background thread. Idempotent; a call in another thread ends with an error."""
        self._closing.set()
        self._background.close()
        if self._relayed is not None:
            self._subscriber.close()
            self._relayed.close()
        link = self._link
        if link is not None:
            link.connection.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def stats(self) -> dict[str, Any]:
        """Return plain counters. Any thread."""
        calls = self._calls
        return {
            "address": self.address,
            "transport": self.transport,
            "calls": calls,
            "retries": self._retries,
            "timeouts": self._timeouts,
            "reconnects": self._reconnects,
            "late_replies": self._late_replies,
            "latency_us_last": self._last_latency * 1e6,
            "latency_us_mean": self._total_latency / calls * 1e6 if calls else 0.0,
            "lag": self.lag,
            **self._background.stats(),
            **self._relay_stats(),
            **self._outgoing.stats(),
            "connection": self._last_link.connection.stats(),
        }

    def _relay_stats(self) -> dict[str, Any]:
        """Return the counters of the subscription where it is a relay's, and of the relay where it runs here."""
        if self._relayed is None:
            return {}
        of_values = ("versions_received", "versions_skipped", "version", "versions_undecodable", "callback_errors")
        counters = self._subscriber.stats()
        return {**{name: counters[name] for name in of_values}, "relay": self._relayed.stats()}
