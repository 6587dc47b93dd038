"""A replica from its first Join to its leaving.

The main thread owns this: it beats, hears commands and signals, and decides when to leave.
The compute thread loads and runs the model, the life line has a reader of its own. A life
is one Join; the loaded model outlives it.
"""

import logging
import sys
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from time import monotonic, time
from typing import Final, assert_never

from tideserve.replica import news
from tideserve.replica.arena import Arena, open_arena
from tideserve.replica.compute import ComputeThread
from tideserve.replica.errors import CallBrokenError, CallRefusedError, JoinRefusedError
from tideserve.replica.events import (
    Commanded,
    ComputeCrashed,
    Event,
    ExchangesEnded,
    LeaveAsked,
    LifeEvent,
    LifeLineEnd,
    LifeLineEnded,
    LoadEnded,
    PhaseBegan,
)
from tideserve.replica.exchange import ExchangeState, Prefetch
from tideserve.replica.exchanger import BusyClock, End, Exchanger
from tideserve.replica.life import DEFAULT_BEAT_INTERVAL_S, LeaveError, Life, LifeOverError
from tideserve.replica.link import Link
from tideserve.replica.loading import Assignment, Loaded, NotLoaded, load
from tideserve.replica.pinned import pinned
from tideserve.replica.runner import FRAME_BYTES
from tideserve.replica.settings import Device, ExitCode, ReplicaSettings
from tideserve.replica.sockets import nearest_of
from tideserve.replica.wire import RequestWriter
from tideserve.v1.model_config_pb2 import ModelConfig
from tideserve.v1.replica_pb2 import BeatRequest, Command

_LOG: Final = logging.getLogger(__name__)
JOIN_PAUSE_S: Final = 0.5
WELCOME_TIMEOUT_S: Final = 10.0
# Beats that an Exchange makes needless are still sent this often, for the news they carry.
NEWS_INTERVAL_S: Final = 1.0
UNLIMITED_BYTES: Final = sys.maxsize
# After its last batch a draining replica gives its model so long to unload.
UNLOAD_TIMEOUT_S: Final = 5.0


