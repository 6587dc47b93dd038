"""The autoscaler file while it is edited: a good edit takes effect, a bad one is told once."""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tideserve.autoscaler.config import AutoscalerFile
from tideserve.autoscaler.config_file import read_config
from tideserve.autoscaler.errors import ConfigError

_LOG: Final = logging.getLogger(__name__)
LOOK_S: Final = 0.25
# What is read once, at the start.
_FIXED: Final = ("server", "source", "launcher", "prometheus")


class WatchedConfig:
    """Owns the newest good configuration of one file, which the constructor reads first (raises
    `ConfigError`). `look` from the loop, as often as it
    likes: the file is looked at every `LOOK_S`, and read once it was the same at two looks."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._next_s = clock() + LOOK_S
        # Before it is read: an edit in between is then seen as one.
        self._seen = self._last = _stamp(path)
        self.config = read_config(path)

    def look(self) -> AutoscalerFile | None:
        """The new configuration once after a good edit, else None."""
        now_s = self._clock()
        if now_s < self._next_s:
            return None
        self._next_s = now_s + LOOK_S
        stamp, last = _stamp(self._path), self._last
        self._last = stamp
        # One that still changes is being written: half a file may be a good one, an empty file
        # is.
        if stamp == self._seen or stamp != last:
            return None
        self._seen = stamp
        try:
            config = read_config(self._path)
        except ConfigError as error:
            _LOG.error("the edit of %s changes nothing, it is wrong:\n%s", self._path, error)
            return None
        if config == self.config:
            return None
        for name in _FIXED:
            if getattr(config, name) != getattr(self.config, name):
                _LOG.warning(
                    "%s: a change of %s takes effect when the autoscaler is started again",
                    self._path,
                    name,
                )
        self.config = config
        _LOG.info("%s was edited: its new values are in effect", self._path)
        return config


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """Changes with every edit, also one that puts another file in its place."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino
