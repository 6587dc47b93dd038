"""The least replicas that schedules ask for at a time."""

from collections.abc import Iterable
from datetime import UTC, datetime

from cronsim import CronSim

from tideserve.autoscaler.core.settings import Schedule


def scheduled_minimum(schedules: Iterable[Schedule], unix_s: float) -> int:
    """The highest `min_replicas` of those that are active; 0: none is."""
    return max(
        (schedule.min_replicas for schedule in schedules if is_active(schedule, unix_s)), default=0
    )


def is_active(schedule: Schedule, unix_s: float) -> bool:
    """Whether one of its times lies within the last `duration_s`."""
    # Elapsed time, not the zone's: a day may have 23 or 25 hours. CronSim gives times after the
    # one that it is told, to the minute.
    begin = datetime.fromtimestamp(unix_s - schedule.duration_s - 60.0, UTC)
    for time in CronSim(schedule.cron, begin.astimezone(schedule.zone)):
        since_s = unix_s - time.timestamp()
        if since_s < 0.0:
            return False
        if since_s < schedule.duration_s:
            return True
    return False
