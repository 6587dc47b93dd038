"""Which process is meant: a pid alone may be another process by now.

A pid is reused; together with the time the process started, in clock ticks since boot
(field 22 of /proc/PID/stat, proc_pid_stat(5)), and the boot, it is not.
"""

import os
import select
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_ZOMBIE: Final = "Z"


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """One process of one boot."""

    pid: int
    start_ticks: int
    boot_id: str


def identity_of(pid: int) -> ProcessIdentity | None:
    """None: no such process runs (a zombie does not run)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The second field is a name in parentheses that may hold spaces and parentheses.
    fields = stat[stat.rindex(")") + 2 :].split()
    if fields[0] == _ZOMBIE:
        return None
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return ProcessIdentity(pid=pid, start_ticks=int(fields[19]), boot_id=boot_id)


def open_pidfd(identity: ProcessIdentity) -> int | None:
    """A pidfd of just this process (pidfd_open(2)), None if it has ended."""
    try:
        pidfd = os.pidfd_open(identity.pid)
    except ProcessLookupError:
        return None
    # Looked at after the open, so that the descriptor cannot be another process's.
    if identity_of(identity.pid) != identity:
        os.close(pidfd)
        return None
    return pidfd


def has_ended(pidfd: int) -> bool:
    """A pidfd is readable once its process has ended."""
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    return bool(poller.poll(0))


def kill_session(pidfd: int, pid: int) -> None:
    """SIGKILL to a process and, where it leads one, to its process group."""
    if has_ended(pidfd):
        return
    try:
        if os.getpgid(pid) == pid:
            os.killpg(pid, signal.SIGKILL)
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except ProcessLookupError:
        return  # it ended meanwhile
