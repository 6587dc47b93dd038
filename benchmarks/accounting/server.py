"""`tideserve serve` with a stopwatch on each step of its dispatcher's thread.

Started as `python -m benchmarks.accounting.server FILE serve ...`. On SIGUSR1 the totals so
far are written to FILE as JSON: CPU seconds by stage, each without the stages inside it. What is
wrapped are the seams between modules; what the stopwatch itself costs is said as well.
"""

import threading
import time
from collections.abc import Callable
from typing import Any, Final

from benchmarks.accounting.stages import Stage, Stopwatch
from benchmarks.telling import serve_telling

_CLOCK: Final = time.thread_time


def main() -> None:
    """Wraps, then hands argv to the command line."""
    watch = Stopwatch(_CLOCK)
    watch.calibrate()
    _wrap_all(watch)
    serve_telling(lambda: _totals(watch))


def _totals(watch: Stopwatch) -> dict[str, object]:
    return {
        "thread": threading.get_native_id(),
        "stages": {stage.value: seconds for stage, seconds in watch.totals_s().items()},
        "stopwatch": watch.laps * watch.lap_s,
    }


def _wrap_all(watch: Stopwatch) -> None:
    from tideserve.server import dispatcher, plans
    from tideserve.server.core import scheduler
    from tideserve.server.front.grpcio import GrpcioFront
    from tideserve.server.front.native.front import NativeFront
    from tideserve.server.front.native.link import Link
    from tideserve.server.service import inference, leases, replicas

    for owner, name, stage in (
        (dispatcher.Dispatcher, "turn", Stage.LOOP),
        (plans.PlanCache, "read", Stage.PARSE),
        (inference.InferenceService, "on_infer", Stage.ADMIT),
        (scheduler.Scheduler, "assign", Stage.DECIDE),
        (scheduler.Scheduler, "on_tick", Stage.DECIDE),
        (scheduler.Scheduler, "on_exchange", Stage.DECIDE),
        (replicas.ReplicaService, "on_exchange", Stage.LINK),
        (replicas.ReplicaService, "on_dispatch", Stage.LINK),
        (replicas.ReplicaService, "on_answer_empty", Stage.LINK),
        (replicas, "encode_dispatch", Stage.GATHER),
        (leases, "BatchOutputs", Stage.SCATTER),
        (inference.InferenceService, "on_complete", Stage.SCATTER),
    ):
        _wrap(watch, owner, name, _always(stage))
    _wrap(watch, NativeFront, "_flush", _always(Stage.SEND))
    _wrap(watch, Link, "send", _always(Stage.SEND))  # large answers go before the flush
    for front in (NativeFront, GrpcioFront):
        _wrap(watch, front, "recv", lambda _: Stage.RECEIVE)
        # An answer to a replica is the link's.
        _wrap(watch, front, "respond", lambda now: now if now is Stage.LINK else Stage.RESPOND)
        _wrap(watch, front, "respond_parts", _always(Stage.RESPOND))


def _always(stage: Stage) -> Callable[[Stage | None], Stage]:
    return lambda _: stage


def _wrap(watch: Stopwatch, owner: Any, name: str, choose: Callable[[Stage | None], Stage]) -> None:
    inner = getattr(owner, name)

    def timed(*args: Any, **kwargs: Any) -> Any:
        watch.enter(choose(watch.now))
        try:
            return inner(*args, **kwargs)
        finally:
            watch.leave()

    setattr(owner, name, timed)


if __name__ == "__main__":
    main()
