"""A Docker Engine that a test may stop, freeze and start: its own daemon, socket and data."""

import os
import signal
import subprocess
from pathlib import Path

import psutil

from tests.autoscaler.waiting import eventually

_HOST, _ENGINE = "10.213.77.1", "10.213.77.2"


class OwnEngine:
    """Owns one dockerd, in a network of its own: one without a bridge takes away the bridge of
    the machine's engine."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"unix://{self._folder}/docker.sock"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Until it answers."""
        folder = self._folder
        folder.mkdir(exist_ok=True)
        with (folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *("unshare", "--net"),
                    "dockerd",
                    f"--host={self.url}",
                    f"--data-root={folder}/data",
                    f"--exec-root={folder}/exec",
                    f"--pidfile={folder}/pid",
                    "--bridge=none",
                    "--iptables=false",
                    "--ip6tables=false",
                ],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        eventually(self._answers, timeout_s=30)

    def reach_host(self) -> str:
        """Joins its network with this machine's, anew after each start; this machine's address
        there. Containers on the engine's own network ("host") reach it."""
        host, engine = f"tsh{os.getpid()}", f"tse{os.getpid()}"
        inside = ("nsenter", f"--target={self.pid}", "--net")
        # The one of an earlier start goes only with the last process of that network.
        subprocess.run(["ip", "link", "delete", host], check=False, capture_output=True)
        for command in (
            ("ip", "link", "add", host, "type", "veth", "peer", engine, "netns", str(self.pid)),
            ("ip", "address", "add", f"{_HOST}/30", "dev", host),
            ("ip", "link", "set", host, "up"),
            (*inside, "ip", "address", "add", f"{_ENGINE}/30", "dev", engine),
            (*inside, "ip", "link", "set", engine, "up"),
        ):
            subprocess.run(command, check=True, capture_output=True)
        return _HOST

    def stop(self) -> None:
        """As a machine's init system stops it: it ends its containers first."""
        self.send(signal.SIGTERM)
        assert self._process is not None
        self._process.wait(60)

    def crash(self) -> None:
        """SIGKILL, to its containerd too: nobody ends its containers."""
        self.send(signal.SIGKILL)
        assert self._process is not None
        self._process.wait(10)
        for process in self._processes("containerd"):
            process.kill()
        # Where nobody reaps orphans a dead containerd looks alive to the next dockerd.
        (self._folder / "exec/containerd/containerd.pid").unlink(missing_ok=True)

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def docker(self, *arguments: str) -> str:
        """The output of the docker command."""
        return subprocess.run(
            ["docker", f"--host={self.url}", *arguments],
            check=True,
            capture_output=True,
            text=True,
            timeout=60,
        ).stdout

    def copy_image(self, image: str) -> None:
        """From the engine that the environment names."""
        with subprocess.Popen(["docker", "save", image], stdout=subprocess.PIPE) as save:
            subprocess.run(
                ["docker", f"--host={self.url}", "load"],
                stdin=save.stdout,
                stdout=subprocess.DEVNULL,
                check=True,
                timeout=120,
            )

    def close(self) -> None:
        """Ends it with all its containers, whatever state it is in."""
        if self._process is None:
            return
        subprocess.run(
            ["ip", "link", "delete", f"tsh{os.getpid()}"], check=False, capture_output=True
        )
        if self._process.poll() is None:
            self.send(signal.SIGCONT)
            if names := self.docker("ps", "--all", "--quiet").split():
                self.docker("rm", "--force", *names)
            self.stop()
        for process in self._processes():
            process.kill()
        for mount in reversed(psutil.disk_partitions(all=True)):
            if mount.mountpoint.startswith(f"{self._folder}/"):
                subprocess.run(["umount", "--lazy", mount.mountpoint], check=True)

    def _processes(self, name: str = "") -> list[psutil.Process]:
        """Of this engine: its folder stands on their command lines."""
        return [
            process
            for process in psutil.process_iter(["name", "cmdline"])
            if any(f"{self._folder}/exec" in word for word in process.info["cmdline"] or ())
            and name in ("", process.info["name"])
        ]

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self._folder / "log").read_text()
        command = ["docker", f"--host={self.url}", "version"]
        return subprocess.run(command, check=False, capture_output=True).returncode == 0
