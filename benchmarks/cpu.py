"""CPU time of a server: of every process it is made of, from /proc."""

import os
from pathlib import Path
from typing import Final, NamedTuple

_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
# A server is started with this variable, and its children inherit it, so that those which
# begin a session of their own or outlive their parent still belong to it.
MARK_VARIABLE: Final = "TIDESERVE_BENCH_SERVER"


class Usage(NamedTuple):
    """One process: its parent, and the seconds that it and its reaped children have used."""

    parent: int
    seconds: float


def family(root: int, mark: str) -> frozenset[int]:
    """`root`, all that descend from it, and all whose environment carries `mark`."""
    usages = _usages()
    members = {pid for pid in usages if pid == root or _is_marked(pid, mark)}
    while True:
        born = {pid for pid, usage in usages.items() if usage.parent in members} - members
        if not born:
            return frozenset(members)
        members |= born


def cpu_seconds(root: int, mark: str) -> float:
    """User and system seconds of the family so far, those of its reaped members included."""
    usages = _usages()
    return sum(usages[pid].seconds for pid in family(root, mark) if pid in usages)


def parse_stat(text: str) -> Usage:
    """Reads a /proc/PID/stat line: ppid, utime, stime, cutime, cstime (proc(5), 4 and 14-17)."""
    # The command name, in parentheses, may hold blanks and parentheses itself.
    fields = text.rpartition(")")[2].split()
    ticks = sum(map(int, fields[11:15]))
    return Usage(parent=int(fields[1]), seconds=ticks / _TICKS_PER_S)


def _usages() -> dict[int, Usage]:
    usages: dict[int, Usage] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                usages[int(folder.name)] = parse_stat((folder / "stat").read_text())
            except OSError:
                continue  # ended since the folder was listed
    return usages


def _is_marked(pid: int, mark: str) -> bool:
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False  # ended, or another user's
    return f"{MARK_VARIABLE}={mark}".encode() in environment.split(b"\0")
