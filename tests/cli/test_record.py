"""From looks at a server to a trace of rates."""

import importlib
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer

from tests.cli.test_scaling import MODEL
from tideserve.cli.record import rates as all_rates
from tideserve.client import ServerStatus
from tideserve.sim.trace import read_traces

# `tideserve.cli` may have a command of that name.
command = importlib.import_module("tideserve.cli.record")


def rates(looks: Iterable[ServerStatus], model: str) -> list[float]:
    return [rate for (rate,) in all_rates(looks, [model])]


def look(time_s: float, *arrivals: int) -> ServerStatus:
    models = tuple(
        replace(MODEL, version=str(version), arrivals=count)
        for version, count in enumerate(arrivals, 1)
    )
    return ServerStatus(time_s, models, (), standby=0, autoscaler_http="")


def test_rates_are_of_all_versions_between_two_looks_by_the_servers_clock() -> None:
    looks = [look(10.0, 100, 5), look(11.0, 130, 5), look(13.0, 130, 25)]
    assert (rates(looks, "digits")) == [30.0, 10.0, 10.0]


def test_a_trace_is_as_long_as_it_took_however_late_the_looks_came() -> None:
    times_s = [10.0, 11.3, 12.6, 13.9, 15.2, 15.3, 16.0]
    looks = [look(time_s, round(100 * (time_s - 10.0))) for time_s in times_s]
    assert (rates(looks, "digits")) == pytest.approx([100.0] * 6)


def test_a_restarted_server_counts_anew_and_a_model_that_went_away_gets_nothing() -> None:
    assert (rates([look(10.0, 100), look(11.0, 7), look(12.0)], "digits")) == [7.0, 0.0]


@pytest.mark.parametrize("time_s", [3.0, 1e9])
def test_a_server_on_another_machine_has_another_clock(time_s: float) -> None:
    looks = [look(10.0, 100), look(11.0, 130), look(time_s, 7), look(time_s + 1.0, 16)]
    assert (rates(looks, "digits")) == [30.0, 7.0, 9.0]


def test_a_version_that_goes_leaves_the_others_as_they_are() -> None:
    looks = [look(10.0, 1_000_100, 900_100), look(11.0, 1_000_200)]
    assert (rates(looks, "digits")) == [100.0]


def test_generations_of_a_version_count_once() -> None:
    twice = look(11.0, 130)
    twice = replace(twice, models=(*twice.models, *twice.models))
    assert (rates([look(10.0, 100), twice], "digits")) == [30.0]


def test_a_model_that_is_not_there_is_refused_and_the_file_left_alone(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "trace.csv"
    kept.write_text("precious")
    client = SimpleNamespace(status=lambda: look(10.0, 1))
    monkeypatch.setattr(command, "control_client", lambda *_, **__: nullcontext(client))
    with pytest.raises(typer.Exit):
        command.record(["digits", "other"], kept)
    assert "there are: digits" in capsys.readouterr().err
    assert kept.read_text() == "precious"


def test_several_models_have_a_rate_each_by_the_same_seconds() -> None:
    def both(time_s: float, digits: int, text: int) -> ServerStatus:
        one = look(time_s, digits)
        (model,) = one.models
        return replace(one, models=(model, replace(model, name="text", arrivals=text)))

    looks = [both(10.0, 100, 5), both(11.0, 130, 5), both(13.0, 130, 25)]
    found = list(all_rates(looks, ["text", "digits"]))
    assert found == [(0.0, 30.0), (10.0, 0.0), (10.0, 0.0)]


def test_a_trace_of_several_models_is_one_that_the_simulator_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = iter([10.0, 11.0, 12.0, 13.0])

    def status() -> ServerStatus:
        now_s = next(looks)
        one = look(now_s, round(40 * now_s))
        return replace(one, models=(*one.models, replace(one.models[0], name="a,b", arrivals=0)))

    monkeypatch.setattr(
        command, "control_client", lambda *_, **__: nullcontext(SimpleNamespace(status=status))
    )
    monkeypatch.setattr(command.time, "sleep", lambda _: None)
    command.record(["digits", "a,b"], tmp_path / "trace.csv", "3s")
    found = read_traces(tmp_path / "trace.csv")
    rates_per_s = {model: trace.rates_per_s for model, trace in found.items()}
    assert rates_per_s["digits"] is not None
    assert rates_per_s["digits"].tolist() == [40.0, 40.0, 40.0]
    assert rates_per_s["a,b"] is not None
    assert rates_per_s["a,b"].tolist() == [0.0, 0.0, 0.0]
