"""CPU seconds of the threads of a process, from /proc/PID/task/TID/schedstat (ns on a core)."""

from pathlib import Path


def thread_cpu_s(pid: int) -> dict[int, float]:
    """By thread id; those that ended meanwhile are left out."""
    used: dict[int, float] = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            used[int(task.name)] = int((task / "schedstat").read_text().split()[0]) / 1e9
        except (FileNotFoundError, ProcessLookupError):
            continue
    return used
