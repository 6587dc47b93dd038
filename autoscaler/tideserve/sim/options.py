"""What `simulate` and `tune` have in common on the command line."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from tideserve.server.core.settings import BatchingMode, OnLate


@dataclass(frozen=True, slots=True)
class Options:
    """As they stand there. Times in seconds but for `linear`."""

    trace: Annotated[
        Path | None,
        typer.Option(help="Arrivals: a time a line, or a rate a second under the heading `rate`."),
    ] = None
    arrivals: Annotated[
        str,
        typer.Option(help="Instead: poisson:rate=300, gamma:rate=300,cv=3, step:20x10/200x30, ..."),
    ] = ""
    speed: Annotated[float, typer.Option(help="The trace so many times faster.")] = 1.0
    duration: Annotated[
        float | None, typer.Option(help="Seconds of it; by default all, or 600.")
    ] = None
    profile: Annotated[
        Path | None, typer.Option(help="Batch times: lines of rows,seconds, a heading allowed.")
    ] = None
    linear: Annotated[
        str, typer.Option(help="Instead, in milliseconds: PER_ROW,BASE such as 1.053,5.072.")
    ] = ""
    noise: Annotated[
        float, typer.Option(min=0.0, help="Standard deviation of the logarithm of batch times.")
    ] = 0.0
    model: Annotated[str, typer.Option(help="Whose section of the file; it need not have one.")] = (
        "model"
    )
    target: Annotated[
        float | None,
        typer.Option(help="Seconds from arrival to answer; by default the model's latency_target."),
    ] = None
    max_batch_rows: Annotated[int, typer.Option(min=1, max=4096, help="As max_batch_size.")] = 64
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
    initial: Annotated[int, typer.Option(min=0, help="Replicas that are READY at the start.")] = 1
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same numbers.")] = 1


def with_options(run: Callable[..., None]) -> Callable[..., None]:
    """A command that takes all of these beside `run`'s own, and hands them over as `options`."""
    hints = get_type_hints(Options, include_extras=True)
    shared = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=field.default,
            annotation=hints[field.name],
        )
        for field in fields(Options)
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
