"""Carries out the actions of a pass at the frontend and at the launcher, and logs each."""

import logging
from collections.abc import Mapping, Sequence
from typing import Final, Protocol, assert_never, runtime_checkable

from tideserve.autoscaler.core.actions import (
    Action,
    Announce,
    Assign,
    Drain,
    Kill,
    Prepare,
    Report,
    Start,
)
from tideserve.autoscaler.core.decision import Decision
from tideserve.autoscaler.core.fleet import Exit, Instance, ModelKey, Snapshot
from tideserve.autoscaler.core.settings import Device
from tideserve.autoscaler.core.state import Rules
from tideserve.autoscaler.core.supply import memory_of
from tideserve.autoscaler.errors import (
    CallRefusedError,
    FrontendUnavailableError,
    LauncherAwayError,
    LaunchError,
)
from tideserve.autoscaler.launchers import Handle, Launcher, Preparer, ReplicaSpec

_LOG: Final = logging.getLogger(__name__)


class Control(Protocol):
    """What acts on the frontend. Each call raises `FrontendError` or one of its kinds."""

    def announce(self, replicas: Sequence[tuple[str, ModelKey | None]]) -> None:
        """These will join; None: as standbys."""

    def assign(self, replica_id: str, key: ModelKey) -> None:
        """This standby is to load that model version."""

    def report_decisions(self, decisions: Mapping[ModelKey, Decision]) -> None:
        """What is desired and why, for whoever watches."""

    def report_exit(self, report: Report) -> None:
        """This one ended."""

    def drain(self, replica_id: str) -> None:
        """This one is to finish what it holds and leave."""


@runtime_checkable
class Warmer(Protocol):
    """A launcher that cannot start replicas at any time."""

    def warm(self, backends: frozenset[str]) -> bool:
        """Begins in the background what the first start needs; False: it is not done yet, or
        nothing can be started now."""


