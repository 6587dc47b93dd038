"""The token's file: nobody else reads it, and a restarted server finds it."""

import stat
from pathlib import Path

import pytest

from tideserve.server.errors import StartError
from tideserve.server.tokens import check_token, load_or_create, read_token


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_fresh_token_is_in_a_file_that_only_its_user_reads(tmp_path: Path) -> None:
    path = tmp_path / "state" / "token-1"
    token = load_or_create(path)

    assert len(token) >= 32
    assert path.read_text() == token + "\n"
    assert mode(path) == 0o600
    assert mode(path.parent) == 0o700
    assert [it.name for it in path.parent.iterdir()] == ["token-1"]


def test_a_restarted_server_has_the_same_token_and_another_port_another(tmp_path: Path) -> None:
    first = load_or_create(tmp_path / "token-1")

    assert load_or_create(tmp_path / "token-1") == first
    assert load_or_create(tmp_path / "token-2") != first


def test_a_file_that_others_could_read_is_closed_to_them(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("x" * 20)
    path.chmod(0o644)

    assert load_or_create(path) == "x" * 20
    assert mode(path) == 0o600


@pytest.mark.parametrize("content", ["", "short\n"])
def test_a_file_with_too_short_a_token_gets_a_new_one(tmp_path: Path, content: str) -> None:
    path = tmp_path / "token"
    path.write_text(content)

    assert len(load_or_create(path)) >= 32
    assert mode(path) == 0o600


def test_a_place_that_cannot_be_written_is_a_start_error_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(StartError, match=r"cannot be kept.*--token-file"):
        load_or_create(tmp_path / "file" / "token")


def test_a_file_that_is_no_text_is_a_start_error(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_bytes(b"\xff" * 40)

    with pytest.raises(StartError, match="cannot be kept"):
        load_or_create(path)


def test_a_users_own_token_is_read_without_its_line_end(tmp_path: Path) -> None:
    path = tmp_path / "mine"
    path.write_text("0123456789abcdef\n")

    assert read_token(path) == "0123456789abcdef"


def test_a_users_missing_file_is_a_start_error(tmp_path: Path) -> None:
    with pytest.raises(StartError, match=r"--token-file .*nowhere: expected a readable ASCII file"):
        read_token(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "token", ["", "0123456789abcde", "0123456789abcdef\x00", "é" * 20, "a" * 8 + "\n" + "b" * 8]
)
def test_a_token_that_is_short_or_cannot_travel_is_refused_and_not_shown(token: str) -> None:
    with pytest.raises(
        StartError, match=f"here: expected a token of at least 16.*got {len(token)}"
    ) as refused:
        check_token(token, "here")

    assert not token or token not in str(refused.value)
