"""What the frontend says while the load runs, and the figures made from it."""

import asyncio
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import grpc
import numpy as np

from examples.demo.load import Answers
from examples.demo.repository import MODEL
from examples.demo.scenario import Phase, rate_at, starts
from tideserve.client import ModelStatus, ServerStatus
from tideserve.client.views import status_of
from tideserve.v1.control_pb2 import Snapshot, WatchRequest
from tideserve.v1.metadata import TOKEN_METADATA_KEY
from tideserve.v1.methods import CONTROL_SERVICE

INTERVAL_S: Final = 0.1
# Rates and quantiles are of the last second.
_WINDOW_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Moment:
    """One look. `queue_p95_s`: of the last second's requests, None without any."""

    at_s: float
    wanted_rate: float
    rate: float
    ready: int
    starting: int
    desired: int
    queued: int
    queue_p95_s: float | None
    reason: str


class Recorder:
    """Owns the moments, from a Watch of its own. `on_moment` hears of each."""

    def __init__(
        self,
        address: str,
        token: str,
        phases: tuple[Phase, ...],
        on_moment: Callable[[Moment], None],
    ) -> None:
        self._address = address
        self._token = token
        self._phases = phases
        self._on_moment = on_moment
        self._looks: list[tuple[float, ServerStatus]] = []
        self.moments: list[Moment] = []

    async def run(self, began_s: float) -> None:
        """Until it is cancelled. `began_s`: second 0 on `time.monotonic`."""
        async with grpc.aio.insecure_channel(self._address) as channel:
            watch = channel.unary_stream(
                f"/{CONTROL_SERVICE}/Watch",
                request_serializer=WatchRequest.SerializeToString,
                response_deserializer=Snapshot.FromString,
            )
            request = WatchRequest(interval_s=INTERVAL_S)
            async for snapshot in watch(request, metadata=((TOKEN_METADATA_KEY, self._token),)):
                self._take(time.monotonic() - began_s, status_of(snapshot))

    def _take(self, at_s: float, status: ServerStatus) -> None:
        self._looks.append((at_s, status))
        while self._looks[0][0] < at_s - _WINDOW_S:
            del self._looks[0]
        model, before = _model_of(status), _model_of(self._looks[0][1])
        if model is None or before is None:
            return
        window_s = max(INTERVAL_S, at_s - self._looks[0][0])
        moment = Moment(
            at_s=at_s,
            wanted_rate=rate_at(self._phases, at_s),
            rate=(model.arrivals - before.arrivals) / window_s,
            ready=model.ready,
            starting=model.starting,
            desired=model.desired or 0,
            queued=model.queued_requests,
            queue_p95_s=model.queue_wait_since(before, 0.95),
            reason=model.decision,
        )
        self.moments.append(moment)
        self._on_moment(moment)


@dataclass(frozen=True, slots=True)
class Figures:
    """Of a whole run. `first_ready_s`: from the step to one READY replica more than before;
    `wake_s`: from the first request after zero to its answer."""

    requests: int
    failed: int
    most_ready: int
    fewest_ready_after: int
    last_ready: int
    first_ready_s: float | None
    wake_s: float | None
    replica_s: float
    latency_p95_s: dict[str, float]
    decisions: int


def figures(moments: Sequence[Moment], answers: Answers, phases: tuple[Phase, ...]) -> Figures:
    """The numbers of the summary."""
    begins = list(starts(phases))
    step_s = begins[1][0]
    wake_at_s, _ = begins[-1]
    before = max((m.ready for m in moments if m.at_s < step_s), default=0)
    grown = [m.at_s - step_s for m in moments if m.at_s >= step_s and m.ready > before]
    woken = [took for sent, took in sorted(answers.latencies) if sent >= wake_at_s]
    pairs = list(itertools.pairwise(moments))
    latencies = {
        f"{number}. {phase.name}": float(np.quantile(took, 0.95))
        for number, (begin_s, phase) in enumerate(begins, start=1)
        if (
            took := [
                t for sent, t in answers.latencies if begin_s <= sent < begin_s + phase.duration_s
            ]
        )
    }
    return Figures(
        requests=len(answers.latencies) + sum(answers.failures.values()),
        failed=sum(answers.failures.values()),
        most_ready=max(m.ready for m in moments),
        fewest_ready_after=min(m.ready for m in moments if m.at_s >= step_s),
        last_ready=moments[-1].ready,
        first_ready_s=grown[0] if grown else None,
        wake_s=woken[0] if woken else None,
        replica_s=sum((b.at_s - a.at_s) * (a.ready + a.starting) for a, b in pairs),
        latency_p95_s=latencies,
        decisions=sum(a.desired != b.desired for a, b in pairs),
    )


async def ended(task: "asyncio.Task[None]") -> None:
    """Cancels a task and waits for its end."""
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _model_of(status: ServerStatus) -> ModelStatus | None:
    return next((model for model in status.models if model.name == MODEL), None)
