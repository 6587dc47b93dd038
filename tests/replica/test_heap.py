"""What loading left is given back. In a process of its own: it changes the collector."""

import subprocess
import sys

PROGRAM = """
import gc
from tideserve.replica import heap

def dirty_kb():
    with open("/proc/self/smaps_rollup") as file:
        return sum(int(line.split()[1]) for line in file if line.startswith("Private_Dirty"))

pieces = [bytearray(2000) for _ in range(20_000)]
last = bytearray(2000)
del pieces
before = dirty_kb()
heap.settle()
assert gc.get_freeze_count() > 1000
print(before - dirty_kb())
"""


def test_settling_gives_back_what_was_freed_in_small_pieces() -> None:
    told = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=30
    )
    assert int(told.stdout) > 20_000, "of 40 MB freed below what stays"
