"""`tideserve simulate` and `tune`: files and options in, tables, JSON and pictures out."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import typer
import yaml
from typer.testing import CliRunner, Result

from tideserve.autoscaler.config_file import read_config
from tideserve.autoscaler.core.settings import ModelPolicy
from tideserve.sim.__main__ import simulate, tune
from tideserve.sim.book import Book, figures
from tideserve.sim.compare import BASELINES
from tideserve.sim.report import COLUMNS
from tideserve.sim.scenario import Run
from tideserve.sim.tune import GROWTH_QUANTILES, Candidate, Goal

SMALL = ("--arrivals=poisson:rate=40", "--duration=12", "--linear=10,80", "--max-batch-rows=8")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "autoscaler.yaml"
    path.write_text("models:\n  digits: {max: 6, latency_target: 0.5, hold_factor: 2}\n")
    return path


def run(command: str, *arguments: object) -> Result:
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command("simulate")(simulate)
    app.command("tune")(tune)
    return CliRunner().invoke(app, [command, *map(str, arguments)])


def test_the_table_has_a_row_a_system_and_the_page_has_the_picture(
    config: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    found = run("simulate", config, *SMALL, "--model=digits", "--against=all", f"--out={out}")
    assert found.exit_code == 0, found.output
    for word in ("tideserve", *BASELINES):
        assert word in found.stdout
    assert (out / "simulation.png").read_bytes().startswith(b"\x89PNG")
    page = (out / "simulation.html").read_text()
    assert all(f"<th>{name}</th>" in page for name in COLUMNS)
    assert "data:image/png;base64," in page


def test_json_is_the_same_for_the_same_seed(config: Path) -> None:
    arguments = (config, *SMALL, "--model=digits", "--noise=0.1", "--json", "--against=kpa-70")
    first, again = (run("simulate", *arguments).stdout for _ in range(2))
    assert first == again
    document = json.loads(first)
    assert document["models"][0]["target_s"] == 0.5
    ours, kpa = document["systems"]
    assert (ours["system"], kpa["system"]) == ("tideserve", "kpa-70")
    assert ours["arrivals"] == kpa["arrivals"]
    assert 0.9 < ours["attainment"] <= 1.0
    assert ours["over_optimum"] > 0.5
    assert run("simulate", *arguments, "--seed=2").stdout != first


def test_a_trace_of_rates_and_a_profile_of_points_are_read(config: Path, tmp_path: Path) -> None:
    trace, profile = tmp_path / "trace.csv", tmp_path / "profile.csv"
    trace.write_text("rate_per_s\n" + "20\n" * 15)
    profile.write_text("rows,seconds\n1,0.09\n8,0.16\n")
    found = run(
        "simulate", config, f"--trace={trace}", f"--profile={profile}", "--model=digits", "--json"
    )
    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout)["models"][0]["rows_per_s_of_a_replica"] == pytest.approx(
        64 / 0.72, rel=0.6
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (SMALL[1:], "either --trace FILE or --arrivals SPEC"),
        (("--trace=missing.csv", *SMALL[2:]), "missing.csv"),
        ((*SMALL[:2],), "either --profile FILE"),
        ((*SMALL[:2], "--linear=1"), "--linear: expected two numbers"),
        ((*SMALL[:2], "--linear=-1,5"), "do not fall with the rows"),
        ((*SMALL, "--batching=lazy"), "--batching: expected one of eager, window, slo"),
        ((*SMALL, "--on-late=later"), "--on-late: expected one of serve, drop"),
        ((*SMALL, "--against=kpa-x"), "kpa-x"),
        ((*SMALL, "--against=other"), "--against: expected one of kpa-60"),
        (("--arrivals=poison:rate=4", *SMALL[1:]), "poisson"),
        (("--arrivals=poisson:rate=0.01", *SMALL[1:]), "expected at least 2 arrivals"),
        ((*SMALL, "--target=-1"), "--target"),
        ((*SMALL, "--rows=0"), "--rows: expected whole numbers from 1"),
        ((*SMALL, "--rows=1/x"), "--rows: expected whole numbers from 1"),
        ((*SMALL, "--rows=9"), "at most 8 rows (--max-batch-rows), got one of 9"),
        ((*SMALL, "--link=inf"), "--link: expected a finite number"),
        ((*SMALL, "--start=2", "--start-worst=1"), "a worst that is no less, got 2 and 1"),
    ],
)
def test_what_does_not_work_is_said_in_words(
    config: Path, arguments: tuple[str, ...], words: str
) -> None:
    found = run("simulate", config, "--model=digits", *arguments)
    assert found.exit_code == 2
    assert words in found.stderr


def test_rows_and_the_link_cost_replicas_and_time(config: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    lines = [f"{at / 20},{1 + at % 4}" for at in range(240)]
    trace.write_text("\n".join(["arrived_s,rows", *lines, ""]))
    arguments = ("simulate", config, f"--trace={trace}", *SMALL[2:], "--model=digits", "--json")
    plain, slow = (
        json.loads(run(*arguments, *more).stdout)["systems"][0] for more in ((), ("--link=0.05",))
    )
    assert (plain["arrivals"], plain["answered"]) == (240, 1.0)
    assert plain["mean_batch_rows"] > 2.0
    assert slow["p50_s"] > plain["p50_s"] + 0.05
    found = run(*arguments, "--rows=2")
    assert found.exit_code == 2
    assert "has a column of rows already" in found.stderr
    drawn = ("simulate", config, *SMALL, "--model=digits", "--json", "--rows=1/4")
    first, again = (run(*drawn).stdout for _ in range(2))
    assert first == again


TWO = ("--arrivals=digits=poisson:rate=40", "--arrivals=text=poisson:rate=20", "--duration=6")


def test_several_models_have_a_row_each_and_one_for_all(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ("simulate", config, *TWO, *SMALL[2:], "--target=0.5")
    found = run(*arguments, "--against=kpa-70", f"--out={out}")
    assert found.exit_code == 0, found.output
    for name in ("digits", "text", "all"):
        assert found.stdout.count(f" {name} ") == 2
    assert sorted(path.name for path in out.iterdir()) == [
        "simulation-digits.png",
        "simulation-text.png",
        "simulation.html",
    ]
    assert (out / "simulation.html").read_text().count("data:image/png;base64,") == 2
    document = json.loads(run(*arguments, "--json").stdout)
    assert [one["model"] for one in document["models"]] == ["digits", "text"]
    digits, text, both = document["systems"]
    assert both["arrivals"] == digits["arrivals"] + text["arrivals"]
    assert both["replica_s"] == pytest.approx(digits["replica_s"] + text["replica_s"], abs=1e-3)


def test_tune_is_for_one_of_several_models(config: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("at,model\n" + "".join(f"{at / 9},{'ab'[at % 2]}\n" for at in range(40)))
    found = run("tune", config, f"--trace={trace}", *SMALL[2:], "--target=0.5")
    assert found.exit_code == 2
    assert "give --model, one of a, b" in found.stderr
    found = run("simulate", config, f"--trace={trace}", *SMALL[2:], "--target=0.5", "--model=c")
    assert found.exit_code == 2
    assert "there are no arrivals of 'c', but of a, b" in found.stderr


def test_a_model_without_a_target_needs_one(config: Path) -> None:
    found = run("simulate", config, *SMALL, "--model=other")
    assert found.exit_code == 2
    assert "models.other.latency_target" in found.stderr


def test_a_profile_that_is_no_profile_is_refused_with_its_line(
    config: Path, tmp_path: Path
) -> None:
    profile = tmp_path / "profile.csv"
    profile.write_text("rows,seconds\n1,0.09\n8;0.16\n")
    found = run("simulate", config, SMALL[0], f"--profile={profile}", "--model=digits")
    assert found.exit_code == 2
    assert "profile.csv:3: expected rows,seconds" in found.stderr


def test_tune_writes_a_file_that_costs_no_more_and_holds_what_was_asked_for(
    config: Path, tmp_path: Path
) -> None:
    out = tmp_path / "tuned.yaml"
    arguments = (*SMALL, "--model=digits", "--start=2")
    found = run("tune", config, *arguments, "--attainment=0.95", f"--out={out}")
    assert found.exit_code == 0, found.output
    assert "best of" in found.stderr
    assert "none of those" not in found.stderr
    read_config(out)
    section = yaml.safe_load(out.read_text())["models"]["digits"]
    assert section["max"] <= 6
    assert section["growth_quantile"] in GROWTH_QUANTILES
    before, after = (
        json.loads(run("simulate", path, *arguments, "--target=0.5", "--json").stdout)
        for path in (config, out)
    )
    (old,), (new,) = before["systems"], after["systems"]
    assert new["attainment"] >= 0.95
    assert new["replica_s"] <= old["replica_s"]


def test_tune_says_when_nothing_is_enough(config: Path) -> None:
    found = run(
        "tune",
        config,
        "--arrivals=poisson:rate=900",
        "--duration=0.4",
        *SMALL[2:],
        "--model=digits",
    )
    assert found.exit_code == 0, found.output
    assert "none of them has 99.00% in time" in found.stderr


def test_tune_says_when_all_turn_more_often_than_was_asked_for(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    goals: list[Goal] = []

    def search(*arguments: object) -> tuple[Candidate, list[Candidate]]:
        goals.extend(one for one in arguments if isinstance(one, Goal))
        found = replace(figures(Book(np.empty(0)), 1.0, 1.0), reversals_per_hour=40.0)
        best = Candidate(ModelPolicy(), 0, Run("tideserve", found, Book(np.empty(0))))
        return best, [best]

    monkeypatch.setattr("tideserve.sim.__main__.search", search)
    seldom, often = (
        run("tune", config, *SMALL, "--model=digits", f"--reversals={most}") for most in (39, 40)
    )
    assert seldom.exit_code == often.exit_code == 0, seldom.output
    assert [goal.reversals_per_hour for goal in goals] == [39.0, 40.0]
    assert "none of those has at most 39 reversals/h" in seldom.stderr
    assert "none of" not in often.stderr
