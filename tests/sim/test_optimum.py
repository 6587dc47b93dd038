"""The clairvoyant optimum: against every plan there is, and what its frontier must look like."""

from dataclasses import dataclass
from itertools import pairwise, product
from math import inf, nan

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tideserve.sim import optimum
from tideserve.sim.optimum import MAX_REPLICAS, Plan, best_plan, cost_at

MU = 4.0
# Multiples of 1/8 and small: every sum is exact, so that ties are ties.
EIGHTHS = st.integers(0, 64).map(lambda number: number / 8.0)
DAY = (1.0, 3.0, 9.0, 11.5, 10.0, 2.0, 0.0, 0.0, 6.0, 6.5, 12.0, 1.0)


@dataclass(frozen=True, slots=True)
class Case:
    """A demand that three replicas can serve, and its prices."""

    demand: tuple[float, ...]
    slot_s: float
    startup_s: float

    def best(self, loss_price_s: float) -> Plan:
        return best_plan(
            self.demand,
            slot_s=self.slot_s,
            mu=MU,
            startup_s=self.startup_s,
            loss_price_s=loss_price_s,
        )

    def cost_at(self, attainment: float) -> float:
        return cost_at(self.demand, attainment, slot_s=self.slot_s, mu=MU, startup_s=self.startup_s)

    def every(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Cost and loss of every plan of up to three replicas, from their definitions."""
        plans = np.array(list(product(range(4), repeat=len(self.demand))), dtype=np.float64)
        before = np.hstack([np.zeros((len(plans), 1)), plans[:, :-1]])
        starts = np.where(plans > before, plans - before, 0.0).sum(axis=1)
        missed = np.maximum(np.array(self.demand) - plans * MU, 0.0).sum(axis=1)
        return plans.sum(axis=1) * self.slot_s + self.startup_s * starts, missed * self.slot_s


CASES = st.builds(
    Case,
    demand=st.lists(
        st.integers(0, 96).map(lambda number: number / 8.0), min_size=1, max_size=5
    ).map(tuple),
    slot_s=st.sampled_from((0.5, 1.0, 2.0)),
    startup_s=EIGHTHS,
)
ONE_DAY = Case(DAY, slot_s=2.0, startup_s=5.0)


@settings(max_examples=60, deadline=None)
@given(CASES, EIGHTHS.map(lambda price: price / 8.0))
def test_no_plan_is_better_and_none_as_good_is_cheaper(case: Case, price_s: float) -> None:
    found = case.best(price_s)
    cost_s, lost = case.every()
    value_s = cost_s + price_s * lost
    assert found.cost_s + price_s * found.lost == value_s.min()
    assert found.cost_s == cost_s[value_s == value_s.min()].min()


@settings(max_examples=30, deadline=None)
@given(CASES)
def test_an_infinite_price_serves_everything_at_the_least_cost(case: Case) -> None:
    found = case.best(inf)
    cost_s, lost = case.every()
    assert (found.lost, found.attainment) == (0.0, 1.0)
    assert found.cost_s == cost_s[lost == 0.0].min()


def test_six_slots_against_all_their_plans_at_many_prices() -> None:
    rng = np.random.default_rng(6)
    for _ in range(10):
        case = Case(tuple(rng.uniform(0.0, 12.0, 6).tolist()), 1.0, float(rng.uniform(0.0, 4.0)))
        cost_s, lost = case.every()
        for price_s in (0.1, 0.3, 0.5, 1.0, 3.0):
            found = case.best(price_s)
            least_s = (cost_s + price_s * lost).min()
            assert found.cost_s + price_s * found.lost == pytest.approx(least_s, rel=1e-12)


@settings(deadline=None)
@given(CASES, EIGHTHS)
def test_a_plan_is_what_its_counts_say(case: Case, price_s: float) -> None:
    plan = case.best(price_s)
    starts = sum(max(0, new - old) for old, new in pairwise((0, *plan.counts)))
    lost = sum(
        max(0.0, rate - count * MU) * case.slot_s
        for rate, count in zip(case.demand, plan.counts, strict=True)
    )
    total = sum(case.demand) * case.slot_s
    assert plan.starts == starts
    assert plan.cost_s == sum(plan.counts) * case.slot_s + case.startup_s * starts
    assert plan.lost == lost
    assert plan.attainment == pytest.approx(1.0 - lost / total if total else 1.0)


@settings(deadline=None)
@given(CASES, EIGHTHS)
def test_the_plan_is_the_stack_of_its_layers_best_plans_which_nest(
    case: Case, price_s: float
) -> None:
    layers = []
    for below in range(3):
        part = tuple(min(MU, max(0.0, rate - below * MU)) for rate in case.demand)
        layers.append(Case(part, case.slot_s, case.startup_s).best(price_s))
    for slot, count in enumerate(case.best(price_s).counts):
        column = [layer.counts[slot] for layer in layers]
        assert column == [1] * count + [0] * (3 - count)


@settings(deadline=None)
@given(CASES, st.lists(EIGHTHS, min_size=2, max_size=6).map(sorted))
def test_a_higher_price_of_loss_never_costs_less_or_loses_more(
    case: Case, prices_s: list[float]
) -> None:
    plans = [case.best(price_s) for price_s in prices_s]
    for low, high in pairwise(plans):
        assert high.cost_s >= low.cost_s
        assert high.lost <= low.lost
        assert all(more >= less for more, less in zip(high.counts, low.counts, strict=True))


@settings(max_examples=25, deadline=None)
@given(CASES, st.floats(0.0, 1.0))
def test_cost_at_is_the_lower_convex_hull_of_every_plan(case: Case, attainment: float) -> None:
    costs_s, losses = case.every()
    target = (1.0 - attainment) * sum(case.demand) * case.slot_s
    least = {float(lost): float(costs_s[losses == lost].min()) for lost in np.unique(losses)}
    points = list(least.items())
    hull_s = min(
        cost_s if lost == target else cost_s + (other_s - cost_s) * (target - lost) / (other - lost)
        for lost, cost_s in points
        if lost <= target
        for other, other_s in points
        if other > target or lost == target
    )
    assert case.cost_at(attainment) == pytest.approx(hull_s, rel=1e-9, abs=1e-9)


def test_cost_at_a_plan_is_its_cost_and_between_two_it_lies_between() -> None:
    plans = [ONE_DAY.best(price_s) for price_s in (0.0, 0.4, 0.6, 1.0, 2.0, inf)]
    for plan in plans:
        assert ONE_DAY.cost_at(plan.attainment) == pytest.approx(plan.cost_s)
    assert plans[0].attainment == 0.0
    assert plans[-1].attainment == 1.0
    # A replica for two slots, which are the frontier's two plans.
    flat = Case((4.0, 4.0), slot_s=1.0, startup_s=2.0)
    assert [flat.cost_at(share) for share in (0.0, 0.25, 0.5, 1.0)] == [0.0, 1.0, 2.0, 4.0]


def test_cost_at_is_convex_and_grows() -> None:
    costs_s = np.array([ONE_DAY.cost_at(share) for share in np.linspace(0.0, 1.0, 65)])
    assert np.all(np.diff(costs_s) > 0.0)
    assert np.all(np.diff(costs_s, 2) >= -1e-9)


@settings(deadline=None)
@given(CASES, EIGHTHS)
def test_without_a_start_cost_each_slot_is_on_its_own(case: Case, price_s: float) -> None:
    free = Case(case.demand, case.slot_s, 0.0)
    alone = [Case((rate,), case.slot_s, 0.0).best(price_s).counts[0] for rate in case.demand]
    assert list(free.best(price_s).counts) == alone


def test_a_replica_stays_through_a_gap_that_is_shorter_than_a_start() -> None:
    demand = (4.0, 0.0, 0.0, 4.0)
    assert Case(demand, 1.0, 2.5).best(inf).counts == (1, 1, 1, 1)
    assert Case(demand, 1.0, 1.5).best(inf).counts == (1, 0, 0, 1)


def test_a_constant_demand_starts_once_or_not_at_all() -> None:
    steady = Case((10.0,) * 50, slot_s=1.0, startup_s=20.0)
    # A full replica pays from (50 + 20) / (50 x 4) = 0.35, the third, half idle, from 0.7.
    assert steady.best(0.34).counts == (0,) * 50
    assert steady.best(0.36) == Plan((2,) * 50, 140.0, 100.0, 1.0 - 25.0 / 125.0, 2)
    assert steady.best(0.71) == Plan((3,) * 50, 210.0, 0.0, 1.0, 3)
    assert steady.cost_at(0.9) == pytest.approx(175.0)


def test_a_replica_that_earns_just_its_cost_does_not_run() -> None:
    once = Case((4.0,), slot_s=1.0, startup_s=1.0)
    assert once.best(0.5).counts == (0,)
    assert once.best(0.51).counts == (1,)
    # Nor kept, where what it serves in the gap pays just for not starting again.
    gap = Case((4.0, 1.0, 4.0), slot_s=1.0, startup_s=0.5)
    assert gap.best(0.5).counts == (1, 0, 1)
    assert gap.best(0.51).counts == (1, 1, 1)


def test_nothing_to_serve_costs_nothing_and_attains_all() -> None:
    idle = Case((0.0, 0.0), 1.0, 3.0)
    assert idle.best(inf) == Plan((0, 0), 0.0, 0.0, 1.0, 0)
    assert idle.cost_at(1.0) == 0.0


def test_rounding_starts_no_replica() -> None:
    threefold = 0.1 + 0.1 + 0.1
    assert threefold / 0.1 > 3.0
    plan = best_plan([threefold], slot_s=1.0, mu=0.1, startup_s=0.0, loss_price_s=inf)
    assert (plan.counts, plan.lost, plan.attainment) == ((3,), 0.0, 1.0)
    tiny = best_plan(np.array([1e-12]), slot_s=1.0, mu=0.1, startup_s=0.0, loss_price_s=inf)
    assert tiny.counts == (1,)


def test_layers_in_blocks_give_the_same_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = ONE_DAY.best(1.0)
    assert max(plan.counts) > 1
    monkeypatch.setattr(optimum, "BLOCK", 1)
    assert ONE_DAY.best(1.0) == plan


@pytest.mark.parametrize("attainment", [0.001, 0.5, 0.99, 0.999999])
@pytest.mark.parametrize("demand", [np.ldexp(1.0, -np.arange(200)), np.arange(200, 0, -1) / 200.0])
def test_many_plans_of_any_magnitude_are_searched_to_the_end(
    demand: NDArray[np.float64], attainment: float
) -> None:
    found_s = cost_at(demand, attainment, slot_s=1.0, mu=1.0, startup_s=0.0)
    # Slot by slot, the greatest rate first: the corners of the hull.
    served = np.concatenate([[0.0], np.cumsum(demand)])
    wanted_s = np.interp(attainment * served[-1], served, np.arange(201.0))
    assert found_s == pytest.approx(float(wanted_s), rel=1e-9)


@pytest.mark.parametrize(
    ("demand", "said"),
    [
        ([], "demand: expected one rate for each slot, got shape (0,)"),
        ([[1.0], [2.0]], "demand: expected one rate for each slot, got shape (2, 1)"),
        ([1.0, -2.0], "demand: expected finite rates of 0 or more, got -2.0 in slot 1"),
        ([nan], "demand: expected finite rates of 0 or more, got nan in slot 0"),
        ([0.0, 1.0, inf], "demand: expected finite rates of 0 or more, got inf in slot 2"),
        ([1e9], f"demand: expected at most {MAX_REPLICAS} replicas' work, got 1000000000.0"),
    ],
)
def test_a_bad_demand_is_refused(demand: list[float], said: str) -> None:
    with pytest.raises(ValueError, match="demand") as plan:
        best_plan(demand, slot_s=1.0, mu=1.0, startup_s=1.0, loss_price_s=1.0)
    with pytest.raises(ValueError, match="demand") as cost:
        cost_at(demand, 0.9, slot_s=1.0, mu=1.0, startup_s=1.0)
    assert str(plan.value).startswith(said)
    assert str(cost.value) == str(plan.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *product(("slot_s", "mu"), (0.0, -1.0, nan, inf)),
        *product(("startup_s",), (-1.0, nan, inf)),
        *product(("loss_price_s",), (-1.0, nan)),
    ],
)
def test_a_bad_number_is_refused(name: str, value: float) -> None:
    numbers = {"slot_s": 1.0, "mu": 1.0, "startup_s": 1.0, "loss_price_s": 1.0, name: value}
    with pytest.raises(ValueError, match=rf"^{name}: expected .*, got {value}$"):
        best_plan([1.0], **numbers)


@pytest.mark.parametrize("attainment", [-0.1, 1.1, nan])
def test_a_bad_attainment_is_refused(attainment: float) -> None:
    with pytest.raises(ValueError, match=rf"^attainment: expected .*, got {attainment}$"):
        ONE_DAY.cost_at(attainment)
