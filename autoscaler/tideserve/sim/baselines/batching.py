"""Batching rules of other servers: Clipper's, a fixed size with a timeout, and Nexus'.

Each takes the place of the core's `Assignment` in a `Scheduler` of its own. As in the
core the lowest numbered replica goes first, suspects run alone (R6), and `choose` gathers what may
share a batch (R3). Unlike the core none of them decides ahead: a replica that holds a lease gets
nothing. Replicas share one queue, where Clipper and Nexus deal requests out to one for each.
"""

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections import deque
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, replace
from itertools import islice
from typing import Final

from tideserve.server.core.actions import Action, Dispatch
from tideserve.server.core.assignment import Assignment, cap_rows_of
from tideserve.server.core.batching import Form, Wait, choose
from tideserve.server.core.leases import Lease
from tideserve.server.core.model import Model
from tideserve.server.core.replicas import Replica
from tideserve.server.core.request import Request
from tideserve.server.core.settings import BatchingMode, BatchSettings
from tideserve.server.core.slo import Choice

# Times, and rows after many factors, are sums of floats that must not miss a bound by rounding.
_ROUNDING: Final = 1e-9


class _Rule(Assignment, ABC):
    """Gives to replicas with empty hands only."""

    def _decide(
        self,
        model: Model,
        replica: Replica,
        ready: list[Replica],
        actions: list[Action],
        now_s: float,
    ) -> Form | Wait | None:
        del ready
        if replica.leases:
            return None
        while True:
            choice = self._batch(model, replica, now_s)
            actions += model.be_late(choice.late)
            if choice.decision is not None or not choice.late:
                return choice.decision

    @abstractmethod
    def _batch(self, model: Model, replica: Replica, now_s: float) -> Choice:
        """What goes to this replica; no suspects wait."""


@dataclass(frozen=True, slots=True)
class ClipperSettings:
    """`target_s`: how long a batch may take, without its wait. `additive_rows` and the factor
    `backoff` change the maximum after a batch that kept to it, and one that did not."""

    target_s: float
    additive_rows: int = 1
    backoff: float = 0.9


@dataclass(slots=True)
class _Learned:
    """`most_rows` keeps its fraction, or a few rows would never shrink by a tenth."""

    most_rows: float = 1.0
    lease: Lease | None = None
    full: bool = False


class ClipperAssignment(_Rule):
    """Clipper's adaptive batching (section 4.3.1 of
    https://www.usenix.org/system/files/conference/nsdi17/nsdi17-crankshaw.pdf).

    A free replica takes what waits up to a maximum of its own, first come first served, and
    nobody is dropped. The maximum grows by `additive_rows` while batches stay within `target_s`,
    and shrinks to the share `backoff` when one takes longer. What is ours: it begins at one row,
    and only a full batch makes it grow, since a smaller one says nothing about a larger one.

    A batch's time is from its lease to the Exchange that brought its outcome, as Clipper sees it
    from outside; the model's profile does not say whose replica's a time is. That Exchange must
    have wanted a lease, as those of a replica that stays do. A lease that came back teaches
    nothing; one that failed counts, for the core does not keep how it ended.
    """

    def __init__(self, settings: ClipperSettings) -> None:
        super().__init__()
        self.settings = settings
        self._learned: dict[int, _Learned] = {}  # by the number of the replica

    def assign(
        self, key: Hashable, model: Model, replicas: Iterable[Replica], now_s: float
    ) -> list[Action]:
        """Learns first from what came back."""
        replicas = list(replicas)
        known = self._learned
        self._learned = {
            replica.number: known.get(replica.number) or _Learned() for replica in replicas
        }
        for replica in replicas:
            if replica.model == key:
                self._learn(model, replica)
        return super().assign(key, model, replicas, now_s)

    def _learn(self, model: Model, replica: Replica) -> None:
        learned = self._learned[replica.number]
        lease, exchange = learned.lease, replica.waiting
        if lease is None or lease.lease_id in replica.leases:
            return
        learned.lease = None
        if exchange is None or any(request in model.queue for request in lease.requests):
            return
        if exchange.since_s - lease.given_s > self.settings.target_s + _ROUNDING:
            learned.most_rows = max(1.0, learned.most_rows * self.settings.backoff)
        elif learned.full:
            most_rows = learned.most_rows + self.settings.additive_rows
            learned.most_rows = max(1.0, min(most_rows, cap_rows_of(model, replica)))

    def _batch(self, model: Model, replica: Replica, now_s: float) -> Choice:
        most_rows = int(self._learned[replica.number].most_rows + _ROUNDING)
        cap_rows = min(cap_rows_of(model, replica), most_rows)
        found = choose(model.queue.waiting(), _eager(model), cap_rows, now_s)
        self._learned[replica.number].full = isinstance(found, Form) and found.full
        return Choice(found)

    def _give(
        self,
        model: Model,
        replica: Replica,
        requests: tuple[Request, ...],
        rows: int,
        now_s: float,
        *,
        sole: bool,
    ) -> Dispatch:
        dispatch = super()._give(model, replica, requests, rows, now_s, sole=sole)
        self._learned[replica.number].lease = None if sole else dispatch.lease
        return dispatch


