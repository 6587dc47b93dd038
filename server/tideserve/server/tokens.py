"""The token of the replica and control planes, and the file that keeps it."""

import os
import secrets
from pathlib import Path

from tideserve.server.errors import StartError

MIN_TOKEN_CHARACTERS = 16


def read_token(path: Path) -> str:
    """A token that the user wrote. Raises `StartError`."""
    try:
        token = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeError) as error:
        raise StartError(f"--token-file {path}: expected a readable ASCII file: {error}") from error
    check_token(token, f"--token-file {path}")
    return token


def check_token(token: str, where: str) -> None:
    """Raises `StartError` for a token that is too short or cannot travel as metadata."""
    if len(token) < MIN_TOKEN_CHARACTERS or not token.isprintable() or not token.isascii():
        raise StartError(
            f"{where}: expected a token of at least {MIN_TOKEN_CHARACTERS} printable ASCII "
            f"characters, got {len(token)}"
        )


def load_or_create(path: Path) -> str:
    """The token of this port's file, so that replicas rejoin a restarted server (15.8); made
    at random, in a file of mode 0600, when there is none. Raises `StartError`."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if path.exists():
            token = path.read_text(encoding="ascii").strip()
            if len(token) >= MIN_TOKEN_CHARACTERS:
                path.chmod(0o600)
                return token
        token = secrets.token_urlsafe(32)
        # Never readable by others, not even for a moment.
        fresh = path.with_name(f"{path.name}.{os.getpid()}")
        # Of a server with this pid that was killed in between.
        fresh.unlink(missing_ok=True)
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(token + "\n")
        fresh.replace(path)
    except (OSError, UnicodeError) as error:
        raise StartError(
            f"the token file {path} cannot be kept ({error}): set TIDESERVE_TOKEN, give "
            "--token-file, or make its folder writable"
        ) from error
    return token
