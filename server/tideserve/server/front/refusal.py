"""What both fronts say when they refuse, so that clients read the same sentence from either."""

from typing import Final

from tideserve.server.errors import Code
from tideserve.server.front import Status
from tideserve.v1.metadata import NEVER_AGAIN_MS

#: A stream's answers that its caller has not read yet. One message always fits, however large.
MAX_STREAM_BACKLOG_BYTES: Final = 16 * 1024 * 1024
MAX_STREAM_BACKLOG_MESSAGES: Final = 4096


#: How long the last statuses of a front that closes may take to their callers.
LAST_ANSWERS_S: Final = 0.5


def server_has_stopped() -> Status:
    return Status(Code.UNAVAILABLE, "the server has stopped: send the request elsewhere")


def request_too_large(got_bytes: int, limit_bytes: int) -> Status:
    return Status(
        Code.RESOURCE_EXHAUSTED,
        f"the request has {got_bytes} bytes, the server takes at most {limit_bytes}: "
        "send fewer rows at a time or raise the server's message limit",
        NEVER_AGAIN_MS,
    )


def answer_too_large(got_bytes: int, limit_bytes: int) -> Status:
    return Status(
        Code.RESOURCE_EXHAUSTED,
        f"the answer has {got_bytes} bytes, the server sends at most {limit_bytes}: "
        "ask for fewer rows or outputs at a time or raise the server's message limit",
        NEVER_AGAIN_MS,
    )


def reads_too_slowly(waiting_messages: int, waiting_bytes: int) -> Status:
    return Status(
        Code.RESOURCE_EXHAUSTED,
        f"the caller reads its stream too slowly: {waiting_messages} messages "
        f"({waiting_bytes} bytes) wait, at most {MAX_STREAM_BACKLOG_MESSAGES} messages or "
        f"{MAX_STREAM_BACKLOG_BYTES} bytes may",
    )


def sends_too_slowly(came_bytes: int, passed_s: float, least_bytes: int) -> Status:
    return Status(
        Code.RESOURCE_EXHAUSTED,
        f"the request has begun and {came_bytes} bytes of it came in {passed_s:.0f} s, expected at "
        f"least {least_bytes}: send it in one go, or fewer at a time",
    )


def too_many_events(waiting_events: int, waiting_bytes: int) -> Status:
    return Status(
        Code.RESOURCE_EXHAUSTED,
        f"{waiting_events} requests ({waiting_bytes} bytes) wait to be looked at: try again later",
        pushback_ms=100,
    )


def too_many_bytes(waiting_bytes: int, limit_bytes: int) -> Status:
    return Status(
        Code.RESOURCE_EXHAUSTED,
        f"requests of {waiting_bytes} bytes are on their way in, at most {limit_bytes} may be: "
        "try again later",
        pushback_ms=100,
    )


def nobody_reads(waiting_bytes: int, limit_bytes: int) -> Status:
    return Status(
        Code.RESOURCE_EXHAUSTED,
        f"answers of {waiting_bytes} bytes wait for callers that do not read them, at most "
        f"{limit_bytes} may: read answers before asking for more",
        pushback_ms=100,
    )


def stream_backlog_is_full(waiting_messages: int, waiting_bytes: int, next_bytes: int) -> bool:
    """Whether one more message would pass a bound of a stream's backlog."""
    return waiting_messages > 0 and (
        waiting_messages >= MAX_STREAM_BACKLOG_MESSAGES
        or waiting_bytes + next_bytes > MAX_STREAM_BACKLOG_BYTES
    )
