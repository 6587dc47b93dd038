"""`tideserve simulate` and `tideserve tune`: an autoscaler file against a trace, in virtual time.

Exit codes: 0, 2 for an option or a file that does not work.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import inf
from pathlib import Path
from typing import Annotated, Final, NoReturn

import typer
import yaml

from tideserve.autoscaler.assembly import rules_of
from tideserve.autoscaler.config import AutoscalerFile
from tideserve.autoscaler.config_file import read_config
from tideserve.autoscaler.core.state import Rules
from tideserve.autoscaler.errors import AutoscalerError
from tideserve.sim.compare import BASELINES, OURS, compare
from tideserve.sim.errors import SimulationError
from tideserve.sim.inputs import scenarios_of
from tideserve.sim.options import Options, with_options
from tideserve.sim.report import document_of, table_of, write_report
from tideserve.sim.tune import Candidate, Goal
from tideserve.sim.tune import tune as search

_BAD_OPTION: Final = 2

Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="The autoscaler file.")]


@with_options
def simulate(
    config: Config,
    options: Options,
    against: Annotated[
        str, typer.Option(help=f"Others beside it, by comma: {', '.join(BASELINES)}, or all.")
    ] = "",
    out: Annotated[
        Path | None, typer.Option(help="Folder for simulation.html and simulation.png.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Replay a trace through the autoscaler's and the server's own decisions."""
    with _errors():
        file = read_config(config)
        scenarios = scenarios_of(options, _target_of(file, options))
        others = BASELINES if against == "all" else tuple(filter(None, against.split(",")))
        runs = compare(
            scenarios, file.scaling(), rules_of(file, Rules()), (OURS, *others), options.seed
        )
        if as_json:
            typer.echo(json.dumps(document_of(scenarios, runs, options.seed), indent=2))
        else:
            from rich.console import Console

            console = Console()
            wide = console if console.is_terminal else Console(width=160)
            wide.print(table_of(runs))
        if out is not None:
            write_report(out, scenarios, runs, options.seed)


@with_options
def tune(
    config: Config,
    options: Options,
    attainment: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of requests to answer in time.")
    ] = 0.99,
    reversals: Annotated[
        float,
        typer.Option(
            min=0.0, help="Turns of the desired count an hour, at most.", show_default=False
        ),
    ] = inf,
    out: Annotated[
        Path | None, typer.Option(help="Where to write the new file; by default it is printed.")
    ] = None,
) -> None:
    """Search growth, hold, planned target, standby and max for the cheapest that is in time."""
    with _errors():
        file = read_config(config)
        scenarios = scenarios_of(options, _target_of(file, options))
        if len(scenarios) > 1:
            raise SimulationError(
                "tune searches one model's settings: give --model, one of "
                f"{', '.join(one.name for one in scenarios)}"
            )
        (scenario,) = scenarios
        best, tried = search(
            scenario,
            file.scaling(),
            rules_of(file, Rules()),
            Goal(attainment, reversals),
            options.seed,
            _tell,
        )
        figures = best.run.figures
        typer.echo(
            f"best of {len(tried)}: {figures.attainment:.2%} in time for "
            f"{figures.replica_s:.0f} replica-seconds, {figures.reversals_per_hour:.0f} reversals/h",
            err=True,
        )
        if figures.attainment < attainment:
            typer.echo(f"none of them has {attainment:.2%} in time", err=True)
        elif figures.reversals_per_hour > reversals:
            typer.echo(f"none of those has at most {reversals:g} reversals/h", err=True)
        text = yaml.safe_dump(tuned(config, scenario.name, best), sort_keys=False)
        if out is None:
            typer.echo(text, nl=False)
        else:
            out.write_text(text, encoding="utf-8")
            typer.echo(f"wrote {out}")


def tuned(config: Path, model: str, best: Candidate) -> dict[str, object]:
    """The file's own content with the settings that were found in the model's section."""
    content = yaml.safe_load(config.read_text(encoding="utf-8")) or {}
    section = dict((content.get("models") or {}).get(model) or {})
    policy = best.policy
    section["growth_quantile"] = policy.growth_quantile
    section["hold_factor"] = policy.hold_factor
    section.pop("hold", None)
    if policy.hold_s is not None:
        section["hold"] = policy.hold_s
    if policy.latency_target_s is not None:
        section["latency_target"] = round(policy.latency_target_s, 6)
    section["max"] = policy.max_replicas
    return {
        **content,
        "standby": best.standby,
        "models": {**(content.get("models") or {}), model: section},
    }


def _target_of(file: AutoscalerFile, options: Options) -> Callable[[str], float]:
    def target_s(model: str) -> float:
        found = options.target
        if found is None:
            found = file.scaling().policy_of(model).latency_target_s
        if found is None:
            raise SimulationError(
                "expected a latency target: give --target SECONDS, or "
                f"models.{model}.latency_target in the file"
            )
        return found

    return target_s


def _tell(candidate: Candidate) -> None:
    figures = candidate.run.figures
    typer.echo(
        f"growth_quantile {candidate.policy.growth_quantile:g}, hold_factor "
        f"{candidate.policy.hold_factor:g}, latency_target "
        f"{candidate.policy.latency_target_s or 0.0:g}, standby {candidate.standby}, max "
        f"{candidate.policy.max_replicas}: {figures.attainment:.2%} in time, "
        f"{figures.replica_s:.0f} replica-seconds, {figures.reversals_per_hour:.0f} reversals/h",
        err=True,
    )


@contextmanager
def _errors() -> Iterator[None]:
    try:
        yield
    except (AutoscalerError, SimulationError, ValueError) as error:
        _fail(str(error))
    except OSError as error:
        _fail(f"{error.filename or 'a file'}: {error.strerror or error}")


def _fail(message: str) -> NoReturn:
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(_BAD_OPTION)
