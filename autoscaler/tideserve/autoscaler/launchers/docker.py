"""Replicas as containers of a Docker Engine.

The engine keeps what there is to know: containers carry labels, and a later launcher of the
same owner finds them by these. A thread looks at the engine whenever the engine tells of an
event, and now and then; `list` gives what it last saw. So an engine that hangs or is gone
blocks nobody, and never makes a running replica look ended (S2).
"""

import logging
import secrets
import threading
import time
from builtins import list as List  # noqa: N812 - DockerLauncher.list hides it
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from tideserve.autoscaler.core.fleet import Exit
from tideserve.autoscaler.errors import LauncherAwayError, LaunchError, NoSuchReplicaError
from tideserve.autoscaler.launchers import Handle, ReplicaSpec
from tideserve.autoscaler.launchers.container_table import ContainerTable
from tideserve.autoscaler.launchers.containers import (
    LAUNCHER,
    DockerSettings,
    container_name,
    exit_of,
    handle_of,
    plan_of,
    refusal_in_words,
)
from tideserve.autoscaler.launchers.engine import (
    Container,
    DockerEngine,
    Engine,
    EngineDownError,
    EngineRefusedError,
    require_sdk,
)

__all__ = ["DockerLauncher", "DockerSettings"]

_LOG: Final = logging.getLogger(__name__)
_TAIL_LINES: Final = 20
_FIRST_PAUSE_S: Final = 0.25
_MAX_PAUSE_S: Final = 5.0
# The engine tells of an end (20.10: some milliseconds) before it lists it.
_SETTLE_S: Final = 0.1
# A start that timed out may still be carried out by the engine.
_ABANDONED_S: Final = 60.0
_JOIN_S: Final = 3.0
_NOT_FOUND: Final = 404
_CONFLICT: Final = 409  # not running any more, or its removal is in progress


