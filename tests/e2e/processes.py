"""Which of a server's processes is which."""

import psutil

from tests.e2e.server import Server


def autoscaler_of(server: Server) -> psutil.Process:
    """The one child that decides how many replicas there are."""
    (found,) = (it for it in server.processes() if "-m tideserve.autoscaler" in command_of(it))
    return found


def forkserver_of(server: Server) -> psutil.Process:
    """The process that replicas are forked from: it runs as long as its autoscaler."""
    autoscaler = autoscaler_of(server).pid
    (found,) = (
        it
        for it in server.processes()
        if "multiprocessing.forkserver" in command_of(it) and it.ppid() == autoscaler
    )
    return found


def command_of(process: psutil.Process) -> str:
    """Its command line; empty when it has just ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""
