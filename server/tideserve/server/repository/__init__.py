"""The model repository as the frontend reads it: files and config.pbtxt, no model runtime.

`scan` finds the models, their selected versions and what is wrong with each; `build_spec`
makes a `ModelSpec` of a version once its configuration is complete, which a replica does
from the model file where config.pbtxt leaves inputs or outputs out. docs/models.md has the
layout and every key.
"""

from tideserve.server.repository.config_file import parse_config, read_config
from tideserve.server.repository.scan import (
    FoundModel,
    FoundVersion,
    RepositoryScan,
    scan,
    scan_model,
)
from tideserve.server.repository.spec import build_spec, is_complete
from tideserve.server.repository.unsupported import unsupported_fields
from tideserve.server.repository.versions import select_versions

__all__ = [
    "FoundModel",
    "FoundVersion",
    "RepositoryScan",
    "build_spec",
    "is_complete",
    "parse_config",
    "read_config",
    "scan",
    "scan_model",
    "select_versions",
    "unsupported_fields",
]
