"""One server: start, serve, stop. Stop order reverses start order."""

import logging
import secrets
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from tideserve.server.arena import Arenas
from tideserve.server.autoscaler_child import AutoscalerChild
from tideserve.server.config import ServeSettings, check
from tideserve.server.core.scheduler import Scheduler
from tideserve.server.dispatcher import Dispatcher
from tideserve.server.front.address import host_port
from tideserve.server.front.select import choose, make_front
from tideserve.server.heap import IdleHeap
from tideserve.server.http import HttpServer
from tideserve.server.mailbox import Mailbox
from tideserve.server.metrics import make_registry
from tideserve.server.models import ModelState, ModelTable
from tideserve.server.service.control import ControlService
from tideserve.server.service.health import HEALTH_METHODS, HealthService
from tideserve.server.service.inference import InferenceService
from tideserve.server.service.metadata import MetadataService
from tideserve.server.service.reflection import REFLECTION_METHODS, ReflectionService
from tideserve.server.service.replicas import ReplicaService
from tideserve.server.service.repository import RepositoryService
from tideserve.server.service.shared_memory import SharedMemoryService
from tideserve.server.services import Services
from tideserve.server.shared_regions import SharedRegions
from tideserve.server.tokens import load_or_create
from tideserve.v1 import methods
from tideserve.v1.segments import FOLDER

logger = logging.getLogger(__name__)

# After the last answer was made: how long callers may take to read theirs.
READING_TIMEOUT_S = 5.0
# After the admitted requests: how long replicas and the autoscaler may take to leave.
RELEASE_TIMEOUT_S = 15.0
# The same once nobody waits for them: a frozen one is LOST after a second, and killed.
HURRIED_RELEASE_TIMEOUT_S = 3.0
CHORES_S = 0.05
# How long the shared memory of a client that died is kept.
SWEEP_S = 5.0


