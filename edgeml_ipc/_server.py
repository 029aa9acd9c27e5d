"""The server's side of every service: one loop that takes requests from all clients and answers them.

Handlers run in the loop's thread, one at a time. What a client can do wrong ends its own connection and nothing else.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from edgeml_ipc import transports
from edgeml_ipc._guests import Caller, Guest, Handler, Offer, TokenBucket, offer_for
from edgeml_ipc._outgoing import NETWORK, Outgoing
from edgeml_ipc._replies import EXECUTE, MAX_REPLIES_PER_LANE, Lane, ReplyMemory, Verdict, hold
from edgeml_ipc._session import Session
from edgeml_ipc._ticket import LATER, Ticket
from edgeml_ipc.codec.decoder import decode
from edgeml_ipc.errors import CodecError, ConnectionClosed, MessageTooLarge, PeerDied, RateLimited
from edgeml_ipc.protocol import (
    ACK,
    ENVELOPE,
    ERROR,
    ID_BYTES,
    MAGIC,
    PUBLISH,
    REPLY,
    REQUEST,
    ProtocolViolation,
    error_text,
    judge,
    open_envelope,
    pack_failure,
    unpack_hello,
)
from edgeml_ipc.transports.base import Buffer, Connection, HandshakeRejected, Options

logger = logging.getLogger("edgeml_ipc")

TOPIC: Final = 0
_GUESTS_OUTGOING: Final = Outgoing(None)
_FLUSH_EVERY_SECONDS: Final = 0.002
_STOP_SECONDS: Final = 5.0
# The longest that the main thread waits in one piece: a Ctrl-C that comes just before the wait is seen after it.
_LOOK_FOR_SIGNALS_SECONDS: Final = 0.5

# Called once per turn of the loop; returns the seconds after which it wants to be called again, or None.
Tick = Callable[[], float | None]


class Server:
    """Listen at one address and answer requests with handlers.

    Args:
        address: where to listen; it is bound at once, so that `address` and `port` tell what the system chose.
        service: kind of service; a client of another kind is refused.
        config: dataclass or mapping that clients must show equal, ports apart; read once, never changed.
        handlers: method name -> function from payload to result. An exception in it goes to the caller as `RemoteError`.
        tick: called in every turn of the loop.
        rate_limit: requests per second over all clients, for the methods in `limited`; None means no limit.
        guests: service name -> what is served beside `service`, at the same address.
        on_gone: called with a client's 16 bytes when the last connection of that client ended, which may come back.
        policies: key -> how the arrays of replies and published values travel over tcp; see `edgeml_ipc.codec.policies`.
            Not for guests.
        on_end: called once by the loop's thread, when the loop has ended.
        copy: give handlers writable copies of received arrays instead of read-only views.
    Raises:
        AddressInUse: another server listens there.
    """

    def __init__(
        self,
        address: str,
        *,
        service: str,
        config: object,
        handlers: Mapping[str, Handler],
        options: Options | None = None,
        tick: Tick | None = None,
        rate_limit: float | None = None,
        limited: Iterable[str] = (),
        guests: Mapping[str, Guest] | None = None,
        on_gone: Callable[[bytes], object] | None = None,
        policies: Mapping[str, str] | None = None,
        on_end: Callable[[], object] | None = None,
        copy: bool = False,
    ) -> None:
        self.incarnation = os.urandom(ID_BYTES)
        self._own = Offer(service, Guest(config, handlers), self.incarnation, limited)
        self._guests = {name: Offer(name, guest, self.incarnation) for name, guest in (guests or {}).items()}
        self.tick = tick  # may be set later
        self._on_gone = on_gone
        self._on_end = on_end
        self._copy = copy
        self._bucket = TokenBucket(rate_limit) if rate_limit is not None else None
        self._outgoing = Outgoing(policies)
        self._memory = ReplyMemory()
        self._sessions: dict[Connection, Session] = {}
        self._waiting: set[Session] = set()
        self._current: tuple[Lane, int, Session] | None = None
        self._version = 0
        self._publishing = threading.Lock()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        self._loop_thread_id: int | None = None
        self._stopping = False
        self._finished = threading.Event()
        self._requests = self._replies = self._errors = self._retries_answered = 0
        self._rate_limited = self._malformed = self._too_slow = 0
        self._listener = transports.listen(address, welcome=self._welcome, options=options)
        self.address = self._listener.address
        self.port = self._listener.port

    # --- life -----------------------------------------------------------------------------------------------------------

    def start(self, threaded: bool = False) -> None:
        """Serve: in this thread until `stop` or Ctrl-C, or in a daemon thread if `threaded`.

        Raises:
            ConnectionClosed: it was stopped. RuntimeError: it was started before.
        """
        with self._starting:
            if self._stopping:
                raise ConnectionClosed(f"{self.address}: the server was stopped; make a new one")
            if self._loop_thread_id is not None:
                raise RuntimeError(f"{self.address}: the server runs already")
            self._loop_thread_id = 0 if threaded else threading.get_ident()
            if threaded:
                self._thread = threading.Thread(target=self._run, name=f"edgeml_ipc-{self._own.service}-server", daemon=True)
                self._thread.start()
                return
        try:
            self._run()
        except KeyboardInterrupt:
            logger.info("%s: stopped by Ctrl-C", self.address)

    def stop(self) -> None:
        """Stop serving and end all connections. Idempotent, any thread, also from a handler."""
        self._stopping = True
        with self._starting:
            running = self._loop_thread_id is not None
        if running and self._loop_thread_id == threading.get_ident():
            return  # the loop closes the listener when this handler has returned
        if running:
            self._listener.wake()
            if not self._finished.wait(_STOP_SECONDS):
                logger.warning("%s: a handler runs for more than %g s; closing without it", self.address, _STOP_SECONDS)
            elif self._thread is not None:
                self._thread.join()
        self._listener.close()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def _run(self) -> None:
        self._loop_thread_id = threading.get_ident()
        try:
            while not self._stopping:
                self._turn()
        except ConnectionClosed:
            pass  # the listener was closed: the end of the loop
        finally:
            self._stopping = True
            self._listener.close()
            if self._on_end is not None:
                self._on_end()
            self._finished.set()

    def _turn(self) -> None:
        timeout = None if self.tick is None else self.tick()
        if self._waiting:
            for session in list(self._waiting):
                session.flush()
                if not session.waiting:
                    self._waiting.discard(session)
            timeout = _FLUSH_EVERY_SECONDS if timeout is None else min(timeout, _FLUSH_EVERY_SECONDS)
        if self._thread is None and (timeout is None or timeout > _LOOK_FOR_SIGNALS_SECONDS):
            timeout = _LOOK_FOR_SIGNALS_SECONDS
        for connection, parts in self._listener.poll(timeout):
            session_or_none = self._sessions.get(connection)
            try:
                if parts is None:
                    self._end(session_or_none)
                elif session_or_none is None:
                    self._take(self._begin(connection), parts)
                else:
                    self._take(session_or_none, parts)
            except ProtocolViolation as error:
                self._malformed += 1
                logger.warning("%s: closing the connection of a client that sent %s", self.address, error)
                connection.close()

    # --- sessions -------------------------------------------------------------------------------------------------------

    def _welcome(self, hello: bytes) -> bytes:
        """Answer a handshake. On a thread of the listener's."""
        offer = offer_for(hello, self._own, self._guests)
        rejection = judge(hello, offer.service, offer.config)
        if rejection is not None:
            raise HandshakeRejected(rejection)
        return offer.welcome

    def _begin(self, connection: Connection) -> Session:
        offer = offer_for(connection.hello, self._own, self._guests)
        session = Session(connection, unpack_hello(connection.hello), self._memory, offer)
        session.lane.outgoing = self._outgoing if offer is self._own else _GUESTS_OUTGOING
        session.lane.transport = connection.transport
        self._sessions[connection] = session
        return session

    def _end(self, session: Session | None) -> None:
        if session is not None:
            del self._sessions[session.connection]
            self._waiting.discard(session)
            self._memory.detach(session.hello.client, session.hello.lane, session)
            if self._on_gone is not None and not self.is_connected(session.hello.client):
                self._on_gone(session.hello.client)

    def is_connected(self, client: bytes) -> bool:
        """Tell whether a client has a connection now. For handlers, and the other callbacks of the loop's thread."""
        return any(session.hello.client == client for session in self._sessions.values())

    # --- requests -------------------------------------------------------------------------------------------------------

    def _take(self, session: Session, parts: list[Buffer]) -> None:
        kind, method, sequence, number = open_envelope(parts[0])
        if kind == ACK:
            session.taken_version = number
            return
        if kind != REQUEST or method >= len(session.offer.handlers):
            methods = len(session.offer.handlers)
            raise ProtocolViolation(f"a message of kind {kind} for method {method}; it has {methods} methods")
        lane = session.lane
        if len(lane.executing) > MAX_REPLIES_PER_LANE:
            raise ProtocolViolation(f"more than {MAX_REPLIES_PER_LANE} requests without waiting for a reply")
        verdict = lane.admit(sequence, number)
        if verdict is EXECUTE:
            self._requests += 1
            self._execute(session, method, sequence, parts)
        elif lane.session is session:  # a duplicate that was left in an older connection has been dealt with by the newer
            self._take_again(session, sequence, verdict)

    def _take_again(self, session: Session, sequence: int, verdict: Verdict) -> None:
        lane = session.lane
        if verdict is Verdict.ANSWER:
            self._retries_answered += 1
            try:
                self._send(session, lane.replies[sequence][0])
            except MessageTooLarge as too_large:
                self._fail(lane, sequence, too_large, within_callback=False)
        elif verdict is Verdict.FORGOTTEN:
            error = PeerDied("the request was executed, and its reply is no longer remembered")
            self._send(session, self._error_parts(sequence, error, within_callback=False))

    def _execute(self, session: Session, method: int, sequence: int, parts: list[Buffer]) -> None:
        lane = session.lane
        if self._bucket is not None and session.offer.limited[method] and not self._bucket.take():
            self._rate_limited += 1
            error = RateLimited(f"more than {self._bucket.rate:g} requests per second; this one was not executed")
            self._fail(lane, sequence, error, within_callback=False)
            return
        try:
            payload = decode(parts, 1, self._copy)
        except CodecError as error:
            self._fail(lane, sequence, error, within_callback=False)
            return
        self._current = (lane, sequence, session)
        try:
            result = session.offer.handlers[method](payload)
        except BaseException as error:  # a user's function: what it raises is carried to the caller
            self._fail(lane, sequence, error, within_callback=True)
            if self.ends_server(error):
                raise
            return
        finally:
            self._current = None
        if result is not LATER:
            self._reply(lane, sequence, result)

    def ends_server(self, error: BaseException) -> bool:
        """Tell whether what a callback raised is for this program: Ctrl-C or an exit, within a blocking `start`."""
        return self._thread is None and isinstance(error, KeyboardInterrupt | SystemExit)

    def ticket(self) -> Ticket:
        """Return the ticket of the request being handled; its handler must then return `LATER`."""
        if self._current is None:
            raise RuntimeError("no request is being handled")
        return Ticket(self, *self._current[:2])

    def caller(self) -> Caller:
        """Return who sent the request being handled."""
        if self._current is None:
            raise RuntimeError("no request is being handled")
        session = self._current[2]
        return Caller(session.hello.client, session.connection.transport)

    # --- replies --------------------------------------------------------------------------------------------------------

    def _reply(self, lane: Lane, sequence: int, result: Any) -> None:
        try:
            body = lane.outgoing.over(lane.transport, lane.outgoing.encode(result))
        except Exception as error:  # noqa: BLE001 - a user's registered class, or a dict that changed meanwhile
            self._fail(lane, sequence, error, within_callback=True)
            return
        parts = [ENVELOPE.pack(MAGIC, REPLY, 0, 0, sequence, self._version), *body]
        held = None
        if lane.transport == NETWORK:  # which need not copy what is held, so that one copy does for both
            held = hold(parts)
            parts = held[0]
        self._replies += 1
        if lane.session is not None:
            try:
                self._send(lane.session, parts)  # before the bookkeeping, which the client need not wait for
            except MessageTooLarge as error:
                self._fail(lane, sequence, error, within_callback=False)
                return
        lane.remember(sequence, held or hold(parts))

    def _fail(self, lane: Lane, sequence: int, error: BaseException, *, within_callback: bool) -> None:
        self._errors += 1
        if within_callback:
            logger.warning("%s: a callback raised %s: %s", self.address, type(error).__name__, error_text(error))
        parts = self._error_parts(sequence, error, within_callback=within_callback)
        lane.remember(sequence, hold(parts))
        if lane.session is not None:
            try:
                self._send(lane.session, parts)
            except MessageTooLarge as too_large:
                lane.session.give_up(too_large)

    def _error_parts(self, sequence: int, error: BaseException, *, within_callback: bool) -> list[Buffer]:
        body = pack_failure(error, within_callback=within_callback)
        return [ENVELOPE.pack(MAGIC, ERROR, 0, 0, sequence, self._version), body]

    def _send(self, session: Session, parts: list[Buffer]) -> None:
        if not session.send(parts):
            self._too_slow += 1
            logger.warning("%s: closing the connection of a client that does not take its replies", self.address)
        elif session.waiting:
            self._waiting.add(session)

    # --- publishing and counters ----------------------------------------------------------------------------------------

    def publish(self, payload: Any) -> int:
        """Make `payload` the newest value for all subscribers; return its version, from 1 upwards. Any thread.

        Raises:
            CodecError: it cannot be encoded, or does not fit a policy. MessageTooLarge: over the limit.
            ConnectionClosed: the server was stopped.
        """
        body = self._outgoing.encode(payload)
        with self._publishing:
            version = self._version + 1
            self._listener.publish(TOPIC, [ENVELOPE.pack(MAGIC, PUBLISH, 0, 0, 0, version), *body], self._outgoing.shorten)
            self._version = version
        return version

    @property
    def version(self) -> int:
        """The newest published version; 0 before the first."""
        return self._version

    def stats(self) -> dict[str, Any]:
        """Return plain counters; `lag` is client -> published versions that it has not taken. Any thread."""
        sessions = list(self._sessions.values())
        return {
            "address": self.address,
            "requests": self._requests,
            "replies": self._replies,
            "errors": self._errors,
            "retries_answered": self._retries_answered,
            "rate_limited": self._rate_limited,
            "malformed": self._malformed,
            "closed_too_slow": self._too_slow,
            "sessions": len(sessions),
            "version": self._version,
            "lag": {s.hello.client.hex(): self._version - s.taken_version for s in sessions if s.taken_version is not None},
            "transport": self._listener.stats(),
            **self._outgoing.stats(),
        }
