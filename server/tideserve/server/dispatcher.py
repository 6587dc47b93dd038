"""The loop: calls come in from the front, the core decides, answers go out.

One thread owns every table. Each turn takes the events at hand, lets the services turn them
into events of the core, and then, once, lets the core match requests and replicas: batches
are decided as late as can be.
"""

import logging
from collections.abc import Callable, Iterable
from hmac import compare_digest
from typing import Final, assert_never

from google.protobuf.message import Message

from tideserve.server.core.actions import (
    Action,
    AnswerEmpty,
    Complete,
    Dispatch,
    Expire,
    Fail,
    RefuseCall,
    ReplicaLeft,
    ReplicaLost,
    SendDrain,
)
from tideserve.server.core.scheduler import Scheduler
from tideserve.server.errors import Code, TideserveError, UnauthenticatedError
from tideserve.server.front import Call, Cancel, Event, Front, HalfClose, Status, StreamMessage
from tideserve.server.mailbox import Mailbox
from tideserve.server.models import ModelTable
from tideserve.server.retirement import retire
from tideserve.server.service.health import WATCH_PATH
from tideserve.server.service.messages import parse, status_of
from tideserve.server.service.reflection import REFLECTION_PATHS
from tideserve.server.services import Services
from tideserve.v1 import methods
from tideserve.v1.metadata import TOKEN_METADATA_KEY

logger = logging.getLogger(__name__)

MAX_EVENTS: Final = 256
TICK_S: Final = 0.05
MAX_BEHIND_S: Final = 1.0
# Its requests are read in the parts they came in; all others are joined.
_INFER: Final = f"/{methods.INFERENCE_SERVICE}/ModelInfer"

Handler = Callable[[Call, float], Iterable[Action] | None]
Cancelled = Callable[[int, float], Iterable[Action] | None]


