from pathlib import Path

import pytest

from tideserve.cli.exits import UsageFault
from tideserve.cli.token import find_token, served_token_file


def written(path: Path, text: str, mode: int = 0o600) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return path


def test_the_file_given_wins_over_the_environment(tmp_path: Path) -> None:
    path = written(tmp_path / "t", "from-file\n")
    assert find_token("h:1", path, {"TIDESERVE_TOKEN": "from-environment"}) == "from-file"


def test_the_environment_wins_over_what_serve_wrote(tmp_path: Path) -> None:
    written(tmp_path / "tideserve" / "token-8001", "served")
    environment = {"XDG_STATE_HOME": str(tmp_path)}
    assert find_token("h:8001", None, environment) == "served"
    assert find_token("h:8001", None, environment | {"TIDESERVE_TOKEN": "mine"}) == "mine"


def test_files_are_named_by_port_and_absent_ones_are_no_token(tmp_path: Path) -> None:
    written(tmp_path / "tideserve" / "token-8001", "served")
    assert find_token("h:9001", None, {"XDG_STATE_HOME": str(tmp_path)}) is None
    assert find_token("unix:/run/x", None, {"XDG_STATE_HOME": str(tmp_path)}) is None


def test_the_runtime_directory_counts_only_where_it_exists(tmp_path: Path) -> None:
    runtime, state = tmp_path / "runtime", tmp_path / "state"
    environment = {"XDG_RUNTIME_DIR": str(runtime), "XDG_STATE_HOME": str(state), "HOME": "/h"}
    assert served_token_file("h:1", environment) == state / "tideserve" / "token-1"
    runtime.mkdir()
    assert served_token_file("h:1", environment) == runtime / "tideserve" / "token-1"
    assert served_token_file("h:1", {"HOME": "/h"}) == Path("/h/.local/state/tideserve/token-1")


def test_what_serve_wrote_is_refused_once_others_can_read_it(tmp_path: Path) -> None:
    path = written(tmp_path / "tideserve" / "token-8001", "served", 0o644)
    with pytest.raises(UsageFault, match="0600"):
        find_token("h:8001", None, {"XDG_STATE_HOME": str(tmp_path)})
    assert find_token("h:8001", path, {}) == "served"


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageFault, match="empty"):
        find_token("h:1", written(tmp_path / "t", " \n"), {})


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageFault, match="No such file"):
        find_token("h:1", tmp_path / "none", {})
