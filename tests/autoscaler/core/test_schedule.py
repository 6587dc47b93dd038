"""Schedules last as long as they say, on days of 23 and 25 hours too."""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from tideserve.autoscaler.core.schedule import is_active, scheduled_minimum
from tideserve.autoscaler.core.settings import Schedule

BERLIN = ZoneInfo("Europe/Berlin")


@pytest.mark.parametrize(
    ("begins", "duration_s"),
    [
        # 01:30 local; the clock goes from 02:00 to 03:00, and from 03:00 back to 02:00.
        (datetime(2026, 3, 29, 0, 30, tzinfo=UTC), 3600.0),
        (datetime(2026, 10, 24, 23, 30, tzinfo=UTC), 7200.0),
        (datetime(2026, 6, 1, 23, 30, tzinfo=UTC), 3600.0),
    ],
)
def test_a_schedule_lasts_its_duration_when_the_clock_changes(
    begins: datetime, duration_s: float
) -> None:
    schedule = Schedule("30 1 * * *", duration_s, 2, BERLIN)
    begins_s = begins.timestamp()
    assert not is_active(schedule, begins_s - 1.0)
    assert is_active(schedule, begins_s)
    assert is_active(schedule, begins_s + duration_s - 1.0)
    assert not is_active(schedule, begins_s + duration_s)


def test_the_highest_of_the_active_schedules_counts() -> None:
    noon_s = datetime(2026, 6, 1, 12, tzinfo=UTC).timestamp()
    schedules = [Schedule("0 12 * * *", 60.0, 2), Schedule("0 11 * * *", 7200.0, 5)]
    assert scheduled_minimum(schedules, noon_s) == 5
    assert scheduled_minimum(schedules, noon_s + 86_400.0 / 2) == 0
