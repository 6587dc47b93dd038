"""The account of what mode slo loses adds up, and knows who was dropped early."""

import pytest

from benchmarks.batching_rules import BATCH, Case
from benchmarks.losses import Batch, early_of, losses_of


@pytest.mark.parametrize("load", [0.9, 1.2])
def test_the_parts_add_up_to_what_was_in_time(load: float) -> None:
    found = losses_of(Case(8, 1.0, load), 0.3)
    parts = found.full - found.under + found.over - found.idle - found.late
    assert parts == pytest.approx(found.in_time, abs=1e-9)
    assert min(found.under, found.over, found.idle, found.late, found.early) >= 0.0
    assert found.in_time < found.full


def test_one_was_dropped_early_if_a_later_batch_had_taken_it_in_time() -> None:
    three_s = BATCH.mean_s(3)
    batch = Batch(1.0, 2, due_s=1.0 + three_s, late=0)
    assert early_of([batch], [(0.9, 1.0 + three_s)]) == 1
    assert early_of([batch], [(0.9, 1.0 + three_s - 1e-4)]) == 0
    assert early_of([batch], [(1.1, 2.0)]) == 0
    # A second one would make the first request late.
    assert early_of([batch], [(0.9, 2.0)] * 2) == 1
