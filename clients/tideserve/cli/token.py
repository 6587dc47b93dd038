"""Where the control plane's token is found."""

import stat
from collections.abc import Mapping
from pathlib import Path

from tideserve.cli.exits import UsageFault


def find_token(address: str, token_file: Path | None, environment: Mapping[str, str]) -> str | None:
    """The token: of `--token-file`, else TIDESERVE_TOKEN, else of the file that `serve` on
    this machine wrote for its port; None where there is none.

    Raises `UsageFault` for a file that cannot be read or is empty. What `serve` wrote must
    still be the user's alone; a file that is given may be, say, a mounted secret of mode 0444.
    """
    if token_file is not None:
        return _read(token_file)
    if token := environment.get("TIDESERVE_TOKEN"):
        return token
    path = served_token_file(address, environment)
    if path is None or not path.is_file():
        return None
    if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise UsageFault(f"token file {path}: others can use it, expected mode 0600: chmod 600")
    return _read(path)


def served_token_file(address: str, environment: Mapping[str, str]) -> Path | None:
    """`tideserve/token-PORT` in XDG_RUNTIME_DIR if that exists, else in the state directory."""
    port = address.rpartition(":")[2]
    if not port.isdecimal():
        return None
    runtime = environment.get("XDG_RUNTIME_DIR")
    if runtime and Path(runtime).is_dir():
        directory = Path(runtime)
    elif state := environment.get("XDG_STATE_HOME"):
        directory = Path(state)
    else:
        directory = Path(environment.get("HOME") or Path.home()) / ".local" / "state"
    return directory / "tideserve" / f"token-{port}"


def _read(path: Path) -> str:
    try:
        token = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageFault(f"token file {path}: {error}") from error
    if not token:
        raise UsageFault(f"token file {path}: expected a token, the file is empty")
    return token
