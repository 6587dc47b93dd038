"""docs/autoscaler.md against the file's models."""

import re

import pytest

from tests.autoscaler.key_table import PAGE, keys, table
from tideserve.autoscaler.config import AutoscalerFile, DockerSection
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


def test_the_page_of_containers_has_the_launcher_s_keys_and_no_others() -> None:
    page = (PAGE.parent / "docker.md").read_text(encoding="utf-8")
    table = page.partition("| key | default | meaning |")[2].partition("\n\n")[0]
    firsts = re.findall(r"^\|([^|]*)\|", table, re.MULTILINE)
    named = [name for first in firsts for name in re.findall(r"`(\w+)`", first)]
    assert sorted(named) == sorted(DockerSection.model_fields)