class Dispatcher:
    """Owns the loop, and knows which service each streaming or waiting call belongs to."""

    def __init__(
        self,
        front: Front,
        scheduler: Scheduler,
        models: ModelTable,
        services: Services,
        mailbox: Mailbox,
        token: str,
        clock: Callable[[], float],
    ) -> None:
        self._front = front
        self._scheduler = scheduler
        self._models = models
        self._services = services
        self._mailbox = mailbox
        self._token = token.encode()
        self._clock = clock
        self._seen_changes = -1
        self._next_tick_s = 0.0
        self._last_tick_s = 0.0
        self._reflections: set[int] = set()
        self._routes = self._make_routes()
        self._guarded = {method.path for method in methods.REPLICA + methods.CONTROL}

    def turn(self) -> None:
        """Waits for events, at most one tick, and handles what came."""
        now_s = self._clock()
        wakeup_s = min(self._next_tick_s, self._scheduler.next_wakeup_s())
        events = self._front.recv(MAX_EVENTS, max(0.0, wakeup_s - now_s))
        now_s = self._clock()
        for event in events:
            self._on_event(event, now_s)
        self._mailbox.run()
        # A full batch of events: beats may wait behind it, so nobody is judged silent yet.
        is_behind = len(events) == MAX_EVENTS and now_s < self._last_tick_s + MAX_BEHIND_S
        if now_s >= wakeup_s and not is_behind:
            self._last_tick_s = now_s
            self._perform(self._scheduler.on_tick(now_s), now_s)
        self._perform(self._scheduler.assign(now_s), now_s)
        if now_s >= self._next_tick_s:
            self._next_tick_s = now_s + TICK_S
            self._services.inference.on_tick(now_s)
            self._perform(retire(self._models, self._scheduler, self._services.replicas), now_s)
            self._perform(self._services.control.on_tick(now_s), now_s)
            self._services.control.push(now_s)
        if self._models.changes != self._seen_changes:
            self._on_models_changed(now_s)

    def announce_stop(self) -> None:
        """From now on nothing is admitted, and health says so."""
        self._services.inference.stopping = True
        self._services.control.stopping = True
        self._on_models_changed(self._clock())

    # --- events ---------------------------------------------------------------------------

    def _on_event(self, event: Event, now_s: float) -> None:
        try:
            match event:
                case Call():
                    self._on_call(event, now_s)
                case StreamMessage():
                    self._on_stream_message(event, now_s)
                case HalfClose(call_id):
                    if call_id in self._reflections:
                        self._reflections.discard(call_id)
                        self._front.end(call_id)
                    else:
                        self._services.inference.on_half_close(call_id)
                case Cancel(call_id):
                    self._on_cancel(call_id, now_s)
                case _:
                    assert_never(event)
        except TideserveError as error:
            self._fail(event.call_id, status_of(error), now_s)
        except Exception:
            # The boundary of one call: a mistake of ours fails it and nothing else.
            logger.exception("a call failed inside the server")
            status = Status(Code.INTERNAL, "the server failed on this call; see its log")
            self._fail(event.call_id, status, now_s)

    def _fail(self, call_id: int, status: Status, now_s: float) -> None:
        """Ends a call, which the services may know already, and has them forget it: a call
        that the server ends gets no `Cancel`."""
        self._front.fail(call_id, status)
        self._on_cancel(call_id, now_s)

    def _on_call(self, call: Call, now_s: float) -> None:
        handler = self._routes.get(call.path)
        if handler is None:
            self._front.fail(
                call.call_id, Status(Code.UNIMPLEMENTED, f"there is no method {call.path}")
            )
            return
        if call.path in self._guarded:
            self._check_token(call)
        if call.parts is not None and call.path != _INFER:
            call = call._replace(payload=call.whole(), parts=None)
        actions = handler(call, now_s)
        if actions:
            self._perform(actions, now_s)

    def _on_stream_message(self, event: StreamMessage, now_s: float) -> None:
        if event.call_id in self._reflections:
            self._front.send(event.call_id, self._services.reflection.answer(event.payload))
        else:
            self._services.inference.on_stream_message(event, now_s)

    def _on_cancel(self, call_id: int, now_s: float) -> None:
        services = self._services
        self._reflections.discard(call_id)
        services.control.on_cancel(call_id)
        services.health.cancel(call_id)
        services.repository.on_cancel(call_id)
        self._perform(services.inference.on_cancel(call_id, now_s), now_s)
        self._perform(services.replicas.on_cancel(call_id, now_s), now_s)

    def _check_token(self, call: Call) -> None:
        for key, value in call.metadata:
            if key == TOKEN_METADATA_KEY:
                given = value if isinstance(value, bytes) else value.encode()
                if compare_digest(given, self._token):
                    return
                raise UnauthenticatedError(
                    f"{call.path} needs the server's token, got another one in the metadata "
                    f"'{TOKEN_METADATA_KEY}'"
                )
        raise UnauthenticatedError(
            f"{call.path} needs the server's token in the metadata '{TOKEN_METADATA_KEY}', got none"
        )

    # --- actions --------------------------------------------------------------------------

    def _perform(self, actions: Iterable[Action], now_s: float) -> None:
        """Carries out the core's decisions, and those that follow from carrying them out."""
        queue = list(actions)
        inference, replicas = self._services.inference, self._services.replicas
        for action in queue:  # which grows meanwhile
            match action:
                case Complete():
                    inference.on_complete(action, now_s)
                case Dispatch():
                    queue.extend(replicas.on_dispatch(action, now_s))
                case AnswerEmpty():
                    replicas.on_answer_empty(action)
                case Expire():
                    inference.on_expire(action, now_s)
                case Fail():
                    inference.on_fail(action, now_s)
                case RefuseCall():
                    replicas.on_refuse(action)
                case SendDrain():
                    replicas.on_send_drain(action)
                case ReplicaLost():
                    replicas.on_lost(action)
                case ReplicaLeft():
                    replicas.on_left(action)
                case _:
                    assert_never(action)

    def _on_models_changed(self, now_s: float) -> None:
        self._seen_changes = self._models.changes
        for call_id, answer in self._services.health.changed():
            self._front.send(call_id, answer.SerializeToString())
        self._services.repository.on_models_changed()
        self._services.control.push(now_s)

    # --- routes ---------------------------------------------------------------------------

    def _make_routes(self) -> dict[str, Handler]:
        services = self._services
        inference, replicas, control = services.inference, services.replicas, services.control
        repository = services.repository
        routes: dict[str, Handler] = {
            _INFER: inference.on_infer,
            f"/{methods.INFERENCE_SERVICE}/ModelStreamInfer": inference.on_stream,
            f"/{methods.INFERENCE_SERVICE}/RepositoryIndex": repository.on_index,
            f"/{methods.INFERENCE_SERVICE}/RepositoryModelLoad": repository.on_load,
            f"/{methods.INFERENCE_SERVICE}/RepositoryModelUnload": repository.on_unload,
            f"/{methods.REPLICA_SERVICE}/Join": replicas.on_join,
            f"/{methods.REPLICA_SERVICE}/Exchange": replicas.on_exchange,
            f"/{methods.REPLICA_SERVICE}/Beat": replicas.on_beat,
            f"/{methods.CONTROL_SERVICE}/Watch": control.on_watch,
            f"/{methods.CONTROL_SERVICE}/Announce": control.on_announce,
            f"/{methods.CONTROL_SERVICE}/ReportExit": control.on_report_exit,
            f"/{methods.CONTROL_SERVICE}/DrainReplica": control.on_drain,
            f"/{methods.CONTROL_SERVICE}/AssignModel": control.on_assign,
            f"/{methods.CONTROL_SERVICE}/ReportDecisions": control.on_report_decisions,
            f"/{methods.CONTROL_SERVICE}/ScaleModel": control.on_scale,
            WATCH_PATH: self._on_health_watch,
        }
        for path in REFLECTION_PATHS:
            routes[path] = self._on_reflection
        routes.update(services.shared_memory.handlers())
        for path, kind, answer in services.unary_answers():
            routes[path] = self._unary(kind, answer)
        return routes

    def _unary(self, kind: type[Message], answer: Callable[[Message], Message]) -> Handler:
        def handle(call: Call, _: float) -> None:
            self._front.respond(call.call_id, answer(parse(kind, call.payload)).SerializeToString())

        return handle

    def _on_health_watch(self, call: Call, _: float) -> None:
        answer = self._services.health.watch(call.call_id, call.payload)
        self._front.send(call.call_id, answer.SerializeToString())

    def _on_reflection(self, call: Call, _: float) -> None:
        self._reflections.add(call.call_id)
