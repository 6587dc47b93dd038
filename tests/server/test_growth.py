"""Nothing of a request stays behind, however it ended."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.server.growth import PLAYS

# The smallest object, a float, is 24. CPython 3.11 keeps some of the tuples that its `match`
# statements make, at first: by 1 to 7 bytes a request, seen in runs of this.
MAX_GROWTH_BYTES = 16.0
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("play", sorted(PLAYS))
def test_a_request_leaves_nothing_behind(play: str) -> None:
    """In a process of its own: what other tests left running would be counted, too."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.server.growth", play],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(done.stdout) < MAX_GROWTH_BYTES
