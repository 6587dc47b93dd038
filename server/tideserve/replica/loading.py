"""From an assignment to a model that can serve, in measured phases."""

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Final

from tideserve.replica import heap
from tideserve.replica.backends import ModelFiles, find
from tideserve.replica.errors import LoadError, NotInstalledError
from tideserve.replica.model_io import model_io
from tideserve.replica.runner import Runner
from tideserve.replica.settings import Device
from tideserve.replica.warmup import Point, warm_up
from tideserve.v1.model_config_pb2 import ModelConfig

_LOG: Final = logging.getLogger(__name__)
#: In config.pbtxt's `parameters`.
SHARE_WEIGHTS: Final = "tideserve.share_weights"


@dataclass(frozen=True, slots=True)
class Assignment:
    """The model version to serve; `generation` fingerprints its files."""

    name: str
    version: int
    generation: str
    path: Path
    """<repository>/<model>."""
    config: ModelConfig = field(compare=False)

    def same_model(self, other: "Assignment") -> bool:
        return (self.name, self.version, self.generation) == (
            other.name,
            other.version,
            other.generation,
        )


@dataclass(frozen=True, slots=True)
class Phase:
    """One of launch, import, load, warm-up."""

    name: str
    duration_s: float


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model that serves, and what is to be reported of it."""

    runner: Runner
    config: ModelConfig
    phases: tuple[Phase, ...]
    profile: tuple[Point, ...]


@dataclass(frozen=True, slots=True)
class NotLoaded:
    """Why the model cannot serve. `hopeless`: nor would it in another replica here."""

    message: str
    phases: tuple[Phase, ...]
    hopeless: bool = False


def load(
    assignment: Assignment,
    device: Device,
    threads: int,
    on_phase: Callable[[str], None],
    weights_folder: Path | None = None,
) -> Loaded | NotLoaded:
    """Runs on the compute thread. `on_phase` hears each phase begin. `weights_folder`: where
    replicas on this machine share weights."""
    phases: list[Phase] = []

    @contextmanager
    def phase(name: str) -> Iterator[None]:
        on_phase(name)
        start_s = perf_counter()
        try:
            yield
        finally:
            phases.append(Phase(name, perf_counter() - start_s))

    try:
        return _load(assignment, device, threads, phase, phases, weights_folder)
    except NotInstalledError as error:
        # Without a traceback: the sentence says all.
        message = _at(assignment, str(error))
        return NotLoaded(message, tuple(phases), hopeless=True)
    except LoadError as error:
        _LOG.exception("loading %s version %d failed", assignment.name, assignment.version)
        return NotLoaded(_at(assignment, str(error)), tuple(phases))
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a model's import may raise anything
        _LOG.exception("loading %s version %d failed", assignment.name, assignment.version)
        message = f"{type(error).__name__}: {error}"
        return NotLoaded(_at(assignment, message), tuple(phases))


def _load(
    assignment: Assignment,
    device: Device,
    threads: int,
    phase: Callable[[str], AbstractContextManager[None]],
    phases: list[Phase],
    weights_folder: Path | None,
) -> Loaded:
    found = find(assignment.config, assignment.path / str(assignment.version))
    with phase("import"):
        open_model = found.kind.opener()
    with phase("load"):
        config = ModelConfig()
        config.CopyFrom(assignment.config)
        config.name = config.name or assignment.name
        config.backend = found.kind.backend
        config.platform = config.platform or found.platform
        files = ModelFiles(
            name=assignment.name,
            version=assignment.version,
            path=found.path,
            config=config,
            device=device,
            threads=threads,
            weights_folder=weights_folder if _shares_weights(config) else None,
        )
        backend = open_model(files)
        completed = backend.complete(config)
        io = model_io(completed)
        runner = Runner(backend, io)
    with phase("warm-up"):
        profile = warm_up(
            runner, completed, io, assignment.path, synthetic=found.kind.synthetic_warmup
        )
        heap.settle()
    return Loaded(runner, completed, tuple(phases), profile)


def _shares_weights(config: ModelConfig) -> bool:
    given = config.parameters
    # To look up what is not in a map of protobuf's puts it there.
    wanted = given[SHARE_WEIGHTS].string_value if SHARE_WEIGHTS in given else ""
    return wanted.strip().lower() != "false"


def _at(assignment: Assignment, message: str) -> str:
    return f"model {assignment.name!r} version {assignment.version}: {message}"