class Executor:
    """Owns what became of starts: those that no launcher has, and the cores of the others.

    What the frontend fails to do comes again with the next pass.
    """

    def __init__(self, control: Control, launcher: Launcher, address: str, token: str) -> None:
        self._control = control
        self._launcher = launcher
        self._address = address
        self._token = token
        self._unborn: dict[str, Instance] = {}  # announced, then failed to launch
        self._cores: dict[str, tuple[str, frozenset[int]]] = {}  # with the device, by replica
        self._unprepared = ""  # why the last `prepare` failed
        self._away = False
        self._engine_away = False  # as of the last start

    @property
    def can_prepare(self) -> bool:
        return isinstance(self._launcher, Preparer)

    @property
    def unborn(self) -> Sequence[Instance]:
        """Starts that failed at the launcher, until they are reported."""
        return tuple(self._unborn.values())

    def warm(self, snapshot: Snapshot) -> bool:
        """False: a start would have to wait for the launcher."""
        if not isinstance(self._launcher, Warmer):
            return True
        backends = _backends(snapshot)
        return not backends or self._launcher.warm(backends)

    def run(
        self,
        actions: Sequence[Action],
        handles: Mapping[str, Handle],
        snapshot: Snapshot,
        rules: Rules,
    ) -> Sequence[Action]:
        """Those that were carried out. Kills first: they need no frontend."""
        done: list[Action] = []
        starts = [action for action in actions if isinstance(action, Start)]
        others: list[Assign | Prepare | Announce | Drain | Kill | Report] = [
            action for action in actions if not isinstance(action, Start)
        ]
        others.sort(key=lambda action: not isinstance(action, Kill))
        try:
            for action in others:
                done += [action] if self._do(action, handles, rules) else []
            if starts and self.warm(snapshot):
                done += self._start(starts, handles, snapshot, rules)
        except FrontendUnavailableError as error:
            if not self._away:
                _LOG.warning("put off, the frontend does not answer: %s", error)
            self._away = True
        else:
            self._away = False
        return done

    def _do(
        self,
        action: Assign | Prepare | Announce | Drain | Kill | Report,
        handles: Mapping[str, Handle],
        rules: Rules,
    ) -> bool:
        try:
            match action:
                case Kill():
                    self._kill(action, handles)
                case Report():
                    self._report(action, handles)
                case Drain():
                    self._control.drain(action.replica_id)
                    _LOG.info("drain %s: %s", action.replica_id, action.reason)
                case Assign():
                    self._control.assign(action.replica_id, action.key)
                    _LOG.info(
                        "assign %s to model %s: %s", action.replica_id, action.key, action.reason
                    )
                case Prepare():
                    return self._prepare(action, rules)
                case Announce():
                    self._control.announce([(action.replica_id, action.key)])
                    _LOG.info("announce %s: %s", action.replica_id, action.reason)
                case _:
                    assert_never(action)
        except CallRefusedError as error:
            _LOG.warning("%s: %s", action.replica_id, error)
            return False
        return True

    def _prepare(self, action: Prepare, rules: Rules) -> bool:
        assert isinstance(self._launcher, Preparer), "nothing is prepared without one"
        device = _device(rules, action.device)
        spec = self._spec(action.replica_id, None, device, self._next_cores(device), 0)
        try:
            handle = self._launcher.prepare(spec)
        except LaunchError as error:
            if self._unprepared != str(error):
                _LOG.warning("nothing was prepared: %s", error)
            self._unprepared = str(error)
            return False
        self._unprepared = ""
        self._cores[action.replica_id] = (device.name, spec.cores)
        _LOG.info("prepare %s, %s: %s", handle.replica_id, handle.where, action.reason)
        return True

    def _kill(self, action: Kill, handles: Mapping[str, Handle]) -> None:
        handle = handles[action.replica_id]
        level = logging.INFO if handle.prepared else logging.WARNING
        _LOG.log(level, "kill %s, %s: %s", handle.replica_id, handle.where, action.reason)
        self._launcher.kill(handle)

    def _report(self, action: Report, handles: Mapping[str, Handle]) -> None:
        """Tells the frontend first: a launcher that forgot it could not be asked again."""
        level = logging.WARNING if action.failed_starts else logging.INFO
        tail = "".join(f"\n    {line}" for line in action.log_tail) if action.failed_starts else ""
        _LOG.log(level, "%s ended: %s%s", action.replica_id, action.cause, tail)
        if action.give_up_reason:
            _LOG.error("given up for now: %s", action.give_up_reason)
        try:
            self._control.report_exit(action)
        except CallRefusedError as error:
            _LOG.warning("%s: %s", action.replica_id, error)
        self._unborn.pop(action.replica_id, None)
        if action.replica_id in handles:
            self._launcher.kill(handles[action.replica_id])

    def _start(
        self,
        starts: Sequence[Start],
        handles: Mapping[str, Handle],
        snapshot: Snapshot,
        rules: Rules,
    ) -> list[Start]:
        """Announced before they are launched: the frontend turns unknown ones away."""
        done: list[Start] = []
        try:
            self._control.announce([(start.replica_id, start.key) for start in starts])
        except CallRefusedError as error:
            _LOG.warning("not started: %s", error)
            return done
        running = {name for name, handle in handles.items() if handle.exit is None}
        self._cores = {name: cores for name, cores in self._cores.items() if name in running}
        for start in starts:
            device = _device(rules, start.device)
            known = self._cores.get(start.replica_id)
            cores = known[1] if known is not None else self._next_cores(device)
            memory_bytes = memory_of(start.key, rules.memory_bytes_of)
            spec = self._spec(
                start.replica_id, start.key, device, cores, memory_bytes, _backends(snapshot)
            )
            try:
                handle = self._launcher.start(spec)
            except LaunchError as error:
                # An engine that answers in between, and fails the next start in the same way, is
                # not away: that start backs off as any other.
                if isinstance(error, LauncherAwayError) and not self._engine_away:
                    self._engine_away = True
                    self._withdraw(starts[starts.index(start) :], str(error))
                    break
                self._unborn[start.replica_id] = Instance(
                    start.replica_id,
                    start.key,
                    start.device,
                    Exit(f"could not be started: {error}"),
                )
                continue
            self._engine_away = False
            self._cores[start.replica_id] = (device.name, cores)
            done.append(start)
            _LOG.info("start %s, %s: %s", handle.replica_id, handle.where, start.reason)
        return done

    def _withdraw(self, starts: Sequence[Start], why: str) -> None:
        """Of announced ones that cannot be launched now: later ones take their place, under
        other names."""
        for start in starts:
            try:
                self._control.report_exit(Report(start.replica_id, f"not started: {why}"))
            except CallRefusedError as error:
                _LOG.warning("%s: %s", start.replica_id, error)

    def _spec(
        self,
        replica_id: str,
        key: ModelKey | None,
        device: Device,
        cores: frozenset[int],
        memory_bytes: int,
        backends: frozenset[str] = frozenset(),
    ) -> ReplicaSpec:
        return ReplicaSpec(
            replica_id=replica_id,
            key=key,
            address=self._address,
            token=self._token,
            device=device.name,
            threads=device.threads,
            backends=backends,
            cores=cores,
            memory_bytes=memory_bytes,
        )

    def _next_cores(self, device: Device) -> frozenset[int]:
        """The CPU set that the fewest have; of those that an earlier autoscaler started it is
        not known."""
        if not device.cores:
            return frozenset()
        taken = [cores for name, cores in self._cores.values() if name == device.name]
        return min(device.cores, key=taken.count)


def _backends(snapshot: Snapshot) -> frozenset[str]:
    return frozenset(model.backend for model in snapshot.models if model.wanted)


def _device(rules: Rules, name: str) -> Device:
    """One that is listed no longer has no cores to give."""
    return next((device for device in rules.devices if device.name == name), Device(name))
