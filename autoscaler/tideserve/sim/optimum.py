"""What it costs at least to serve a demand that is known in advance: the clairvoyant optimum.

A fluid model without a queue: demand is a rate per slot, a replica takes `mu` of it, and what the
replicas of a slot do not take is lost. A plan is a count n_t >= 0 for each slot, from n_-1 = 0:

    cost = sum n_t slot_s + startup_s sum max(0, n_t - n_t-1)    replica-seconds
    lost = sum max(0, demand_t - n_t mu) slot_s                  requests (or rows)

Replicas start just in time; a start is paid and serves nothing for `startup_s`.

For a price of loss, cost + price lost falls apart into layers k = 1, 2, ...: layer k is on in the
slots where n_t >= k, and serves clip(demand_t - (k-1) mu, 0, mu). Every plan is such a stack of
layers and costs and loses the sum of what they do, so no plan is better than all layers at their
own best. And these are a plan: a layer has in no slot more to serve than the layer below, so where
it is on at its best, so is the one below (the smallest best on-sets of an on/off programme grow
with its gains). A layer's best is found in one pass over the slots.

The plans for all prices are the corners of the lower convex hull of (lost, cost), the frontier.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, inf, isfinite
from typing import Final

import numpy as np
from numpy.typing import NDArray

MAX_REPLICAS: Final = 65_536
# Loads this near to a whole number of replicas are that number: (0.1 + 0.1 + 0.1) / 0.1 needs 3.
WHOLE: Final = 1e-9
# Values of layers x slots that are worked on at once: 32 MiB.
BLOCK: Final = 1 << 22
# Of what all loss would cost: two plans that differ by less are equally good.
EQUAL: Final = 1e-12

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Plan:
    """Replicas in each slot, and what they come to.

    `cost_s`: replica-seconds, with those of the `starts`. `lost`: requests (rows, where demand
    is in rows). `attainment`: the share of the demand that is served, 1 where there is none.
    """

    counts: tuple[int, ...]
    cost_s: float
    lost: float
    attainment: float
    starts: int


def best_plan(
    demand: Sequence[float] | Floats,
    *,
    slot_s: float,
    mu: float,
    startup_s: float,
    loss_price_s: float,
) -> Plan:
    """The plan with the least cost_s + loss_price_s x lost; of equally good ones the cheapest.

    `demand`: of each slot, a second; `mu`: of one replica, a second, in the same unit.
    `startup_s`: replica-seconds a start. `loss_price_s`: replica-seconds a lost request (or row);
    infinity serves everything.
    """
    loads = _loads(demand, slot_s=slot_s, mu=mu, startup_s=startup_s)
    if not loss_price_s >= 0.0:
        raise ValueError(f"loss_price_s: expected replica-seconds of 0 or more, got {loss_price_s}")
    return _best(loads, slot_s, mu, startup_s, loss_price_s)


def cost_at(
    demand: Sequence[float] | Floats,
    attainment: float,
    *,
    slot_s: float,
    mu: float,
    startup_s: float,
) -> float:
    """The frontier's cost at this attainment, in replica-seconds. Arguments as of `best_plan`.

    Between two neighbouring plans it is their mix, which no plan at that attainment undercuts.
    The two are found by bisection: the price at which the two known plans around the attainment
    are equally good either yields one between them, or proves that they are neighbours.
    """
    loads = _loads(demand, slot_s=slot_s, mu=mu, startup_s=startup_s)
    if not 0.0 <= attainment <= 1.0:
        raise ValueError(f"attainment: expected a share from 0 to 1, got {attainment}")
    less = _best(loads, slot_s, mu, startup_s, 0.0)
    more = _best(loads, slot_s, mu, startup_s, inf)
    lost = (1.0 - attainment) * less.lost
    if lost >= less.lost:
        return less.cost_s
    if lost <= more.lost:
        return more.cost_s
    while True:
        price_s = (more.cost_s - less.cost_s) / (less.lost - more.lost)
        middle = _best(loads, slot_s, mu, startup_s, price_s)
        value_s = less.cost_s + price_s * less.lost
        gain_s = value_s - (middle.cost_s + price_s * middle.lost)
        if gain_s <= EQUAL * value_s or not more.lost < middle.lost < less.lost:
            break
        if middle.lost > lost:
            less = middle
        else:
            more = middle
    return more.cost_s - price_s * (lost - more.lost)


def _loads(
    demand: Sequence[float] | Floats, *, slot_s: float, mu: float, startup_s: float
) -> Floats:
    """The demand in replicas, one value a slot, once all of it is found valid."""
    rates = np.asarray(demand, dtype=np.float64)
    if rates.ndim != 1 or rates.size == 0:
        raise ValueError(f"demand: expected one rate for each slot, got shape {rates.shape}")
    bad = np.flatnonzero(~(np.isfinite(rates) & (rates >= 0.0)))
    if bad.size:
        raise ValueError(
            f"demand: expected finite rates of 0 or more, got {rates[bad[0]]} in slot {bad[0]}"
        )
    if not (isfinite(slot_s) and slot_s > 0.0):
        raise ValueError(f"slot_s: expected seconds above 0, got {slot_s}")
    if not (isfinite(mu) and mu > 0.0):
        raise ValueError(f"mu: expected a finite rate above 0, got {mu}")
    if not (isfinite(startup_s) and startup_s >= 0.0):
        raise ValueError(
            f"startup_s: expected finite replica-seconds of 0 or more, got {startup_s}"
        )
    peak = float(rates.max())
    if peak > MAX_REPLICAS * mu:
        raise ValueError(
            f"demand: expected at most {MAX_REPLICAS} replicas' work, got {peak} where one takes {mu}"
        )
    loads: Floats = rates / mu
    whole = np.rint(loads)
    return np.where((whole > 0.0) & (np.abs(loads - whole) <= WHOLE), whole, loads)


def _best(loads: Floats, slot_s: float, mu: float, startup_s: float, loss_price_s: float) -> Plan:
    counts = _counts(loads, slot_s, startup_s, full_s=loss_price_s * mu * slot_s)
    starts = int(np.diff(counts, prepend=0).clip(min=0).sum())
    total = float(loads.sum())
    left = float((loads - counts).clip(min=0.0).sum())
    return Plan(
        counts=tuple(counts.tolist()),
        cost_s=float(counts.sum()) * slot_s + startup_s * starts,
        lost=left * mu * slot_s,
        attainment=1.0 - left / total if total > 0.0 else 1.0,
        starts=starts,
    )


def _counts(loads: Floats, slot_s: float, startup_s: float, full_s: float) -> NDArray[np.int64]:
    """How many layers are on in each slot. `full_s`: what a full replica gains in a slot.

    Forwards, each layer keeps one number: by how much the past is worth more with the layer on
    after the slot than with it off. Between two slots it lies within -startup_s (start again)
    and 0 (stop). Backwards, a layer is on where that number is above 0, off where it is at or
    below -startup_s, and in between as in the slot that follows. The number falls with k, so
    counting the layers above either bound is enough.
    """
    must = np.zeros(loads.size, dtype=np.int64)
    may = np.zeros(loads.size, dtype=np.int64)
    layers = ceil(loads.max())
    width = max(1, BLOCK // loads.size)
    for first in range(0, layers, width):
        below = np.arange(first, min(first + width, layers), dtype=np.float64)
        work = np.clip(loads[:, np.newaxis] - below, 0.0, 1.0)
        worth_s = np.multiply(work, full_s, out=np.zeros_like(work), where=work > 0.0) - slot_s
        before_s = np.full(below.size, -startup_s)
        for row_s in worth_s:
            row_s += np.minimum(np.maximum(before_s, -startup_s), 0.0)
            before_s = row_s
        must += np.count_nonzero(worth_s > 0.0, axis=1)
        may += np.count_nonzero(worth_s > -startup_s, axis=1)
    counts = np.zeros(loads.size, dtype=np.int64)
    after = 0
    for at, (least, most) in enumerate(zip(must[::-1].tolist(), may[::-1].tolist(), strict=True)):
        after = max(least, min(most, after))
        counts[-1 - at] = after
    return counts
