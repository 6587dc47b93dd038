"""What is kept while requests come, and given back after."""

import subprocess
import sys

import pytest

from tideserve.server.heap import IDLE_S, IdleHeap

# 64 MB in blocks of 1 MB, freed; what stays resident of it.
_KEPT = """
import os, sys
from tideserve.server.heap import IDLE_S, IdleHeap, keep_freed_memory
def resident(): return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
keep_freed_memory(dict(pair.split("=") for pair in sys.argv[1:]))
before = resident()
blocks = [bytes([1]) * 1_000_000 for _ in range(64)]
del blocks
kept = resident() - before
heap = IdleHeap()
heap.tend(1, 0.0)
assert heap.tend(1, IDLE_S)
print(kept, resident() - before)
"""


def kept_bytes(*environment: str) -> tuple[int, int]:
    done = subprocess.run(
        [sys.executable, "-c", _KEPT, *environment], capture_output=True, text=True, check=True
    )
    kept, left = map(int, done.stdout.split())
    return kept, left


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_freed_memory_stays_until_no_request_came_for_a_while() -> None:
    kept, left = kept_bytes()
    assert kept > 50_000_000
    assert left < 10_000_000


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_a_users_own_settings_are_left_alone() -> None:
    kept, _ = kept_bytes("MALLOC_TRIM_THRESHOLD_=131072")
    assert kept < 10_000_000


def test_it_is_given_back_once_after_the_last_request() -> None:
    heap = IdleHeap()
    assert not heap.tend(0, 100.0)
    assert not heap.tend(5, 101.0)
    assert not heap.tend(5, 100.9 + IDLE_S)
    assert not heap.tend(6, 101.0 + IDLE_S)
    assert not heap.tend(6, 100.9 + 2 * IDLE_S)
    assert heap.tend(6, 101.0 + 2 * IDLE_S)
    assert not heap.tend(6, 101.0 + 9 * IDLE_S)
