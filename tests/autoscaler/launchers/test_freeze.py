"""What the forkserver imports is shared by the replicas that it forks."""

import subprocess
import sys

from tideserve.autoscaler.launchers.process import PRELOAD

FREEZE = "tideserve.autoscaler.launchers.freeze"


def test_what_was_imported_before_is_frozen() -> None:
    program = f"import gc, {FREEZE}; print(gc.get_freeze_count(), len(gc.get_objects()))"
    told = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30
    )
    frozen, others = map(int, told.stdout.split())
    assert frozen > 10 * others


def test_it_is_the_last_import_of_the_forkserver() -> None:
    assert PRELOAD[-1] == FREEZE