class App:
    """Owns the parts of one server and their order.

    `state_folder` keeps the token and the launcher's records; `token` None: this port's own.
    """

    def __init__(
        self,
        settings: ServeSettings,
        state_folder: Path,
        environment: Mapping[str, str],
        token: str | None,
        version: str,
        on_ready: Callable[[str], None],
    ) -> None:
        check(settings)
        self._settings = settings
        self._state_folder = state_folder
        self._environment = environment
        self._given_token = token
        self._on_ready = on_ready
        self._is_ready_said = False
        self._clock = time.monotonic
        self._models = ModelTable()
        # Grows over restarts: what a replica says of an earlier server's lease fits none of ours.
        self._scheduler = Scheduler(first_id=int(time.time() * 1000))
        self._front = make_front(
            settings.front_kind,
            [(method.path, method.kind) for method in methods.ALL]
            + HEALTH_METHODS
            + REFLECTION_METHODS,
            settings.front,
        )
        self._mailbox = Mailbox(self._front)
        # What an outcome may have is what a message may have, wherever it lies: the front sends no
        # larger answer, and says so too late.
        self._arenas = Arenas(min(settings.arena_bytes, settings.front.max_message_bytes))
        self._regions = self._make_regions()
        self._services = self._make_services(version)
        self._http = HttpServer(
            settings.front.host,
            settings.http_port,
            make_registry(
                self._models,
                self._scheduler,
                self._clock,
                self._arenas,
                version=version,
                triton_names=settings.triton_metrics,
            ),
            self._why_not_ready,
        )
        self._dispatcher: Dispatcher | None = None
        self._autoscaler: AutoscalerChild | None = None
        self._next_poll_s = 0.0
        self._next_chores_s = 0.0
        self._heap = IdleHeap()
        self._next_sweep_s = 0.0
        self._stop_signals = 0

    def start(self) -> None:
        """Binds the ports, reads the repository, starts the autoscaler. Raises `StartError`
        and `RepositoryError`, with nothing left running."""
        settings = self._settings
        try:
            self._services.repository.load_at_start(settings.load_models)
            self._front.start()
            kind, reason = choose(settings.front_kind, settings.front)
            logger.info("the %s front listens on port %d (%s)", kind, self._front.port, reason)
            self._http.start()
            token = self._given_token or load_or_create(
                self._state_folder / f"token-{self._front.port}"
            )
            self._dispatcher = Dispatcher(
                self._front,
                self._scheduler,
                self._models,
                self._services,
                self._mailbox,
                token,
                self._clock,
            )
            self._autoscaler = self._make_autoscaler(token)
            self._autoscaler.start()
        except BaseException:
            self._close()
            raise

    def serve(self) -> None:
        """Runs until `request_stop`, then stops in order."""
        assert self._dispatcher is not None
        assert self._autoscaler is not None
        while not self._stop_signals:
            self._dispatcher.turn()
            # A turn may be a few calls long; what follows is for people's time scale.
            if self._clock() >= self._next_chores_s:
                self._next_chores_s = self._clock() + CHORES_S
                self._autoscaler.check()
                self._poll()
                self._sweep()
                self._say_ready()
                self._heap.tend(self._services.inference.requests, self._clock())
        self._stop(self._dispatcher, self._autoscaler)

    def request_stop(self) -> None:
        """A signal handler's whole work. A second one ends the waiting."""
        self._stop_signals += 1

    # --- inside ---------------------------------------------------------------------------

    def _stop(self, dispatcher: Dispatcher, autoscaler: AutoscalerChild) -> None:
        inference, replicas = self._services.inference, self._services.replicas
        logger.info("stopping: finishing %d calls", inference.open_calls)
        dispatcher.announce_stop()
        self._turn_until(
            lambda: not inference.open_calls or self._stop_signals > 1,
            self._settings.shutdown_timeout_s,
        )
        self._turn_until(
            lambda: not self._front.has_unsent or self._stop_signals > 1, READING_TIMEOUT_S
        )
        autoscaler.ask_to_stop()
        if not inference.open_calls:
            self._turn_until(
                lambda: autoscaler.has_ended() or self._stop_signals > 1, RELEASE_TIMEOUT_S
            )
        # What still computes is waited for no longer; nor do replicas that no autoscaler has.
        if inference.open_calls:
            logger.warning("stopping with %d calls unanswered", inference.open_calls)
        replicas.stop_all("the server stops")
        self._turn_until(
            lambda: autoscaler.has_ended() and not replicas.joined, HURRIED_RELEASE_TIMEOUT_S
        )
        self._close()
        logger.info("stopped")

    def _turn_until(self, is_done: Callable[[], bool], timeout_s: float) -> None:
        assert self._dispatcher is not None
        deadline_s = self._clock() + timeout_s
        while not is_done() and self._clock() < deadline_s:
            self._dispatcher.turn()

    def _close(self) -> None:
        if self._autoscaler is not None:
            self._autoscaler.kill()
        self._http.close()
        self._services.repository.close()
        self._front.close()
        self._arenas.close_all()
        if self._regions is not None:
            self._regions.close()

    def _poll(self) -> None:
        now_s = self._clock()
        if now_s >= self._next_poll_s:
            self._next_poll_s = now_s + self._settings.poll_interval_s
            self._services.repository.poll()

    def _sweep(self) -> None:
        now_s = self._clock()
        if self._regions is not None and now_s >= self._next_sweep_s:
            self._next_sweep_s = now_s + SWEEP_S
            gone = self._regions.sweep()
            if gone:
                logger.info("%d shared memory regions of clients that are gone", len(gone))

    def _say_ready(self) -> None:
        if not self._is_ready_said and self._models.is_resolved():
            self._is_ready_said = True
            host = self._settings.front.host
            grpc, http = host_port(host, self._front.port), host_port(host, self._http.port)
            self._on_ready(f"ready grpc={grpc} http={http}")
            unserved = [what for what, _ in self._unserved()]
            if unserved and not self._models.all_ready():
                logger.warning(
                    "%s, for the reason above: the other models are served, ServerReady and "
                    "/readyz say not ready",
                    ", ".join(unserved),
                )

    def _why_not_ready(self) -> str | None:
        """For /readyz and ServerReady: None when every model that should be served is."""
        if self._services.inference.stopping:
            return "the server is stopping"
        if not self._models.all_ready():
            waiting = [f"{what}: {why}" if why else what for what, why in self._unserved()]
            return "; ".join(waiting) or "models are loading"
        return None

    def _make_regions(self) -> SharedRegions | None:
        if not self._settings.shared_memory or not FOLDER.is_dir():
            return None
        return SharedRegions(self._settings.front.max_message_bytes)

    def _unserved(self) -> list[tuple[str, str]]:
        """What is not READY, with the reason where there is one."""
        # Other threads ask too: `list` of a dictionary is not interrupted by a change of it.
        unserved = [
            (f"{entry.key} is {entry.state.value}", entry.reason)
            for entry in list(self._models.entries.values())
            if entry.state is not ModelState.READY
        ]
        broken = list(self._models.broken.items())
        return unserved + [(f"{name} is UNAVAILABLE", reason) for name, reason in broken]

    def _make_services(self, version: str) -> Services:
        settings, models, scheduler, front = (
            self._settings,
            self._models,
            self._scheduler,
            self._front,
        )
        inference = InferenceService(models, scheduler, front, self._regions)

        def is_serving() -> bool:
            return not inference.stopping

        replicas = ReplicaService(
            models, scheduler, front, settings.front.max_message_bytes, self._arenas
        )
        return Services(
            inference=inference,
            replicas=replicas,
            control=ControlService(
                models, scheduler, replicas, front, frontend_epoch=secrets.randbits(63)
            ),
            repository=RepositoryService(
                settings.repository, settings.model_control, models, front, self._mailbox.post
            ),
            metadata=MetadataService(
                models,
                version=version,
                is_ready=lambda: self._why_not_ready() is None,
                is_serving=is_serving,
                extensions=() if self._regions is None else ("system_shared_memory",),
            ),
            health=HealthService(models, is_serving),
            reflection=ReflectionService(),
            shared_memory=SharedMemoryService(self._regions, front),
        )

    def _addresses(self) -> list[str]:
        """Where the autoscaler dials, and replicas on this machine where that is elsewhere."""
        socket = self._settings.front.own_socket(self._front.port)
        if socket is not None and self._settings.front.tls is not None:
            return [f"--address=unix:{socket}"]
        host = self._settings.front.host
        if host == "0.0.0.0":  # noqa: S104 - compared, not bound
            host = "127.0.0.1"
        elif host in ("::", "[::]"):
            host = "::1"
        address = f"--address={host_port(host, self._front.port)}"
        return [address] if socket is None else [address, f"--local-address=unix:{socket}"]

    def _make_autoscaler(self, token: str) -> AutoscalerChild:
        environment = {**self._environment, "TIDESERVE_TOKEN": token}
        return AutoscalerChild(self._autoscaler_command(), environment, self._clock)

    def _autoscaler_command(self) -> list[str]:
        settings = self._settings
        if not settings.own_autoscaler:
            return []
        http_port = settings.autoscaler_http_port
        if http_port is None:
            http_port = settings.http_port + 1 if 0 < settings.http_port < 65535 else 0
        command = [
            sys.executable,
            "-m",
            "tideserve.autoscaler",
            "--child",
            *self._addresses(),
            f"--state-dir={self._state_folder / f'replicas-{self._front.port}'}",
            f"--log-level={settings.log_level}",
            f"--http-host={settings.front.host}",
            f"--http-port={http_port}",
        ]
        if settings.autoscaler_file is not None:
            command.append(str(settings.autoscaler_file))
        elif settings.replicas is not None:
            command.append(f"--replicas={settings.replicas}")
        if settings.threads is not None:
            command.append(f"--threads={settings.threads}")
        return command
