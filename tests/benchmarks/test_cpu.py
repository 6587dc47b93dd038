"""CPU time is counted for every process that a server is made of."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from benchmarks.cpu import MARK_VARIABLE, cpu_seconds, family, parse_stat

BURN = "import time\nwhile time.process_time() < 0.3: pass\nprint('burnt', flush=True)\ninput()"


@pytest.fixture
def burner() -> Iterator[subprocess.Popen[str]]:
    """A process in a session of its own that has used 0.3 s of CPU and waits."""
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", BURN],
        env={**os.environ, MARK_VARIABLE: "burner-of-this-test"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline() == "burnt\n"
    yield process
    process.stdin.close()
    process.stdout.close()
    process.wait(timeout=10)


def test_a_process_is_found_by_its_mark_and_its_time_counted(
    burner: subprocess.Popen[str],
) -> None:
    nobody = 2**22 + 1  # above the highest pid that Linux gives
    assert family(nobody, "burner-of-this-test") == {burner.pid}
    assert 0.25 <= cpu_seconds(nobody, "burner-of-this-test") < 2.0


def test_descendants_belong_to_the_family(burner: subprocess.Popen[str]) -> None:
    assert burner.pid in family(os.getpid(), "a mark that nobody has")


def test_another_mark_and_another_root_are_another_family(burner: subprocess.Popen[str]) -> None:
    assert burner.pid not in family(2**22 + 1, "a mark that nobody has")


def test_a_command_name_with_blanks_and_parentheses_is_skipped() -> None:
    ticks = os.sysconf("SC_CLK_TCK")
    line = f"7 (a) b (c)) S 3 7 7 0 -1 4194304 1 2 3 4 {ticks} {2 * ticks} {3 * ticks} {ticks} 20 0"
    usage = parse_stat(line)
    assert usage.parent == 3
    assert usage.seconds == pytest.approx(7.0)
