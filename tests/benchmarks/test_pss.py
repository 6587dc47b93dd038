"""Memory is read for the processes that are there."""

import os

import pytest

from benchmarks.errors import ServerFailedError
from benchmarks.pss import parse_smaps_rollup, pss_bytes

ROLLUP = """55d0c6f2e000-7ffc4d3f1000 ---p 00000000 00:00 0                          [rollup]
Rss:               20480 kB
Pss:               10240 kB
Pss_Dirty:          4096 kB
"""


def test_the_proportional_set_size_is_read() -> None:
    assert parse_smaps_rollup(ROLLUP) == 10240 * 1024


def test_a_zombie_takes_nothing() -> None:
    assert parse_smaps_rollup("") == 0


def test_what_has_no_such_line_is_shown() -> None:
    with pytest.raises(ServerFailedError, match="expected a Pss line"):
        parse_smaps_rollup("Rss: 1 kB\n")


def test_processes_that_are_gone_count_nothing() -> None:
    nobody = 2**22 + 1  # above the highest pid that Linux gives
    assert pss_bytes([nobody]) == 0
    assert pss_bytes([os.getpid(), nobody]) > 1_000_000
