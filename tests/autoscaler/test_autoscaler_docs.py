"""docs/autoscaler.md against the file's models."""

import re

import pytest

from tests.autoscaler.key_table import PAGE, keys, table
from tideserve.autoscaler.config import AutoscalerFile
from tideserve.autoscaler.config_file import parse_config, read_config

TEXT = PAGE.read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```yaml\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
EXAMPLES = sorted((PAGE.parents[1] / "examples" / "autoscaler").glob("*.yaml"))


def test_the_page_has_the_table_of_all_keys() -> None:
    assert table() in TEXT, "write it anew: python -m tests.autoscaler.key_table"


def test_every_key_says_what_it_means() -> None:
    assert [path for path, field in keys(AutoscalerFile) if not field.description] == []


@pytest.mark.parametrize("block", BLOCKS)
def test_the_examples_of_the_page_are_good(block: str) -> None:
    assert parse_config(block.encode(), "the page") != AutoscalerFile()


def test_the_example_files_are_good() -> None:
    assert [path.name for path in EXAMPLES] == ["docker.yaml", "processes.yaml"]
    for path in EXAMPLES:
        assert read_config(path) != AutoscalerFile()
