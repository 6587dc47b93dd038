"""The native front: which sockets are looked at, and when."""

import logging
import select
import time
from collections import deque
from collections.abc import Sequence
from typing import Final

from tideserve.server.errors import Code, UnsupportedFrontError
from tideserve.server.front import Cancel, Event, FrontSettings, Status
from tideserve.server.front.native import unsupported
from tideserve.server.front.native.bell import Bell
from tideserve.server.front.native.frames import Buffer
from tideserve.server.front.native.link import STREAM_BITS, STREAM_MASK, Link
from tideserve.server.front.native.listener import Listeners
from tideserve.server.front.native.pace import LOOK_S
from tideserve.server.front.native.shared import Shared
from tideserve.server.front.refusal import (
    LAST_ANSWERS_S,
    answer_too_large,
    server_has_stopped,
)
from tideserve.server.parts import OWN_BYTES
from tideserve.v1 import http2
from tideserve.v1.methods import Kind

logger = logging.getLogger(__name__)

# Sockets looked at in a turn; the others are first in the next one.
_MAX_READY: Final = 256
_MAX_WAIT_S: Final = 3600.0
# epoll waits whole milliseconds: of a wait of fewer than these the rest is waited for apart.
_FINE_MS: Final = 10
# How often deadlines, keepalive and a listener that ran out of files are looked at.
_CHORES_S: Final = 0.05
# For a client to say that it speaks HTTP/2; it does so with its first packet.
_PREFACE_S: Final = 20.0
# The core says more about a deadline that passed than the front can: it is given time to.
_DEADLINE_GRACE_S: Final = 0.02
# Requests that are not whole yet, of all connections.
_MAX_HELD_BYTES: Final = 1024 * 1024 * 1024
# Answers whose clients do not take them, of all connections.
_MAX_UNSENT_BYTES: Final = 1024 * 1024 * 1024
_LAST_LOOK_S: Final = 0.02
# Up to this size an answer's parts are joined.
_JOINED_ANSWER_BYTES: Final = 64 * 1024
# Of a turn, for requests that are inflated: the others wait that long, and a step longer.
_WORK_S: Final = 0.004


