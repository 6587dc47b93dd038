"""`tideserve serve` that tells, when asked, which lines of the frontend hold how much memory.

Started as `python -m benchmarks.memory.server FILE serve ...`. The first SIGUSR1 begins to
trace; each later one writes to FILE, as JSON, the bytes that Python holds beyond those at the
second, and the lines that hold most of them.
"""

import gc
import json
import signal
import sys
import tracemalloc
from pathlib import Path
from typing import Final

_LINES: Final = 5


def main() -> None:
    """Waits for the signal, then hands argv to the command line."""
    from tideserve.cli.__main__ import main as tideserve

    tracer = _Tracer(Path(sys.argv.pop(1)))
    signal.signal(signal.SIGUSR1, lambda *_: tracer.tell())
    tideserve()


class _Tracer:
    """Owns the snapshot that growth is counted from."""

    def __init__(self, into: Path) -> None:
        self._into = into
        self._first: tracemalloc.Snapshot | None = None

    def tell(self) -> None:
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
        new = self._into.with_suffix(".new")
        new.write_text(json.dumps(said))
        new.rename(self._into)


if __name__ == "__main__":
    main()
