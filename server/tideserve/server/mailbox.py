"""Work that other threads leave for the dispatcher's thread."""

import logging
from collections import deque
from collections.abc import Callable

from tideserve.server.front import Front

logger = logging.getLogger(__name__)


class Mailbox:
    """Owns what was posted and not yet run. Bounded by those who post: the repository's one
    worker and the signals."""

    def __init__(self, front: Front) -> None:
        self._front = front
        self._posted: deque[Callable[[], None]] = deque()

    def post(self, work: Callable[[], None]) -> None:
        """Any thread: runs `work` soon, on the dispatcher's thread."""
        self._posted.append(work)
        self._front.wake()

    def run(self) -> None:
        """The dispatcher's thread: runs what was posted so far."""
        for _ in range(len(self._posted)):
            try:
                self._posted.popleft()()
            except Exception:
                # The boundary of one piece of work: a mistake of ours ends nothing else.
                logger.exception("posted work failed inside the server")