class DockerLauncher:
    """Owns the containers of one owner on one engine. Used from one thread, but for `log`.

    `on_exit` is called from a thread of its own when a container has ended. `connect` makes a
    connection for one thread, without using it; by default to the engine of the settings.
    """

    def __init__(
        self,
        settings: DockerSettings,
        on_exit: Callable[[], None],
        connect: Callable[[], Engine] | None = None,
    ) -> None:
        self._settings = settings
        self._on_exit = on_exit
        self._needs_sdk = connect is None
        self._connect = connect or self._docker_engine
        self._life = secrets.token_hex(4)
        self._starts = self._connect()
        self._looks = self._connect()
        self._events = self._connect()
        self._table = ContainerTable()
        self._refused: set[str] = set()  # containers whose end was refused, said once of each
        self._down_lock = threading.Lock()
        self._down = ""  # why the engine cannot be asked
        self._poke = threading.Event()
        self._stop = threading.Event()
        self._threads = (
            threading.Thread(target=self._watch, name="docker-watch", daemon=True),
            threading.Thread(target=self._follow, name="docker-events", daemon=True),
        )

    def open(self) -> None:
        """Adopts what runs, removes what an earlier one prepared; an engine that does not
        answer is tried again from a thread. Raises `SettingsError` without the Docker SDK."""
        if self._needs_sdk:
            require_sdk()
        self._look()
        for handle in self.list():
            _LOG.info("adopted replica %s, %s", handle.replica_id, handle.where)
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Does what was asked for and stops watching. The other containers go on. May be
        repeated."""
        self._stop.set()
        self._poke.set()
        self._events.close()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(_JOIN_S)
        self._looks.close()
        self._starts.close()

    # --- of a launcher --------------------------------------------------------------------

    def warm(self, backends: frozenset[str]) -> bool:  # noqa: ARG002 - any start needs the engine
        """False: the engine does not answer, a start would fail."""
        with self._down_lock:
            return not self._down

    def start(self, spec: ReplicaSpec) -> Handle:
        """Starts a prepared container, or makes one and starts it."""
        name = container_name(spec.replica_id)
        known = self._table.get(spec.replica_id)
        if known is not None and known.prepared and self._start_prepared(spec.replica_id, name):
            return self._table.put(replace(known, key=spec.key, prepared=False))
        self._create(spec, name, prepared=False)
        try:
            self._starts.start(name)
        except (EngineDownError, EngineRefusedError) as error:
            raise self._given_up(spec.replica_id, error) from error
        return self._table.put(_handle(spec, name, prepared=False))

    def prepare(self, spec: ReplicaSpec) -> Handle:
        """Makes a container that `start` only has to start."""
        name = container_name(spec.replica_id)
        self._create(spec, name, prepared=True)
        return self._table.put(_handle(spec, name, prepared=True))

    def list(self) -> List[Handle]:
        """As last seen; an engine that does not answer ends nothing."""
        return self._table.handles()

    def kill(self, handle: Handle) -> None:
        """Asked for here, done by the watching thread."""
        self._table.kill(handle.replica_id)
        self._poke.set()

    def log(self, replica_id: str, tail_lines: int) -> tuple[str, ...]:
        """From any thread; of a removed one the last lines, while they are remembered. Only of
        this launcher's own: an engine has other people's containers too."""
        if self._table.get(replica_id) is None:
            return self._last_lines(replica_id)[-tail_lines:]
        engine = self._connect()
        try:
            return engine.tail(container_name(replica_id), tail_lines)
        except EngineRefusedError as error:
            if error.status != _NOT_FOUND:
                raise
            return self._last_lines(replica_id)[-tail_lines:]
        finally:
            engine.close()

    def _last_lines(self, replica_id: str) -> tuple[str, ...]:
        lines = self._table.last_lines(replica_id)
        if lines is None:
            raise NoSuchReplicaError(f"no container of a replica {replica_id!r} is at the engine")
        return lines

    # --- starting -------------------------------------------------------------------------

    def _start_prepared(self, replica_id: str, name: str) -> bool:
        """False: it is gone, and one has to be made."""
        self._check_up()
        try:
            self._starts.start(name)
        except (EngineDownError, EngineRefusedError) as error:
            if isinstance(error, EngineRefusedError) and error.is_missing_container:
                return False
            raise self._given_up(replica_id, error) from error
        return True

    def _create(self, spec: ReplicaSpec, name: str, *, prepared: bool) -> None:
        self._check_up()
        plan = plan_of(
            spec, self._settings, launcher=self._life, prepared=prepared, now_s=time.time()
        )
        try:
            self._starts.create(plan)
        except EngineRefusedError as error:
            # Nothing was made; what has the name already is another's.
            raise LaunchError(refusal_in_words(error, name, self._settings)) from error
        except EngineDownError as error:
            raise self._given_up(spec.replica_id, error) from error

    def _check_up(self) -> None:
        """While the engine is away a start fails at once, instead of after its time limit."""
        with self._down_lock:
            down = self._down
        if down:
            raise LauncherAwayError(down)

    def _given_up(
        self, replica_id: str, error: EngineDownError | EngineRefusedError
    ) -> LaunchError:
        """The container is removed, now or as soon as it shows."""
        self._table.abandon(replica_id, time.monotonic() + _ABANDONED_S)
        self._poke.set()
        if isinstance(error, EngineRefusedError):
            return LaunchError(refusal_in_words(error, container_name(replica_id), self._settings))
        self._went_down(str(error))
        return LauncherAwayError(str(error))

    # --- watching -------------------------------------------------------------------------

    def _watch(self) -> None:
        pause_s = _FIRST_PAUSE_S
        poked = False
        while not self._stop.is_set():
            self._poke.clear()
            if self._look():
                pause_s = _FIRST_PAUSE_S
                poked = self._poke.wait(_SETTLE_S if poked else self._settings.poll_s)
            else:
                self._stop.wait(pause_s)
                pause_s = min(_MAX_PAUSE_S, 2 * pause_s)
        if self._table.owes():  # asked for during the last look
            self._look()

    def _follow(self) -> None:
        """Events wake the watching thread; it looks now and then where there are none."""
        pause_s = _FIRST_PAUSE_S
        while not self._stop.is_set():
            began_s = time.monotonic()
            try:
                self._events.follow(self._settings.owner_label, self._poke.set)
            except (EngineDownError, EngineRefusedError) as error:
                _LOG.debug("the engine's events end: %s", error)
            if time.monotonic() - began_s > _MAX_PAUSE_S:
                pause_s = _FIRST_PAUSE_S
            self._stop.wait(pause_s)
            pause_s = min(_MAX_PAUSE_S, 2 * pause_s)

    def _look(self) -> bool:
        """One look at the engine, with the kills and removals that are due; False: it does
        not answer."""
        look = self._table.begin()
        try:
            for replica_id in look.kills:
                self._tell(self._looks.kill, container_name(replica_id))
                self._table.killed(replica_id)
            seen: dict[str, Handle] = {}
            removing: set[str] = set()
            for container in self._looks.containers(self._settings.owner_label):
                if container.name in look.doomed or self._is_stale(container):
                    removing.add(container.name)
                    self._tell(self._looks.remove, container.name)
                elif (handle := self._handle_of(container, look.ended)) is not None:
                    seen[handle.replica_id] = handle
        except EngineDownError as error:
            self._went_down(str(error))
            return False
        except EngineRefusedError as error:
            self._went_down(f"the Docker Engine refuses to list: {error}")
            return False
        self._came_back()
        self._refused &= removing | {container_name(replica_id) for replica_id in seen}
        if self._table.merge(look, seen, removing, time.monotonic()):
            self._on_exit()
        return True

    def _is_stale(self, container: Container) -> bool:
        """Prepared by an earlier launcher: for another image, token or address, maybe."""
        return container.prepared and container.labels.get(LAUNCHER) != self._life

    def _tell(self, order: Callable[[str], None], name: str) -> None:
        """Has a container killed or removed; one that is gone already is no error."""
        try:
            order(name)
        except EngineRefusedError as error:
            if error.status not in (_NOT_FOUND, _CONFLICT) and name not in self._refused:
                self._refused.add(name)
                _LOG.error("the engine does not end container %s: %s", name, error)

    def _handle_of(self, container: Container, known_ended: frozenset[str]) -> Handle | None:
        handle = handle_of(container)
        if handle is None or not container.ended or handle.replica_id in known_ended:
            return handle
        try:
            ending = exit_of(self._looks.ending(container.name, _TAIL_LINES))
        except EngineRefusedError as error:
            ending = Exit(f"ended, and the engine cannot say how: {error}")
        return replace(handle, exit=ending)

    def _went_down(self, why: str) -> None:
        with self._down_lock:
            was_up, self._down = not self._down, why
        if was_up:
            _LOG.warning("%s; what runs goes on, the engine is asked again", why)

    def _came_back(self) -> None:
        with self._down_lock:
            was_down, self._down = bool(self._down), ""
        if was_down:
            _LOG.info("the Docker Engine answers again")

    def _docker_engine(self) -> Engine:
        settings = self._settings
        return DockerEngine(settings.engine_url, settings.environment, settings.timeout_s)


def _handle(spec: ReplicaSpec, name: str, *, prepared: bool) -> Handle:
    return Handle(spec.replica_id, spec.key, spec.device, f"container {name}", prepared=prepared)
