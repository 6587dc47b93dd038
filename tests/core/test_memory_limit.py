"""Batches get smaller when one does not fit, and larger again in the end."""

from tideserve.server.core.memory_limit import FIRST_PATIENCE, MemoryLimit


def settle(limit: MemoryLimit) -> int:
    """Batches as large as may be until nothing is limited."""
    batches = 0
    while limit.cap_rows is not None:
        limit.went_well(limit.cap_rows)
        batches += 1
    return batches


def test_what_ran_out_is_halved_and_doubled_again() -> None:
    limit = MemoryLimit()
    limit.went_well(8)
    limit.ran_out(8)
    limit.ran_out(4)
    assert limit.cap_rows == 2
    for _ in range(1000):
        limit.went_well(1)  # of smaller ones nothing follows
    assert limit.cap_rows == 2
    for _ in range(4 * FIRST_PATIENCE):
        limit.went_well(2)
    assert limit.cap_rows == 4
    for _ in range(4 * FIRST_PATIENCE):
        limit.went_well(3)  # requests of three rows fill no batch of four
    assert limit.cap_rows == 8
    settle(limit)
    assert limit.cap_rows is None


def test_what_fails_again_is_tried_less_and_less_often() -> None:
    limit = MemoryLimit()
    waits = []
    for _ in range(4):
        limit.ran_out(8)
        waits.append(settle(limit))
    assert waits == [2 * FIRST_PATIENCE * 4**at for at in range(4)]
    for _ in range(20):
        limit.ran_out(2)
    assert limit.cap_rows == 1