class NativeFront:
    """A `Front` on sockets of its own. `methods` are (path, kind); messages stay bytes.

    It works within `recv` alone: calls come in there, and answers leave there, at the next one
    after they were given. Raises `UnsupportedFrontError` for settings that need another front.
    """

    def __init__(self, methods: Sequence[tuple[str, Kind]], settings: FrontSettings) -> None:
        reason = unsupported(settings)
        if reason is not None:
            raise UnsupportedFrontError(f"{reason}: choose the grpcio front (--front grpcio)")
        self._settings = settings
        self._shared = Shared(
            dict(methods),
            settings.max_message_bytes,
            max(_MAX_HELD_BYTES, 2 * settings.max_message_bytes),
            max(_MAX_UNSENT_BYTES, 2 * settings.max_answer_bytes),
            settings.max_concurrent_streams,
        )
        self._links: dict[int, Link] = {}  # by number
        self._by_fd: dict[int, Link] = {}
        self._next_number = 1
        self._dirty: set[Link] = set()
        self._events: deque[Event] = deque()
        self._epoll: select.epoll | None = None
        self._listeners = Listeners()
        self._bell = Bell()
        self._next_chores_s = self._next_pace_s = 0.0
        self._busy_poll_s = settings.busy_poll_s

    @property
    def port(self) -> int:
        """The bound port; 0 before `start`."""
        return self._listeners.port

    @property
    def open_calls(self) -> int:
        """Calls begun and neither answered nor cancelled."""
        return sum(len(link.calls.open) for link in self._links.values())

    @property
    def has_unsent(self) -> bool:
        """Answers wait for their callers to read them."""
        if self._shared.unsent.bytes:
            return True
        return any(link.has_output for link in self._links.values())

    def start(self) -> None:
        """Binds and accepts, once. Raises `AddressInUseError`, `StartError` for any other bind."""
        assert self._epoll is None, "a front starts once"
        self._listeners.open(self._settings)
        self._epoll = select.epoll()
        self._epoll.register(self._bell.open(), select.EPOLLIN)
        self._listeners.wait(self._epoll)

    def recv(self, max_events: int, timeout_s: float) -> list[Event]:
        """Sends what there is to send, then waits for events, at most `timeout_s`; empty when none
        came or `wake` was called."""
        epoll = self._epoll
        if epoll is None:
            return []
        events = self._events
        now_s = time.monotonic()
        end_s = now_s + min(timeout_s, _MAX_WAIT_S)
        while True:
            self._flush(epoll)
            # What is left of the last turn goes before what a socket has.
            has_work = bool(events or self._shared.at_work)
            until_s = now_s if has_work else min(end_s, self._next_chores_s)
            # A whole turn of events is left: whoever sends faster than is served waits at its socket.
            is_full = len(events) >= max_events
            woken = not is_full and self._look(epoll, until_s - now_s)
            now_s = time.monotonic()
            if self._shared.at_work:
                now_s = self._work(max_events, now_s)
            if now_s >= self._next_chores_s:
                self._next_chores_s = now_s + _CHORES_S
                self._do_chores(epoll, now_s)
            if events or woken or now_s >= end_s:
                return [events.popleft() for _ in range(min(len(events), max_events))]

    def respond(self, call_id: int, payload: bytes) -> bool:
        """Answers a unary call. False: the call is already gone."""
        limit_bytes = self._settings.max_answer_bytes
        if len(payload) > limit_bytes:
            return self.fail(call_id, answer_too_large(len(payload), limit_bytes))
        link = self._links.get(call_id >> STREAM_BITS)
        if link is None:
            return False
        self._dirty.add(link)
        return link.answers.respond(call_id & STREAM_MASK, payload)

    def respond_parts(self, call_id: int, parts: Sequence[Buffer]) -> bool:
        """As `respond`, with a message in parts, which may change afterwards: it is sent at once,
        as far as the socket takes it."""
        size_bytes = sum(map(len, parts))
        link = self._links.get(call_id >> STREAM_BITS)
        is_large = _JOINED_ANSWER_BYTES < size_bytes <= self._settings.max_answer_bytes
        if link is None or not is_large:
            return self.respond(call_id, b"".join(parts))
        self._dirty.add(link)
        return link.respond_parts(call_id & STREAM_MASK, parts)

    def fail(self, call_id: int, status: Status) -> bool:
        """Ends any call with a status, a stream's after what was sent. False: already gone."""
        link = self._links.get(call_id >> STREAM_BITS)
        if link is None:
            return False
        self._dirty.add(link)
        return link.answers.fail(call_id & STREAM_MASK, status)

    def send(self, call_id: int, payload: bytes) -> bool:
        """Sends one message on a streaming call. False: the call is already gone.

        A message over the limit, or one that passes the stream's backlog because the caller
        does not read, ends the call with RESOURCE_EXHAUSTED: also False.
        """
        limit_bytes = self._settings.max_answer_bytes
        if len(payload) > limit_bytes:
            self.fail(call_id, answer_too_large(len(payload), limit_bytes))
            return False
        link = self._links.get(call_id >> STREAM_BITS)
        if link is None:
            return False
        self._dirty.add(link)
        return link.answers.send(call_id & STREAM_MASK, payload)

    def send_file(self, call_id: int, fd: int) -> bool:
        """Passes a copy of an open file to a call's client ahead of what is sent next. False: only
        unix sockets carry files."""
        link = self._links.get(call_id >> STREAM_BITS)
        return link is not None and link.pass_file(fd)

    def end(self, call_id: int) -> None:
        """Ends a streaming call with OK, after what was sent."""
        link = self._links.get(call_id >> STREAM_BITS)
        if link is not None:
            self._dirty.add(link)
            link.answers.end(call_id & STREAM_MASK)

    def wake(self) -> None:
        """Makes the `recv` that waits now, or the next one, return. Any thread."""
        self._bell.ring()

    def close(self) -> None:
        """Ends all calls that are left (UNAVAILABLE), unbinds."""
        epoll = self._epoll
        if epoll is None:
            return
        self._listeners.close()
        for link in self._links.values():
            for number in link.calls.open:
                link.answers.fail(number, server_has_stopped())
            link.connection.leave(http2.NO_ERROR, "the server stops")
        self._say_last_words(epoll)
        for link in list(self._links.values()):
            self._drop(link)
        self._epoll = None
        epoll.close()
        self._bell.close()
        self._events.clear()

    # --- in -------------------------------------------------------------------------------

    def _look(self, epoll: select.epoll, wait_s: float) -> bool:
        """Reads what is there, once a socket, after at most `wait_s`. True: `wake` was called."""
        woken = False
        now_s = 0.0
        for fd, mask in poll(epoll, max(0.0, wait_s), self._busy_poll_s):
            link = self._by_fd.get(fd)
            if link is None:
                if fd == self._bell.fd:
                    self._bell.quiet()
                    woken = True
                else:
                    self._accept(epoll, fd)
                continue
            if mask & select.EPOLLOUT:
                self._dirty.add(link)
            if mask & ~select.EPOLLOUT:
                now_s = now_s or time.monotonic()
                events = link.read(now_s)
                if events is None:
                    self._drop(link)
                    continue
                self._events += events
                if link.has_output:
                    self._dirty.add(link)
        return woken

    def _work(self, max_events: int, now_s: float) -> float:
        """Goes on with requests that take time, a step of each in turn; the time after it."""
        at_work = self._shared.at_work
        end_s = now_s + _WORK_S
        while at_work and now_s < end_s and len(self._events) < max_events:
            call_id = at_work.popleft()
            link = self._links.get(call_id >> STREAM_BITS)
            if link is None:
                continue
            events = link.work(call_id & STREAM_MASK, now_s)
            if events is None:
                self._drop(link)
            else:
                self._events += events
                if link.has_output:
                    self._dirty.add(link)
            now_s = time.monotonic()
        return now_s

    def _accept(self, epoll: select.epoll, fd: int) -> None:
        most = self._settings.max_connections
        for accepted, peer in self._listeners.accept(epoll, fd):
            if most is not None and len(self._links) >= most:
                accepted.close()
                continue
            link = Link(accepted, self._shared, self._next_number, peer, time.monotonic())
            self._next_number += 1
            self._links[link.number] = self._by_fd[link.fd] = link
            epoll.register(link.fd, link.interest)
            link.connection.open()
            self._dirty.add(link)

    def _drop(self, link: Link) -> None:
        """The client is gone, and its calls with it."""
        if self._links.pop(link.number, None) is not None:
            del self._by_fd[link.fd]
            self._dirty.discard(link)
            link.close()  # epoll notices by itself
            self._events += link.connection.take_events()

    # --- out ------------------------------------------------------------------------------

    def _flush(self, epoll: select.epoll) -> None:
        while self._dirty:
            link = self._dirty.pop()
            if link.send():
                self._follow(epoll, link)
            else:
                self._drop(link)

    def _follow(self, epoll: select.epoll, link: Link) -> None:
        """Waits for what the link now waits for."""
        interest = link.wanted_interest()
        if interest != link.interest:
            link.interest = interest
            epoll.modify(link.fd, interest)

    def _say_last_words(self, epoll: select.epoll) -> None:
        """Sends what is left, and lets the clients read it: a socket that is closed with unread
        bytes takes back what it sent."""
        end_s = time.monotonic() + LAST_ANSWERS_S
        waiting = set(self._links.values())
        shut: set[Link] = set()
        while waiting and time.monotonic() < end_s:
            for link in list(waiting):
                if not link.send():
                    waiting.discard(link)
                elif not link.has_output and link not in shut:
                    shut.add(link)
                    if not link.shut_down():
                        waiting.discard(link)
            for fd, _ in epoll.poll(_LAST_LOOK_S):
                ready = self._by_fd.get(fd)
                if ready is not None and ready.has_ended():
                    waiting.discard(ready)
                    self._drop(ready)

    # --- now and then ---------------------------------------------------------------------

    def _do_chores(self, epoll: select.epoll, now_s: float) -> None:
        self._expire(now_s)
        self._listeners.wait(epoll)
        settings, shared = self._settings, self._shared
        is_short = shared.held_bytes > shared.max_held_bytes // 2
        is_pace_due = now_s >= self._next_pace_s
        if is_pace_due:
            self._next_pace_s = now_s + LOOK_S
        own_bytes = OWN_BYTES
        for link in list(self._links.values()):
            if is_pace_due:
                is_read = bool(link.interest & select.EPOLLIN)
                link.calls.refuse_slow(now_s, is_short=is_short, is_read=is_read)
                own_bytes -= link.calls.let_go_of_old(now_s, own_bytes)
                self._events += link.connection.take_events()
                if link.has_output:
                    self._dirty.add(link)
            if not link.connection.has_begun and now_s - link.opened_s > _PREFACE_S:
                logger.debug("%s said nothing", link.peer)
                self._drop(link)
            elif link.pinged_s is None or link.heard_s > link.pinged_s:
                link.pinged_s = None
                if now_s - link.heard_s >= settings.keepalive_time_s:
                    link.pinged_s = now_s
                    link.connection.ping()
                    self._dirty.add(link)
            elif now_s - link.pinged_s > settings.keepalive_timeout_s:
                logger.debug("%s did not answer a ping", link.peer)
                self._drop(link)

    def _expire(self, now_s: float) -> None:
        """Ends calls past their callers' deadlines, which most callers do themselves."""
        for call_id in self._shared.deadlines.passed(now_s - _DEADLINE_GRACE_S):
            if self.fail(call_id, _DEADLINE_PASSED):
                self._events.append(Cancel(call_id))


_DEADLINE_PASSED: Final = Status(Code.DEADLINE_EXCEEDED, "the call's deadline passed")


def poll(epoll: select.epoll, wait_s: float, busy_s: float) -> list[tuple[int, int]]:
    """What is ready, after at most `wait_s`, which epoll alone would round up. For `busy_s` it is
    looked for without sleeping: to be woken takes a caller's request and its outcome longer."""
    if busy_s and wait_s > 0.0:
        began_s = now_s = time.monotonic()
        while now_s - began_s < busy_s and now_s - began_s < wait_s:
            ready = epoll.poll(0, _MAX_READY)
            if ready:
                return ready
            now_s = time.monotonic()
        wait_s = max(0.0, wait_s - (now_s - began_s))
    whole_ms = int(wait_s * 1000)
    rest_s = wait_s - whole_ms / 1000 if whole_ms < _FINE_MS else 0.0
    ready = epoll.poll(whole_ms / 1000, _MAX_READY) if whole_ms or not rest_s else []
    if not ready and rest_s > 0.0:
        select.select((epoll,), (), (), rest_s)
        ready = epoll.poll(0, _MAX_READY)
    return ready
