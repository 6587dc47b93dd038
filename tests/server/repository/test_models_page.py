"""docs/models.md says what the code does."""

import re
from pathlib import Path

import pytest

from tests.server.repository.conftest import EveryField
from tideserve.server.core.settings import BatchSettings, QueueSettings
from tideserve.server.repository.parameters import KEYS, LATER_KEYS
from tideserve.server.repository.settings import MAX_PRIORITY_LEVELS
from tideserve.server.repository.unsupported import unsupported_fields
from tideserve.v1.model_config_pb2 import ModelConfig, ModelDynamicBatching, ModelQueuePolicy

PAGE = (Path(__file__).parents[3] / "docs" / "models.md").read_text()


def _row(key: str) -> str:
    (row,) = re.findall(rf"^\| `{re.escape(key)}` .*$", PAGE, re.MULTILINE)
    return str(row)


@pytest.mark.parametrize("key", KEYS)
def test_every_parameter_has_a_row(key: str) -> None:
    assert len(_row(key).split("|")) == 6


def test_no_parameter_is_on_the_page_that_does_not_exist() -> None:
    assert set(re.findall(r"`(tideserve\.\w+)`", PAGE)) == {*KEYS, *LATER_KEYS}


def test_the_defaults_on_the_page_are_the_cores() -> None:
    defaults = {
        "tideserve.max_queue_requests": QueueSettings().max_requests,
        "tideserve.max_queue_rows": QueueSettings().max_rows,
        "tideserve.max_queue_bytes": QueueSettings().max_bytes,
        "tideserve.max_lease_bytes": BatchSettings().max_lease_bytes,
    }
    for key, default in defaults.items():
        assert f"| {default} |" in _row(key)
    assert f"0 to {MAX_PRIORITY_LEVELS}" in _row("priority_levels")


def test_every_field_of_a_configuration_is_on_the_page() -> None:
    for message in (ModelConfig, ModelDynamicBatching, ModelQueuePolicy):
        for field in message.DESCRIPTOR.fields:
            if field.name not in ("input", "output", "instance_group"):
                assert f"`{field.name}" in PAGE, field.name


def test_everything_unsupported_is_on_the_page(every_field: EveryField) -> None:
    section = PAGE[PAGE.index("## Not supported") :]
    for choice in range(6):
        for name in unsupported_fields(every_field(choice)):
            shown = "KIND_GPU" if name == "instance_group.kind" else name.split(".")[-1]
            assert shown in section or name.split(".")[0] == "optimization", name
