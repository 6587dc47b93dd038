"""`tideserve serve` that tells, when asked, which lines of the frontend hold how much memory.

Started as `python -m benchmarks.memory.server FILE serve ...`. The first SIGUSR1 begins to
trace; each later one writes to FILE, as JSON, the bytes that Python holds beyond those at the
second, and the lines that hold most of them.
"""

import gc
import tracemalloc
from typing import Final

from benchmarks.telling import serve_telling

_LINES: Final = 5


def main() -> None:
    """Waits for the signal, then hands argv to the command line."""
    serve_telling(_Tracer().tell)


class _Tracer:
    """Owns the snapshot that growth is counted from."""

    def __init__(self) -> None:
        self._first: tracemalloc.Snapshot | None = None

    def tell(self) -> dict[str, object]:
        said: dict[str, object] = {"bytes": 0, "lines": []}
        if not tracemalloc.is_tracing():
            tracemalloc.start()
        else:
            gc.collect()
            now = tracemalloc.take_snapshot().filter_traces(
                [tracemalloc.Filter(inclusive=False, filename_pattern=tracemalloc.__file__)]
            )
            if self._first is None:
                self._first = now
            grown = now.compare_to(self._first, "lineno")
            said["bytes"] = sum(line.size_diff for line in grown)
            said["lines"] = [str(line) for line in grown[:_LINES] if line.size_diff]
        return said


if __name__ == "__main__":
    main()