class Process:
    """Owns the lives, one after the other, and the model."""

    def __init__(self, settings: ReplicaSettings) -> None:
        self._settings = settings
        self._events: SimpleQueue[Event] = SimpleQueue()
        self._compute = ComputeThread(lambda: self._events.put(ComputeCrashed()))
        self._busy = BusyClock()
        self._lives = 0
        self._assignment: Assignment | None = None
        self._result: Loaded | NotLoaded | None = None
        self._phase: str | None = None
        self._leaving = False
        self._last_contact_s = 0.0
        self._launch_s = 0.0
        self._drained = False

    def ask_to_leave(self) -> None:
        """From a signal handler: like Drain."""
        self._events.put(LeaveAsked())

    def run(self) -> ExitCode:
        """Lives until something says to leave."""
        launched_at = self._settings.launched_at
        self._launch_s = 0.0 if launched_at is None else max(0.0, time() - launched_at)
        self._last_contact_s = monotonic()
        self._compute.start()
        try:
            while True:
                self._live()
                self._pause()
        except LeaveError as leave:
            level = logging.INFO if leave.code is ExitCode.CLEAN else logging.ERROR
            _LOG.log(level, "leaving with code %d: %s", leave.code, leave)
            if self._drained:
                self._unload()
            return leave.code

    # --- lives --------------------------------------------------------------------------------

    def _live(self) -> None:
        """One Join, from dialling to its end. Raises `LeaveError`."""
        self._lives += 1
        address = nearest_of(self._settings.local_address, self._settings.address)
        life = Life(self._lives, Link(self._settings, address), monotonic())
        reader = Thread(target=self._read_commands, args=(life,), name="life-line", daemon=True)
        reader.start()
        try:
            while True:
                self._step(life)
        except LifeOverError as over:
            _LOG.warning("life %d is over: %s", life.epoch, over)
        finally:
            life.close()

    def _pause(self) -> None:
        """Between two lives. Raises `LeaveError` when no frontend was found for long."""
        if self._leaving:
            raise LeaveError(ExitCode.CLEAN, "asked to leave")
        gone_s = monotonic() - self._last_contact_s
        if gone_s > self._settings.reconnect_s:
            raise LeaveError(
                ExitCode.UNREACHABLE,
                f"no frontend at {self._settings.address} that knows "
                f"{self._settings.replica_id!r} for {gone_s:.1f} s",
            )
        until_s = monotonic() + JOIN_PAUSE_S
        while (left_s := until_s - monotonic()) > 0:
            try:
                self._on_event(None, self._events.get(timeout=left_s))
            except Empty:
                return

    def _step(self, life: Life) -> None:
        now_s = monotonic()
        if not life.epoch:
            wait_s = life.opened_s + WELCOME_TIMEOUT_S - now_s
            if wait_s <= 0:
                raise LifeOverError("no Welcome came")
        else:
            self._last_contact_s = now_s
            wait_s = self._beat_if_due(life, now_s)
        try:
            event = self._events.get(timeout=wait_s)
        except Empty:
            return
        self._on_event(life, event)

    def _on_event(self, life: Life | None, event: Event) -> None:
        match event:
            case Commanded() | LifeLineEnded() | ExchangesEnded():
                if life is not None and life.number == event.life:
                    self._on_life_event(life, event)
            case PhaseBegan(phase):
                self._phase = phase
                if life is not None and life.epoch:
                    self._beat(life, news.loading(phase))
            case LoadEnded(result):
                self._result = result
                if life is not None and life.assigned:
                    self._tell_result(life)
            case LeaveAsked():
                self._on_drain(life, "a signal")
            case ComputeCrashed():
                raise LeaveError(ExitCode.LOAD_FAILED, "the compute thread failed")
            case _:
                assert_never(event)

    def _on_life_event(self, life: Life, event: LifeEvent) -> None:
        match event:
            case Commanded(_, command):
                self._on_command(life, command)
            case LifeLineEnded(_, end, detail):
                self._on_life_line_ended(life, end, detail)
            case ExchangesEnded(_, end, detail):
                self._on_exchanges_ended(end, detail)
            case _:
                assert_never(event)

    # --- commands -----------------------------------------------------------------------------

    def _on_command(self, life: Life, command: Command) -> None:
        match command.WhichOneof("command"):
            case "welcome":
                self._on_welcome(life, command)
            case "assign":
                self._on_assign(life, command)
            case "drain":
                self._on_drain(life, "the frontend")
            case "stop":
                raise LeaveError(ExitCode.CLEAN, f"stopped: {command.stop.reason}")
            case _:
                _LOG.warning("a command that this replica does not know was ignored")

    def _on_welcome(self, life: Life, command: Command) -> None:
        welcome = command.welcome
        life.epoch = welcome.epoch
        life.beat_interval_s = welcome.beat_interval_s or DEFAULT_BEAT_INTERVAL_S
        life.max_message_bytes = welcome.max_message_bytes or UNLIMITED_BYTES
        if welcome.HasField("arena"):
            life.arena = open_arena(welcome.arena, life.link.take_file())
        _LOG.info("joined %s in epoch %d", life.link.address, life.epoch)

    def _on_assign(self, life: Life, command: Command) -> None:
        assign = command.assign
        config = ModelConfig()
        config.CopyFrom(assign.config)
        assignment = Assignment(
            name=assign.model_name,
            version=assign.model_version,
            generation=assign.generation,
            path=Path(assign.model_path),
            config=config,
        )
        life.assigned = True
        if self._assignment is None:
            self._assignment = assignment
            self._compute.submit(lambda: self._load(assignment))
        elif not self._assignment.same_model(assignment):
            # A process holds one model for its life: a fresh one costs less than the doubt
            # about what a runtime keeps of the old model.
            raise LeaveError(
                ExitCode.LIFE_OVER,
                f"holds {self._assignment.name!r} version {self._assignment.version}, was "
                f"assigned {assignment.name!r} version {assignment.version} "
                f"(generation {assignment.generation})",
            )
        elif self._result is not None:
            if life.exchanger is None:
                self._tell_result(life)
        elif self._phase is not None:
            self._beat(life, news.loading(self._phase))

    def _on_drain(self, life: Life | None, by: str) -> None:
        _LOG.info("asked to leave by %s", by)
        self._leaving = True
        if life is None or life.exchanger is None:
            raise LeaveError(ExitCode.CLEAN, "drained before it served")
        life.exchanger.drain()

    def _on_life_line_ended(self, life: Life, end: LifeLineEnd, detail: str) -> None:
        if end is LifeLineEnd.HOPELESS:
            raise LeaveError(ExitCode.UNREACHABLE, detail)
        if end is LifeLineEnd.REFUSED and life.epoch:
            raise self._refused(detail)
        raise LifeOverError(f"the life line ended: {detail}")

    def _on_exchanges_ended(self, end: End, detail: str) -> None:
        match end:
            case End.DRAINED:
                self._drained = True
                raise LeaveError(ExitCode.CLEAN, "drained")
            case End.DEVICE_LOST:
                raise LeaveError(ExitCode.DEVICE_LOST, "the device is lost")
            case End.REFUSED:
                raise self._refused(detail)
            case End.BROKEN:
                raise LifeOverError(f"Exchanges broke: {detail}")
            case _:
                assert_never(end)

    def _refused(self, detail: str) -> LeaveError:
        """The frontend ends the life of a replica that told of a lost device."""
        if isinstance(self._result, Loaded) and self._result.runner.device_lost:
            return LeaveError(ExitCode.DEVICE_LOST, "the device is lost")
        return LeaveError(ExitCode.LIFE_OVER, detail)

    # --- the model ----------------------------------------------------------------------------

    def _load(self, assignment: Assignment) -> None:
        settings = self._settings
        result = load(
            assignment,
            Device.parse(settings.device),
            settings.threads,
            lambda phase: self._events.put(PhaseBegan(phase)),
            settings.weights_folder,
        )
        self._events.put(LoadEnded(result))

    def _unload(self) -> None:
        if isinstance(self._result, Loaded):
            self._compute.submit(self._result.runner.close)
        if not self._compute.close(UNLOAD_TIMEOUT_S):
            _LOG.warning("the model did not unload within %g s", UNLOAD_TIMEOUT_S)

    def _tell_result(self, life: Life) -> None:
        """Ready, and on with serving; or LoadFailed, and out."""
        result = self._result
        assert result is not None
        life.result_due = not self._beat(life, news.loaded(result, self._launch_s))
        if life.result_due:
            return
        if isinstance(result, NotLoaded):
            raise LeaveError(ExitCode.LOAD_FAILED, result.message)
        self._serve(life, result)

    def _serve(self, life: Life, loaded: Loaded) -> None:
        number = life.number
        exchanger = Exchanger(
            life.link,
            loaded.runner,
            ExchangeState(
                Prefetch(enabled=self._settings.prefetch),
                max_call_bytes=life.max_message_bytes - FRAME_BYTES,
            ),
            RequestWriter(self._settings.replica_id, life.epoch, arena=life.arena is not None),
            max_message_bytes=life.max_message_bytes,
            busy=self._busy,
            on_end=lambda end, detail: self._events.put(ExchangesEnded(number, end, detail)),
            arena=life.arena,
        )
        life.exchanger = exchanger
        exchanger.start()
        self._compute.submit(lambda: self._run(exchanger, life.arena))

    def _run(self, exchanger: Exchanger, arena: Arena | None) -> None:
        with pinned(arena, Device.parse(self._settings.device)):
            exchanger.run()

    # --- beats --------------------------------------------------------------------------------

    def _beat_if_due(self, life: Life, now_s: float) -> float:
        """Beats when it is time; returns how long until the next."""
        if now_s >= life.next_beat_s:
            life.next_beat_s = now_s + life.beat_interval_s
            if life.result_due:
                self._tell_result(life)
            else:
                sent_s = 0.0 if life.exchanger is None else life.exchanger.last_sent_s
                told = now_s - sent_s < life.beat_interval_s
                if not told or now_s - life.last_news_s >= NEWS_INTERVAL_S:
                    self._beat(life, BeatRequest())
        return max(0.0, life.next_beat_s - monotonic())

    def _beat(self, life: Life, request: BeatRequest) -> bool:
        return life.beat(request, self._settings.replica_id, self._busy.busy_s(monotonic()))

    def _read_commands(self, life: Life) -> None:
        try:
            for command in life.link.commands(self._launch_s):
                self._events.put(Commanded(life.number, command))
        except CallBrokenError as error:
            self._events.put(LifeLineEnded(life.number, LifeLineEnd.BROKEN, str(error)))
        except CallRefusedError as error:
            self._events.put(LifeLineEnded(life.number, LifeLineEnd.REFUSED, str(error)))
        except JoinRefusedError as error:
            self._events.put(LifeLineEnded(life.number, LifeLineEnd.HOPELESS, str(error)))
