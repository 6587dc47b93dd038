"""What wakes the loop."""

import queue


class Wake:
    """Rings from threads and signal handlers, one listener. Rings while nobody listens
    become one."""

    def __init__(self) -> None:
        # Not a threading.Event: setting one in a signal handler that interrupts its own
        # wait can deadlock; SimpleQueue.put is reentrant.
        self._rings: queue.SimpleQueue[None] = queue.SimpleQueue()

    def ring(self) -> None:
        if self._rings.empty():
            self._rings.put(None)

    def wait(self, timeout_s: float) -> None:
        """Until it rings, or for that long."""
        try:
            self._rings.get(timeout=timeout_s)
        except queue.Empty:
            return
