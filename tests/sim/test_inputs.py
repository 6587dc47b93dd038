"""Options and files of several models, of lengths and of the time of day become scenarios."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from tideserve.sim.by_model import ByModel
from tideserve.sim.errors import SimulationError
from tideserve.sim.inputs import scenarios_of
from tideserve.sim.options import Options
from tideserve.sim.scenario import UNIX_S, Scenario

TWO = Options(
    arrivals=["a=poisson:rate=40", "b=step:20x2/5x2"], duration=4.0, linear=["10,80", "b=5,20"]
)
ONE = Options(arrivals=["poisson:rate=40"], duration=4.0, linear=["10,80"])


def made(options: Options) -> list[Scenario]:
    return scenarios_of(options, lambda model: {"a": 0.5, "b": 0.3}.get(model, 1.0))


def test_values_are_for_all_or_for_one() -> None:
    found = ByModel.of("--linear", ["1,2", "a=3,4", "b=poisson:rate=5"])
    assert [found.get(name) for name in ("a", "b", "c")] == ["3,4", "poisson:rate=5", "1,2"]
    assert ByModel.of("--arrivals", ["poisson:rate=5"]).every == "poisson:rate=5"
    assert not ByModel.of("--linear", [])


@pytest.mark.parametrize("values", [["1,2", "3,4"], ["a=1,2", "a=1,2"]])
def test_a_value_that_is_given_twice_is_refused(values: Sequence[str]) -> None:
    with pytest.raises(SimulationError, match="--linear: expected one for each model"):
        ByModel.of("--linear", values)


def test_each_model_has_its_arrivals_times_target_and_rows() -> None:
    a, b = made(replace(TWO, max_batch_rows=["8", "a=4"]))
    assert [(one.name, one.target_s, one.max_batch_rows) for one in (a, b)] == [
        ("a", 0.5, 4),
        ("b", 0.3, 8),
    ]
    assert [one.hardware.batch.mean_s(2) for one in (a, b)] == pytest.approx([0.1, 0.03])
    assert 100 < a.arrived_s.size < 220
    assert 25 < b.arrived_s.size < 80


def test_the_first_model_has_the_arrivals_that_it_would_have_alone() -> None:
    alone = made(replace(TWO, arrivals=["a=poisson:rate=40"], linear=["10,80"]))[0]
    assert made(TWO)[0].arrived_s.tolist() == alone.arrived_s.tolist()
    twins = made(replace(TWO, arrivals=["a=poisson:rate=40", "b=poisson:rate=40"]))
    assert twins[0].arrived_s.tolist() != twins[1].arrived_s.tolist()


def test_a_trace_and_a_profile_name_their_models(tmp_path: Path) -> None:
    trace, profile = tmp_path / "trace.csv", tmp_path / "profile.csv"
    trace.write_text(
        "at,model,rows\n2026-03-02T07:30:00,b,1\n2026-03-02T07:30:02,a,2\n"
        "2026-03-02T07:30:03,a,1\n2026-03-02T07:30:04,b,1\n"
    )
    profile.write_text("model,rows,seconds\na,1,0.01\na,4,0.02\nb,1,0.05\n")
    a, b = made(Options(trace=trace, profile=profile, speed=2.0))
    assert [(one.name, one.arrived_s.tolist()) for one in (a, b)] == [
        ("a", [1.0, 1.5]),
        ("b", [0.0, 2.0]),
    ]
    assert a.request_rows is not None
    assert a.request_rows.tolist() == [2, 1]
    assert (a.hardware.batch.mean_s(4), b.hardware.batch.mean_s(4)) == (0.02, 0.05)
    assert a.duration_s == b.duration_s == 2.0 + 0.3
    assert a.unix_s == datetime(2026, 3, 2, 7, 30, tzinfo=UTC).timestamp()
    assert a.day_speed == 2.0
    (only,) = made(Options(trace=trace, profile=profile, model="b"))
    assert (only.name, only.arrived_s.tolist()) == ("b", [0.0, 4.0])
    (later,) = made(
        Options(trace=trace, profile=profile, model="b", begin="2026-03-02T09:30+02:00")
    )
    assert later.unix_s == a.unix_s
    profile.write_text("model,rows,seconds\na,1,0.01\n")
    with pytest.raises(SimulationError, match="expected batch times of 'b'"):
        made(Options(trace=trace, profile=profile))
    profile.write_text("model,rows,seconds\n1,0.01\n")
    with pytest.raises(SimulationError, match=r"profile.csv:2: expected model,rows,seconds"):
        made(Options(trace=trace, profile=profile))


def test_lengths_are_padded_and_batch_times_are_of_the_longest() -> None:
    (one,) = made(replace(ONE, lengths="10/64/65/600", pad="64/128/512", max_batch_cost=2048))
    assert one.row_costs is not None
    assert set(np.unique(one.row_costs).tolist()) == {64, 128, 600}
    assert one.hardware.row_cost == 512
    batch = one.settings().batch
    assert (batch.row_costs, batch.max_batch_cost) == ((64, 128, 512), 2048)
    assert one.unix_s == UNIX_S


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (replace(TWO, linear=["a=1,2"]), "--linear: expected one for 'b' too"),
        (replace(TWO, linear=["1,2", "c=1,2"]), "--linear: there is no model 'c' in this run"),
        (replace(TWO, max_batch_rows=["c=4"]), "--max-batch-rows: there is no model 'c'"),
        (replace(TWO, max_batch_rows=["0"]), "--max-batch-rows: expected a whole number from 1"),
        (
            replace(TWO, model="a"),
            "--arrivals: expected a MODEL=SPEC for each model and no --model",
        ),
        (replace(TWO, arrivals=["poisson:rate=4", "b=poisson:rate=4"]), "or one SPEC"),
        (replace(ONE, lengths="64"), "--pad: expected the edges"),
        (replace(ONE, pad="64"), "--pad and --max-batch-cost are of requests with lengths"),
        (replace(ONE, max_batch_cost=64), "--pad and --max-batch-cost are of requests with"),
        (replace(ONE, lengths="64", pad="128/64"), "--pad: expected ascending edges"),
        (replace(ONE, lengths="0", pad="64"), "--lengths: expected whole numbers from 1"),
        (replace(ONE, begin="today"), "--begin: expected an ISO datetime"),
    ],
)
def test_what_does_not_fit_together_is_said_in_words(options: Options, words: str) -> None:
    with pytest.raises(SimulationError) as found:
        made(options)
    assert words in str(found.value)
