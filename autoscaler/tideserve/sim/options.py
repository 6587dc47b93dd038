"""What `simulate` and `tune` have in common on the command line."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Final, get_type_hints

import typer

from tideserve.server.core.settings import BatchingMode, OnLate

DEFAULT_MAX_BATCH_ROWS: Final = 64


@dataclass(frozen=True, slots=True)
class Options:
    """As they stand there. Times in seconds but for `linear`. What is a list is for all models, or
    MODEL=VALUE for one, given as often as there are."""

    trace: Annotated[
        Path | None,
        typer.Option(help="Arrivals: a time a line, or a rate a second under the heading `rate`."),
    ] = None
    arrivals: Annotated[
        list[str],
        typer.Option(
            help="Instead: poisson:rate=300, gamma:rate=300,cv=3, step:20x10/200x30, ...; of "
            "several models MODEL=SPEC each.",
            show_default=False,
        ),
    ] = field(default_factory=list)
    speed: Annotated[float, typer.Option(help="The trace so many times faster.")] = 1.0
    duration: Annotated[
        float | None, typer.Option(help="Seconds of it; by default all, or 600.")
    ] = None
    profile: Annotated[
        Path | None, typer.Option(help="Batch times: lines of rows,seconds, a heading allowed.")
    ] = None
    linear: Annotated[
        list[str],
        typer.Option(
            help="Instead, in milliseconds: PER_ROW,BASE such as 1.053,5.072; MODEL=PER_ROW,BASE "
            "for one of several.",
            show_default=False,
        ),
    ] = field(default_factory=list)
    noise: Annotated[
        float, typer.Option(min=0.0, help="Standard deviation of the logarithm of batch times.")
    ] = 0.0
    model: Annotated[
        str,
        typer.Option(
            help="Whose section of the file; it need not have one. By default all that the trace "
            "names."
        ),
    ] = ""
    target: Annotated[
        float | None,
        typer.Option(help="Seconds from arrival to answer; by default the model's latency_target."),
    ] = None
    max_batch_rows: Annotated[
        list[str],
        typer.Option(
            help=f"As max_batch_size, {DEFAULT_MAX_BATCH_ROWS} by default; MODEL=ROWS for one.",
            show_default=False,
        ),
    ] = field(default_factory=list)
    batching: Annotated[str, typer.Option(help="slo, eager or window.")] = BatchingMode.SLO.value
    window: Annotated[
        float, typer.Option(min=0.0, help="In mode window: seconds that a batch waits to fill.")
    ] = 0.0
    on_late: Annotated[str, typer.Option(help="serve or drop, in mode slo.")] = OnLate.SERVE.value
    start: Annotated[float, typer.Option(min=0.0, help="Seconds from launch to READY.")] = 0.3
    start_worst: Annotated[
        float | None,
        typer.Option(min=0.0, help="The longest of about twenty starts; by default all the same."),
    ] = None
    standby_start: Annotated[
        float, typer.Option(min=0.0, help="Seconds from a standby's model to READY.")
    ] = 0.05
    prepared_start: Annotated[
        float, typer.Option(min=0.0, help="The same of an instance made before (containers).")
    ] = 0.5
    mean_life: Annotated[
        float | None,
        typer.Option(min=0.001, help="Seconds until a replica dies, on average; by default never."),
    ] = None
    link: Annotated[
        float, typer.Option(min=0.0, help="Seconds that a batch takes to the replica, and back.")
    ] = 0.0
    rows: Annotated[
        str, typer.Option(help="Rows of a request: 1, or drawn from several such as 1/1/8.")
    ] = ""
    lengths: Annotated[
        str,
        typer.Option(help="Lengths of a request in the dim that is padded: 90, or 30/30/400."),
    ] = ""
    pad: Annotated[
        str,
        typer.Option(
            help="What lengths are padded to, as tideserve.pad's buckets: 64/128/256. Batch times "
            "are of rows of the last one."
        ),
    ] = ""
    max_batch_cost: Annotated[
        int | None, typer.Option(min=1, help="Rows times their padded length in a batch, at most.")
    ] = None
    begin: Annotated[
        str,
        typer.Option(
            help="When the run begins, for schedules and the time of day: 2026-03-02T07:30. By "
            "default what a trace of dates says."
        ),
    ] = ""
    initial: Annotated[
        int, typer.Option(min=0, help="Replicas of each that are READY at the start.")
    ] = 1
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same numbers.")] = 1


def with_options(run: Callable[..., None]) -> Callable[..., None]:
    """A command that takes all of these beside `run`'s own, and hands them over as `options`."""
    hints = get_type_hints(Options, include_extras=True)
    shared = [
        inspect.Parameter(
            one.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=_default(one),
            annotation=hints[one.name],
        )
        for one in fields(Options)
    ]
    own = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for parameter in inspect.signature(run).parameters.values()
        if parameter.name != "options"
    ]

    @functools.wraps(run)
    def command(**given: Any) -> None:
        options = Options(**{parameter.name: given.pop(parameter.name) for parameter in shared})
        run(options=options, **given)

    parameters = [*own, *shared]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {one.name: one.annotation for one in parameters}
    return command


def _default(option: Field[Any]) -> Any:
    return option.default if option.default_factory is MISSING else option.default_factory()
