"""The file by which a later autoscaler knows a replica process again."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tideserve.autoscaler.core.fleet import ModelKey
from tideserve.autoscaler.launchers.identity import ProcessIdentity


@dataclass(frozen=True, slots=True)
class ReplicaRecord:
    """Written by the replica's process itself before it does anything, so that no crash of
    the launcher can leave a replica without one. Holds no secret. `key` None: it was started
    as a standby."""

    replica_id: str
    key: ModelKey | None
    device: str
    identity: ProcessIdentity
    log_path: str


def write_record(path: Path, record: ReplicaRecord) -> None:
    """Whole or not at all: a reader never sees half a file."""
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps(asdict(record)), encoding="utf-8")
    draft.replace(path)


def read_record(path: Path) -> ReplicaRecord | None:
    """None where the file is gone or is not such a record."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        identity = fields["identity"]
        return ReplicaRecord(
            replica_id=str(fields["replica_id"]),
            key=_key_of(fields["key"]),
            device=str(fields["device"]),
            identity=ProcessIdentity(
                pid=int(identity["pid"]),
                start_ticks=int(identity["start_ticks"]),
                boot_id=str(identity["boot_id"]),
            ),
            log_path=str(fields["log_path"]),
        )
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _key_of(fields: dict[str, Any] | None) -> ModelKey | None:
    if fields is None:
        return None
    return ModelKey(str(fields["name"]), int(fields["version"]), str(fields["generation"]))
