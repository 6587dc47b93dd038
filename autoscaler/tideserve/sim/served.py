"""A model in a simulated run: what arrives for it, what its replicas are made of, what became of it."""

from collections.abc import Hashable
from dataclasses import dataclass, field
from math import inf

import numpy as np
from numpy.typing import NDArray

from tideserve.server.core.request import Request
from tideserve.server.core.settings import ModelSettings
from tideserve.sim.book import Book
from tideserve.sim.hardware import Hardware


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests by their arrival, in seconds from 0. `deadline_s`: callers give up so long after
    it. `rows`: of each request; `costs`: what each of its rows costs, its length with padding, and
    only those of the same share a batch. None: one."""

    arrived_s: NDArray[np.float64]
    duration_s: float
    deadline_s: float = inf
    rows: NDArray[np.int64] | None = None
    costs: NDArray[np.int64] | None = None


@dataclass(slots=True, eq=False)
class Served:
    """Owns the requests of one model and their book. `first_id`: of its requests, whose ids follow
    each other by arrival. `idle`: READY replicas with empty hands."""

    key: Hashable
    settings: ModelSettings
    hardware: Hardware
    workload: Workload
    first_id: int = 0
    arrivals: int = 0
    idle: int = 0
    book: Book = field(init=False)
    _rows: list[int] | None = field(init=False)
    _costs: list[int] | None = field(init=False)

    def __post_init__(self) -> None:
        workload = self.workload
        self.book = Book(workload.arrived_s)
        self._rows = None if workload.rows is None else workload.rows.tolist()
        self._costs = None if workload.costs is None else workload.costs.tolist()

    def request(self, request_id: int, arrived_s: float) -> Request:
        """The one of that id, which comes now."""
        self.arrivals += 1
        number = request_id - self.first_id
        rows = 1 if self._rows is None else self._rows[number]
        deadline_s = arrived_s + self.workload.deadline_s
        if self._costs is None:
            return Request(request_id, rows, 1, "", arrived_s, 0, deadline_s)
        cost = self._costs[number]
        return Request(request_id, rows, 1, cost, arrived_s, 0, deadline_s, row_cost=cost)

    def pass_idle(self, span_s: float) -> None:
        """So much time went by with these idle replicas."""
        seconds = self.book.idle_at_least
        seconds[self.idle] = seconds.get(self.idle, 0.0) + span_s

    def settle(self) -> None:
        """At the end: from seconds with exactly so many idle to those with as many or more."""
        seconds = self.book.idle_at_least
        self.book.idle_at_least = {
            least: sum(span_s for so_many, span_s in seconds.items() if so_many >= least)
            for least in range(1, max(seconds, default=0) + 1)
        }
