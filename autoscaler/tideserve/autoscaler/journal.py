"""The decision log: a line of JSON for each decision that changed or that something followed from."""

import json
import logging
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import Any, Final, Protocol

from tideserve.autoscaler.core.actions import Action, Assign, Prepare, Report, Start
from tideserve.autoscaler.core.decision import Decision
from tideserve.autoscaler.core.fleet import ModelKey, ReplicaState, Snapshot
from tideserve.autoscaler.core.load import Sample

_LOG: Final = logging.getLogger(__name__)
KEPT: Final = 1000
# Then the file becomes FILE.1, in place of an older one.
MAX_FILE_BYTES: Final = 10 * 1024 * 1024
_OPEN_EVERY_S: Final = 10.0


class Recorder(Protocol):
    """`AutoscalerMetrics`, to the log."""

    def record(
        self,
        now_s: float,
        snapshot: Snapshot,
        decisions: Mapping[ModelKey, Decision],
        changed: Sequence[ModelKey],
    ) -> None:
        """One look; `changed`: whose desired count is another one."""


class DecisionLog:
    """Owns the file and the last `KEPT` entries. `record` from one thread, `recent` from any.

    A file that cannot be written is told once; decisions go on. One that cannot be opened is
    tried again now and then.
    """

    def __init__(
        self, path: Path, metrics: Recorder, *, max_file_bytes: int = MAX_FILE_BYTES
    ) -> None:
        self._path = path
        self._metrics = metrics
        self._max_file_bytes = max_file_bytes
        self._file: TextIOWrapper | None = None
        self._lock = threading.Lock()  # guards `_recent`
        self._recent: deque[dict[str, Any]] = deque(maxlen=KEPT)
        self._last: dict[ModelKey, tuple[int, str | None]] = {}
        self._broken = False
        self._is_kept = False  # from `open` to `close`
        self._opened_s: float | None = None  # when it was tried again last

    def open(self) -> None:
        """Appends to what earlier autoscalers wrote."""
        self._is_kept = True
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._file = self._path.open("a", encoding="utf-8")
        except OSError as error:
            self._break(error)

    def close(self) -> None:
        self._is_kept = False
        self._let_go()

    def _let_go(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            try:
                file.close()
            except OSError as error:  # a full disk, found by the last flush
                self._break(error)

    def recent(self, count: int = KEPT) -> list[dict[str, Any]]:
        """The newest entries, oldest first."""
        with self._lock:
            return list(self._recent)[-count:] if count > 0 else []

    def record(
        self,
        now_s: float,
        snapshot: Snapshot,
        sample: Sample,
        decisions: Mapping[ModelKey, Decision],
        actions: Sequence[Action],
    ) -> None:
        """One look of the loop."""
        outcomes = {key: (d.desired, d.limited_by) for key, d in decisions.items()}
        changed = [key for key in decisions if self._last.get(key) != outcomes[key]]
        moved = [k for k in changed if k not in self._last or self._last[k][0] != outcomes[k][0]]
        self._metrics.record(now_s, snapshot, decisions, moved)
        by_model = _by_model(actions, snapshot)
        self._last = outcomes
        self._open_again(now_s)
        for key in sorted(decisions.keys() & {*changed, *by_model}):
            self._write(_entry(key, decisions[key], snapshot, sample, by_model.get(key, [])))
        others = [text for key, texts in by_model.items() if key not in decisions for text in texts]
        if others:
            self._write({"unix_s": round(sample.unix_s, 3), "actions": others})

    def _open_again(self, now_s: float) -> None:
        if self._file is not None or not self._is_kept:
            return
        if self._opened_s is None or now_s - self._opened_s >= _OPEN_EVERY_S:
            self._opened_s = now_s
            self.open()

    def _write(self, entry: dict[str, Any]) -> None:
        with self._lock:
            self._recent.append(entry)
        if self._file is None:
            return
        try:
            self._file.write(json.dumps(entry, separators=(",", ":")) + "\n")
            self._file.flush()
            if self._file.tell() >= self._max_file_bytes:
                self._rotate()
            self._broken = False
        except OSError as error:
            self._break(error)

    def _rotate(self) -> None:
        """Where the old file cannot be put aside, it goes on in it."""
        self._let_go()
        try:
            self._path.replace(self._path.with_name(f"{self._path.name}.1"))
        finally:
            self._file = self._path.open("a", encoding="utf-8")

    def _break(self, error: OSError) -> None:
        """Once for each time that it breaks."""
        if not self._broken:
            _LOG.error("the decision log %s cannot be written: %s", self._path, error)
        self._broken = True


def _entry(
    key: ModelKey, decision: Decision, snapshot: Snapshot, sample: Sample, actions: list[str]
) -> dict[str, Any]:
    states = [replica.state for replica in snapshot.replicas if replica.key == key]
    return {
        "unix_s": round(sample.unix_s, 3),
        "model": key.name,
        "version": key.version,
        "desired": decision.desired,
        "ready": states.count(ReplicaState.READY),
        "starting": states.count(ReplicaState.STARTING),
        "reason": decision.reason,
        "limited_by": decision.limited_by,
        "inputs": {name: round(value, 6) for name, value in decision.inputs.items()},
        "actions": actions,
    }


def _by_model(actions: Sequence[Action], snapshot: Snapshot) -> dict[ModelKey | None, list[str]]:
    """What is done, in words, by the model that it is done for."""
    keys = {replica.replica_id: replica.key for replica in snapshot.replicas}
    found: dict[ModelKey | None, list[str]] = {}
    for action in actions:
        key = action.key if isinstance(action, Start | Assign) else keys.get(action.replica_id)
        if isinstance(action, Prepare):
            key = None
        text = f"{type(action).__name__.lower()} {action.replica_id}"
        if isinstance(action, Report):
            text += f": {action.cause}"
        found.setdefault(key, []).append(text)
    return found
