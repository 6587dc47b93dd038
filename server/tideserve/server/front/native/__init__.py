"""The native front: HTTP/2 in the dispatcher's own thread, straight from the sockets.

`front` waits for sockets and moves bytes; `connection` is one client's HTTP/2, without IO, over
`headers`, `messages` and `outbox`. What comes in one turn is read together and what goes out of one
turn is sent together, and no other thread stands between: see docs/decisions/0014.
"""

import sys

from tideserve.server.front import FrontSettings


def unsupported(settings: FrontSettings) -> str | None:
    """Why these settings need another front; None when this one can serve them."""
    if sys.platform != "linux":
        return "the native front waits with epoll, which only Linux has"
    if settings.tls is not None:
        return "the native front has no TLS"
    return None