@dataclass(frozen=True, slots=True)
class FixedSettings:
    """`timeout_s`: the longest that the oldest request waits for a batch of `batch_rows`."""

    batch_rows: int
    timeout_s: float


class FixedAssignment(_Rule):
    """A fixed batch size with a timeout: TensorFlow Serving's `max_batch_size` and
    `batch_timeout_micros` (https://github.com/tensorflow/serving/blob/master/tensorflow_serving/batching/README.md),
    Triton's preferred size with a delay
    (https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/user_guide/batcher.html).

    A batch of `batch_rows` goes as soon as a replica is free, a smaller one once its oldest
    request has waited `timeout_s`. Requests are not split: a batch that the next one does not fit
    in is as good as one of that size. Nobody is dropped.
    """

    def __init__(self, settings: FixedSettings) -> None:
        super().__init__()
        self.settings = settings

    def _batch(self, model: Model, replica: Replica, now_s: float) -> Choice:
        settings = replace(
            model.settings.batch,
            mode=BatchingMode.WINDOW,
            preferred_rows=(),
            max_queue_delay_s=self.settings.timeout_s,
        )
        cap_rows = min(cap_rows_of(model, replica), self.settings.batch_rows)
        return Choice(choose(model.queue.waiting(), settings, cap_rows, now_s))


@dataclass(frozen=True, slots=True)
class NexusSettings:
    """`target_s`: from arrival to answer."""

    target_s: float


class NexusAssignment(_Rule):
    """Nexus' squishy bin packing of one model, and its early drop
    (https://doi.org/10.1145/3341301.3359658, src/nexus/backend/model_exec.cpp at
    https://github.com/uwsampl/nexus).

    The batch size is the largest b with 2 l(b) within the target: who just missed a batch waits
    for one and is in the next. A window of that size, or of all that is left, slides from the head
    of the queue to the first request that is in time although the whole window is served with it.
    It goes at once; who stands before it is dropped, or where the model's `on_late` says so served
    when nobody in time waits, in batches of b as well. Who is out of time alone is late too, so a
    target below l(1) leaves nobody in time.

    l(b) is what the model's profile learned of all devices, where Nexus measures it beforehand.
    While that is nothing a batch is what waits, and nobody is late.
    """

    def __init__(self, settings: NexusSettings) -> None:
        super().__init__()
        self.settings = settings

    def _batch(self, model: Model, replica: Replica, now_s: float) -> Choice:
        queue = model.queue
        cap_rows = cap_rows_of(model, replica)
        if not model.profile.known:
            return Choice(choose(queue.waiting(), _eager(model), cap_rows, now_s))
        rows = min(cap_rows, self._target_rows(model))
        head = next(queue.on_time(), None)
        if head is not None:
            return self._slide(model, head.signature, rows, now_s)
        if next(queue.late(), None) is None:
            return Choice(None)
        return Choice(choose(queue.late(), _eager(model), rows, now_s))

    def _target_rows(self, model: Model) -> int:
        table_s = model.profile.table(max(1, model.settings.batch.max_batch_rows))
        return max(1, bisect_right(table_s, self.settings.target_s / 2.0 + _ROUNDING) - 1)

    def _slide(self, model: Model, signature: Hashable, most_rows: int, now_s: float) -> Choice:
        """The first window that is in time, and those in front of it."""
        settings = _eager(model)
        own = (request for request in model.queue.on_time() if request.signature == signature)
        window = deque(islice(own, max(1, most_rows)))
        late: list[Request] = []
        while window:
            found = choose(window, settings, most_rows, now_s)
            assert isinstance(found, Form), "mode EAGER does not wait"
            took_s = model.profile.latency_s(max(1, found.rows))
            assert took_s is not None, "the profile is known"
            head = window.popleft()
            due_s = min(head.arrived_s + self.settings.target_s, head.queue_deadline_s)
            if now_s + took_s <= due_s + _ROUNDING:
                return Choice(found, late)
            late.append(head)
            window.extend(islice(own, 1))
        return Choice(None, late)


def _eager(model: Model) -> BatchSettings:
    return replace(model.settings.batch, mode=BatchingMode.EAGER)
