"""The python blocks of docs/client.md run, each on its own."""

import re
from pathlib import Path

import pytest

from tests.client.fake_server import TOKEN, FakeServer

PAGE = Path(__file__).parents[2] / "docs" / "client.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_a_block_of_the_page_runs(
    block: str, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIDESERVE_TOKEN", TOKEN)
    source = block.replace("localhost:8001", server.address)
    assert source != block, "each block names the server's address"
    exec(compile(source, f"{PAGE.name}", "exec"), {"__name__": "__main__"})


def test_the_page_has_blocks() -> None:
    assert len(BLOCKS) >= 8
