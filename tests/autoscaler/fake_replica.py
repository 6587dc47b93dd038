"""A replica's entry module for tests of launching: it does what its token says."""

import json
import os
import signal
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ReplicaSettings:
    replica_id: str
    address: str
    token: str
    device: str = "cpu"
    device_name: str = ""
    threads: int = 1
    log_file: Path | None = None
    launched_at: float | None = None
    weights_folder: Path | None = None


def run(settings: ReplicaSettings) -> int:
    entered_at = time.time()
    order, _, argument = settings.token.partition(":")
    sys.stdout.write(f"order {order}\n")
    sys.stdout.flush()
    if order == "exit":
        return int(argument)
    if order == "thread":
        threading.Thread(target=time.sleep, args=(60,)).start()
        return int(argument)
    if order == "raise":
        raise RuntimeError(argument)
    if order == "signal":
        os.kill(os.getpid(), int(argument))
    if order == "tell":
        told = {
            "settings": asdict(settings),
            "entered_at": entered_at,
            "sid": os.getsid(0),
            "pid": os.getpid(),
            "environment": dict(os.environ),
            "cores": sorted(os.sched_getaffinity(0)),
            "modules": [name for name in ("typer", "pytest", "numpy") if name in sys.modules],
        }
        draft = Path(f"{argument}.draft")
        draft.write_text(json.dumps(told, default=str))
        draft.rename(argument)
    if order == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        signal.pause()
