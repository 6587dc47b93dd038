"""The least replicas that schedules ask for at a time."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from cronsim import CronSim

from tideserve.autoscaler.core.settings import Schedule


def scheduled_minimum(schedules: Iterable[Schedule], unix_s: float) -> int:
    """The highest `min_replicas` of those that are active; 0: none is."""
    return max(
        (schedule.min_replicas for schedule in schedules if is_active(schedule, unix_s)), default=0
    )


def is_active(schedule: Schedule, unix_s: float) -> bool:
    """Whether one of its times lies within the last `duration_s`."""
    now = datetime.fromtimestamp(unix_s, UTC).astimezone(schedule.zone)
    # CronSim gives times after the one that it is told, to the minute.
    begin = now - timedelta(seconds=schedule.duration_s)
    begin -= timedelta(minutes=1)
    for time in CronSim(schedule.cron, begin):
        if time > now:
            return False
        if (now - time).total_seconds() < schedule.duration_s:
            return True
    return False
