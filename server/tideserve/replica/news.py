"""What a replica reports with its beats."""

import os
from pathlib import Path
from typing import Final

from tideserve.replica.loading import Loaded, NotLoaded, Phase
from tideserve.v1.replica_pb2 import (
    BeatRequest,
    LoadFailed,
    Loading,
    ProfilePoint,
    Ready,
    StartupPhase,
)

_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")


def loading(phase: str) -> BeatRequest:
    """A start-up phase has begun."""
    return BeatRequest(loading=Loading(phase=phase))


def loaded(result: Loaded | NotLoaded, launch_s: float) -> BeatRequest:
    """Ready, or LoadFailed. `launch_s` is from the launcher's request to the first Join."""
    phases = [
        StartupPhase(name=phase.name, duration_s=phase.duration_s)
        for phase in (Phase("launch", launch_s), *result.phases)
    ]
    match result:
        case Loaded():
            profile = [
                ProfilePoint(batch_rows=point.rows, latency_s=point.latency_s)
                for point in result.profile
            ]
            return BeatRequest(ready=Ready(config=result.config, phases=phases, profile=profile))
        case NotLoaded():
            failed = LoadFailed(message=result.message, phases=phases, hopeless=result.hopeless)
            return BeatRequest(load_failed=failed)


def memory_bytes() -> int:
    """Resident size of this process (proc(5), statm's second field)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE_BYTES
