"""What a scan of the repository gives: values."""

from dataclasses import dataclass

from tideserve.v1.model_config_pb2 import ModelConfig


@dataclass(frozen=True, slots=True)
class FoundVersion:
    """One version folder. `generation` changes when its files or the configuration do."""

    version: int
    generation: str


@dataclass(frozen=True, slots=True)
class FoundModel:
    """One model folder.

    `config` is what config.pbtxt says with name and backend filled in. `versions` are those
    that the version policy selects, ascending. With an `error`, a sentence, there is no
    config, no version and no backend. `unsupported` names the fields that are set and not
    acted on; `warnings` are sentences on versions that were left out. Log both.
    """

    name: str
    path: str
    config: ModelConfig | None
    versions: tuple[FoundVersion, ...]
    backend: str
    error: str | None = None
    unsupported: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RepositoryScan:
    """All models of the repository at `root`, an absolute path, by name."""

    root: str
    models: tuple[FoundModel, ...]
