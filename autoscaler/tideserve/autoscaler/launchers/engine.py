"""A Docker Engine, as far as the launcher needs it: few calls, each with a time limit.

The Docker SDK is imported when an engine is first used, so that the autoscaler runs without
it. What the SDK raises leaves as one of two errors: the engine does not answer, or it refuses.
"""

import importlib
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from tideserve.autoscaler.errors import LaunchError, SettingsError

# containerd tells the engine that a container ended; after that the state is settled.
_ENDED_STATES: Final = ("exited", "dead")


class EngineDownError(LaunchError):
    """The engine does not answer, or not in time: what it did is not known."""


class EngineRefusedError(LaunchError):
    """The engine answered with an error of its own; `status` is HTTP's."""

    def __init__(self, status: int, explanation: str) -> None:
        super().__init__(explanation)
        self.status = status
        self.explanation = explanation

    @property
    def is_missing_container(self) -> bool:
        return self.status == 404 and "no such container" in self.explanation.lower()


@dataclass(frozen=True, slots=True)
class ContainerPlan:
    """Arguments of the SDK's `create_container` and `create_host_config`."""

    name: str
    container: Mapping[str, Any] = field(repr=False)  # its environment has the token
    host: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Container:
    """One that the engine lists. `state` is the engine's word: created, running, exited, ..."""

    name: str
    labels: Mapping[str, str]
    state: str

    @property
    def ended(self) -> bool:
        return self.state in _ENDED_STATES

    @property
    def prepared(self) -> bool:
        """Made and never started."""
        return self.state == "created"


@dataclass(frozen=True, slots=True)
class Ending:
    """How a container ended. `error`: the engine's own, when it could not run it."""

    exit_code: int
    out_of_memory: bool = False
    error: str = ""
    memory_limit_bytes: int = 0
    log_tail: tuple[str, ...] = ()


class Engine(Protocol):
    """One connection, for one thread. Every call raises `EngineDownError` or
    `EngineRefusedError`; making it does not connect."""

    def create(self, plan: ContainerPlan) -> None: ...

    def start(self, name: str) -> None: ...

    def kill(self, name: str) -> None: ...

    def remove(self, name: str) -> None:
        """With its anonymous volumes; kills it if it runs."""

    def containers(self, label: str) -> list[Container]:
        """All with that label (KEY=VALUE), whatever their state."""

    def ending(self, name: str, tail_lines: int) -> Ending:
        """Of one that has ended."""

    def tail(self, name: str, lines: int) -> tuple[str, ...]: ...

    def follow(self, label: str, on_event: Callable[[], None]) -> None:
        """Calls back once it listens and for each event of such containers, until the
        engine ends the stream or `close` is called from another thread."""

    def close(self) -> None: ...


def require_sdk() -> None:
    """Raises `SettingsError` where the Docker SDK is not installed."""
    try:
        importlib.import_module("docker")
    except ImportError as error:
        raise SettingsError(
            "the docker launcher needs the Docker SDK, which is not installed: "
            f"pip install tideserve[docker] ({error})"
        ) from error


class DockerEngine:
    """An engine by the Docker SDK. `url` empty: the one that DOCKER_HOST, DOCKER_TLS_VERIFY
    and DOCKER_CERT_PATH in `environment` name, else this machine's socket."""

    def __init__(self, url: str, environment: Mapping[str, str], timeout_s: float) -> None:
        self._url = url
        self._environment = environment
        self._timeout_s = timeout_s
        self._client: Any = None
        self._stream: Any = None
        self._stream_lock = threading.Lock()
        self._closed = False

    def create(self, plan: ContainerPlan) -> None:
        with self._calls() as client:
            client.create_container(
                **plan.container, host_config=client.create_host_config(**plan.host)
            )

    def start(self, name: str) -> None:
        with self._calls() as client:
            client.start(name)

    def kill(self, name: str) -> None:
        with self._calls() as client:
            client.kill(name)

    def remove(self, name: str) -> None:
        with self._calls() as client:
            client.remove_container(name, v=True, force=True)

    def containers(self, label: str) -> list[Container]:
        with self._calls() as client:
            listed = client.containers(all=True, filters={"label": label})
        return [
            Container(entry["Names"][0].removeprefix("/"), entry["Labels"], entry["State"])
            for entry in listed
            if entry.get("Names")
        ]

    def ending(self, name: str, tail_lines: int) -> Ending:
        with self._calls() as client:
            shown = client.inspect_container(name)
        state = shown["State"]
        return Ending(
            exit_code=int(state["ExitCode"]),
            out_of_memory=bool(state["OOMKilled"]),
            error=str(state.get("Error") or ""),
            memory_limit_bytes=int(shown["HostConfig"].get("Memory") or 0),
            log_tail=self.tail(name, tail_lines),
        )

    def tail(self, name: str, lines: int) -> tuple[str, ...]:
        with self._calls() as client:
            text: bytes = client.logs(name, tail=lines)
        return tuple(text.decode("utf-8", errors="replace").splitlines()[-lines:])

    def follow(self, label: str, on_event: Callable[[], None]) -> None:
        with self._calls() as client:
            stream = client.events(decode=True, filters={"type": "container", "label": label})
            with self._stream_lock:
                self._stream = stream
                closed = self._closed
            if closed:
                stream.close()
                return
            on_event()
            for _ in stream:
                on_event()

    def close(self) -> None:
        """Ends `follow` too. May be repeated."""
        with self._stream_lock:
            self._closed = True
            stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()
        if self._client is not None:
            self._client.close()

    @contextmanager
    def _calls(self) -> Iterator[Any]:
        """The SDK's client, made at first use; its errors as ours."""
        docker = importlib.import_module("docker")
        transport = importlib.import_module("requests").exceptions.RequestException
        try:
            if self._client is None:
                try:
                    self._client = self._connect(docker)
                except ValueError as error:  # of an address that is none
                    raise docker.errors.DockerException(str(error)) from error
            yield self._client
        except docker.errors.APIError as error:
            explanation = str(error.explanation or error)
            raise EngineRefusedError(int(error.status_code or 500), explanation) from error
        except (docker.errors.DockerException, transport, OSError) as error:
            raise EngineDownError(
                f"the Docker Engine at {self._name()} does not answer: {error}; see that "
                "dockerd runs there and that this user may use it"
            ) from error

    def _connect(self, docker: Any) -> Any:
        if self._url:
            arguments: dict[str, Any] = {"base_url": self._url}
        else:
            arguments = docker.utils.kwargs_from_env(dict(self._environment))
        return docker.APIClient(version="auto", timeout=self._timeout_s, **arguments)

    def _name(self) -> str:
        default = "unix:///var/run/docker.sock"
        return self._url or self._environment.get("DOCKER_HOST") or default
