"""Where replica processes share weights (`tideserve.replica`), and for how long unused ones stay."""

import logging
import shutil
from pathlib import Path
from typing import Final

_LOG: Final = logging.getLogger(__name__)
# A replica that opens shared weights touches them. Those of models that are gone would stay for ever.
# Long, for a machine with the same home may serve for weeks without opening them again.
KEPT_S: Final = 30 * 24 * 3600.0


def prune(folder: Path, now_s: float) -> None:
    """Removes what was not opened for `KEPT_S` (`now_s`: unix seconds) from `folder`, which has one
    for each model version. Who still has it mapped keeps it."""
    for version in folder.glob("*/"):
        try:
            held = list(version.iterdir())
            old = [path for path in held if now_s - path.stat().st_mtime > KEPT_S]
            if len(old) == len(held) and now_s - version.stat().st_mtime > KEPT_S:
                shutil.rmtree(version)
                continue
            # Of a machine that is gone, which nobody else removes.
            for path in old:
                if path.is_dir():
                    shutil.rmtree(path)
        except OSError as error:
            _LOG.info("shared weights in %s stay: %s", version, error)
