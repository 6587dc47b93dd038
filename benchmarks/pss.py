"""Memory of a server: the proportional set size of every process it is made of, from /proc.

A page that n processes share counts an n-th in each, so that the sum is what the server takes.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Literal

from benchmarks.errors import ServerFailedError

_PSS: Final = re.compile(r"^Pss:\s+(\d+) kB$", re.MULTILINE)


def pss_bytes(pids: Iterable[int | Literal["self"]]) -> int:
    """Sum over those of the processes that are still there."""
    total = 0
    for pid in pids:
        try:
            total += parse_smaps_rollup(Path(f"/proc/{pid}/smaps_rollup").read_text())
        except (FileNotFoundError, ProcessLookupError):
            continue  # ended since it was listed
    return total


def parse_smaps_rollup(text: str) -> int:
    """Reads the Pss line of /proc/PID/smaps_rollup (proc(5)); a zombie's is empty and is 0."""
    if not text:
        return 0
    found = _PSS.search(text)
    if found is None:
        raise ServerFailedError(f"expected a Pss line in smaps_rollup, got:\n{text[:500]}")
    return int(found[1]) * 1024
