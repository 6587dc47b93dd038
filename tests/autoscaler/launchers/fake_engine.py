"""A Docker Engine in memory: the state of many connections, and failures by order."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from tideserve.autoscaler.launchers.engine import (
    Container,
    ContainerPlan,
    Ending,
    EngineDownError,
    EngineRefusedError,
)


@dataclass(slots=True)
class FakeMachine:
    """What all connections see. `down`: no call is answered. `refusals`: the error of the
    next call of that name. `lost_answers`: calls of that name are done, but time out.
    `stuck`: why nothing can be removed. `slow`: for engines that a test makes slow."""

    containers: dict[str, Container] = field(default_factory=dict)
    plans: list[ContainerPlan] = field(default_factory=list)
    endings: dict[str, Ending] = field(default_factory=dict)
    refusals: dict[str, EngineRefusedError] = field(default_factory=dict)
    lost_answers: set[str] = field(default_factory=set)
    down: bool = False
    stuck: str = ""
    slow: bool = False
    calls: list[str] = field(default_factory=list)
    events: threading.Condition = field(default_factory=threading.Condition)
    generation: int = 0

    def tell(self) -> None:
        """An event, to those who follow."""
        with self.events:
            self.generation += 1
            self.events.notify_all()

    def end(self, name: str, ending: Ending) -> None:
        self.endings[name] = ending
        self.containers[name] = replace(self.containers[name], state="exited")
        self.tell()


class FakeEngine:
    """One connection."""

    def __init__(self, machine: FakeMachine) -> None:
        self._machine = machine
        self._closed = False

    def create(self, plan: ContainerPlan) -> None:
        self._begin("create")
        if plan.name in self._machine.containers:
            raise EngineRefusedError(409, f'The container name "/{plan.name}" is already in use')
        self._machine.plans.append(plan)
        labels = plan.container["labels"]
        self._machine.containers[plan.name] = Container(plan.name, labels, "created")
        self._end("create")

    def start(self, name: str) -> None:
        self._begin("start")
        self._set(name, "running")
        self._end("start")

    def kill(self, name: str) -> None:
        self._begin("kill")
        self._known(name)
        self._machine.end(name, Ending(137))

    def remove(self, name: str) -> None:
        self._begin("remove")
        self._known(name)
        if self._machine.stuck:
            raise EngineRefusedError(500, self._machine.stuck)
        del self._machine.containers[name]
        self._machine.tell()

    def containers(self, label: str) -> list[Container]:
        self._begin("containers")
        key, _, value = label.partition("=")
        return [
            container
            for container in list(self._machine.containers.values())
            if container.labels.get(key) == value
        ]

    def ending(self, name: str, tail_lines: int) -> Ending:
        self._begin("ending")
        return self._machine.endings[name]

    def tail(self, name: str, lines: int) -> tuple[str, ...]:
        self._begin("tail")
        self._known(name)
        return ("a line of", name)[-lines:]

    def follow(self, label: str, on_event: Callable[[], None]) -> None:
        machine = self._machine
        self._begin("follow")
        on_event()
        seen = machine.generation
        while not self._closed and not machine.down:
            with machine.events:
                machine.events.wait(1.0 if machine.generation == seen else 0.0)
                seen = machine.generation
            on_event()

    def close(self) -> None:
        with self._machine.events:
            self._closed = True
            self._machine.events.notify_all()

    def _begin(self, call: str) -> None:
        self._machine.calls.append(call)
        if self._machine.down:
            raise EngineDownError("the Docker Engine at fake does not answer: it is down")
        if call in self._machine.refusals:
            raise self._machine.refusals.pop(call)

    def _end(self, call: str) -> None:
        if call in self._machine.lost_answers:
            self._machine.lost_answers.discard(call)
            raise EngineDownError("the Docker Engine at fake does not answer: timed out")

    def _known(self, name: str) -> None:
        if name not in self._machine.containers:
            raise EngineRefusedError(404, f"No such container: {name}")

    def _set(self, name: str, state: str) -> None:
        self._known(name)
        container = self._machine.containers[name]
        self._machine.containers[name] = replace(container, state=state)
        self._machine.tell()
