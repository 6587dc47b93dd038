"""Puts the parts together, runs the loop, takes the parts down in reverse order."""

import logging
import os
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Final, Protocol

from tideserve.autoscaler.config import AutoscalerFile, DockerLauncherSection
from tideserve.autoscaler.core.decision import Decision, Policy
from tideserve.autoscaler.core.elastic import ElasticPolicy
from tideserve.autoscaler.core.fleet import ModelKey, Snapshot
from tideserve.autoscaler.core.load import Sample
from tideserve.autoscaler.core.state import Rules
from tideserve.autoscaler.errors import FrontendUnavailableError
from tideserve.autoscaler.http import HttpServer
from tideserve.autoscaler.journal import DecisionLog
from tideserve.autoscaler.launchers import Launcher
from tideserve.autoscaler.launchers.docker import DockerLauncher, DockerSettings
from tideserve.autoscaler.launchers.process import ProcessLauncher, ProcessSettings
from tideserve.autoscaler.loop import Ending, Loop, LoopSettings, Samples
from tideserve.autoscaler.metrics import AutoscalerMetrics
from tideserve.autoscaler.reload import WatchedConfig
from tideserve.autoscaler.sources.frontend import (
    FrontendControl,
    FrontendSettings,
    FrontendWatch,
    open_channel,
)
from tideserve.autoscaler.sources.prometheus import Asked, PrometheusSamples
from tideserve.autoscaler.wake import Wake

_LOG: Final = logging.getLogger(__name__)
_EXPLAIN_LOOKS_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Plan:
    """All that is known before the start. `watched` None: there is no file, `policy` is fixed. `http_port` None: no
    HTTP server; 0: any port. `local_address` None: replica processes dial as we do. `weights_folder`: where they
    share weights; None: nowhere."""

    frontend: FrontendSettings
    state_dir: Path
    policy: Policy
    rules: Rules
    watched: WatchedConfig | None = None
    stop_timeout_s: float = 10.0
    child: bool = False
    dry_run: bool = False
    http_host: str = "127.0.0.1"
    http_port: int | None = None
    local_address: str | None = None
    weights_folder: Path | None = None
    environment: dict[str, str] = field(default_factory=dict, repr=False)

    @property
    def file(self) -> AutoscalerFile | None:
        """As it was at the start, or was edited since."""
        return None if self.watched is None else self.watched.config


def run(plan: Plan) -> Ending:
    """Until the loop ends. Raises `AutoscalerError` for what cannot be started."""
    parent = os.getppid()
    wake = Wake()
    with ExitStack() as parts:
        channel = parts.enter_context(closing(open_channel(plan.frontend)))
        # Generation 0 only reads: with a dry run, whoever scales goes on.
        frontend = replace(plan.frontend, generation=0) if plan.dry_run else plan.frontend
        launcher = _launcher(plan, wake.ring)
        watch = FrontendWatch(channel, frontend, on_change=wake.ring)
        samples, open_samples = _samples(plan, watch)
        metrics = AutoscalerMetrics(_cost_of(plan))
        journal = DecisionLog(plan.state_dir / "decisions.jsonl", metrics)
        if not plan.dry_run:
            launcher.open()
            parts.callback(launcher.close)
            journal.open()
            parts.callback(journal.close)
        if plan.http_port is not None:
            http = HttpServer(
                plan.http_host,
                plan.http_port,
                token=frontend.token,
                registry=metrics.registry,
                journal=journal,
                log_of=launcher.log,
                fall_back=plan.child,
            )
            http.start()
            parts.callback(http.close)
            frontend = replace(frontend, http_address=http.address)
        open_samples()
        parts.callback(samples.close)
        loop = Loop(
            watch,
            samples,
            FrontendControl(channel, frontend),
            launcher,
            plan.policy,
            LoopSettings(
                address=frontend.address,
                token=frontend.token,
                stop_timeout_s=plan.stop_timeout_s,
                dry_run=plan.dry_run,
                rules=plan.rules,
            ),
            wake,
            life=frontend.generation,
            journal=None if plan.dry_run else journal,
            changes=lambda: _changes(plan, samples),
            named=lambda: frozenset(plan.file.models if plan.file is not None else ()),
            orphaned=lambda: plan.child and os.getppid() != parent,
        )
        _obey_signals(loop, child=plan.child)
        watch.start()
        parts.callback(watch.close)
        return loop.run()


def next_decisions(plan: Plan) -> dict[ModelKey, Decision]:
    """What the policy says after some looks at a running frontend; acts on nothing. Raises
    `FrontendError`."""
    looks = Wake()
    with closing(open_channel(plan.frontend)) as channel:
        # Generation 0 only reads: whoever scales goes on.
        frontend = replace(plan.frontend, generation=0)
        watch = FrontendWatch(channel, frontend, on_change=looks.ring)
        samples, open_samples = _samples(plan, watch)
        open_samples()
        watch.start()
        decisions: dict[ModelKey, Decision] | None = None
        try:
            ends_s = time.monotonic() + _EXPLAIN_LOOKS_S
            while time.monotonic() < ends_s:
                looks.wait(0.25)
                snapshot, now_s = watch.latest(), time.monotonic()
                if snapshot is not None:
                    sample = samples.sample(snapshot, now_s)
                    decisions = dict(plan.policy.decide(snapshot, sample, now_s))
        finally:
            watch.close()
            samples.close()
    if decisions is None:
        raise FrontendUnavailableError(
            f"expected a frontend at {plan.frontend.address}, none answered in "
            f"{_EXPLAIN_LOOKS_S:.0f} s"
        )
    return decisions


def rules_of(file: AutoscalerFile, rules: Rules) -> Rules:
    """With the file's devices and what it keeps ready."""
    scaling = file.scaling()
    return replace(
        rules,
        devices=scaling.devices,
        standby=scaling.standby,
        prepared=scaling.prepared,
        memory_bytes_of={name: policy.memory_bytes for name, policy in scaling.models.items()},
    )


class _OpenLauncher(Launcher, Protocol):
    def open(self) -> None: ...

    def close(self) -> None: ...


class _OpenSamples(Samples, Protocol):
    def close(self) -> None: ...


class _WatchSamples:
    """The Watch's own; it is closed with the Watch."""

    def __init__(self, watch: FrontendWatch) -> None:
        self._watch = watch

    def sample(self, snapshot: Snapshot, now_s: float) -> Sample:
        return self._watch.sample(snapshot, now_s)

    def close(self) -> None:
        """Owns nothing."""


def _launcher(plan: Plan, on_exit: Callable[[], None]) -> _OpenLauncher:
    file = plan.file
    if file is not None and isinstance(file.launcher, DockerLauncherSection):
        section = file.launcher.docker
        settings = DockerSettings(
            image=section.image,
            frontend_address=section.frontend_address,
            models_source=section.models_source,
            link_source=section.link_source,
            models_path=section.models_path,
            owner=section.owner,
            network=section.network,
            user=section.user,
            memory_bytes=section.memory,
            cpus=section.cpus,
            engine_url=section.engine_url,
            environment=plan.environment,
        )
        return DockerLauncher(settings, on_exit)
    return ProcessLauncher(
        ProcessSettings(
            plan.state_dir, local_address=plan.local_address, weights_folder=plan.weights_folder
        ),
        on_exit,
    )


def _samples(plan: Plan, watch: FrontendWatch) -> tuple[_OpenSamples, Callable[[], None]]:
    """Where loads come from, and how to begin with it."""
    file = plan.file
    server = file.prometheus_server if file is not None else None
    if file is None or server is None:
        return _WatchSamples(watch), lambda: None
    prometheus = PrometheusSamples(
        server.url, server.interval, watch, _asked(file, loads=file.source != "frontend")
    )
    return prometheus, prometheus.start


def _asked(file: AutoscalerFile, *, loads: bool) -> Asked:
    """`loads` is of the start: a change of `source` waits for the next one."""
    return Asked(
        loads=loads,
        triggers={
            (name, trigger.name): trigger.query
            for name, model in file.models.items()
            for trigger in model.triggers
        },
        default_triggers={trigger.name: trigger.query for trigger in file.defaults.triggers},
        own=frozenset(file.models),
    )


def _changes(plan: Plan, samples: _OpenSamples) -> tuple[Policy, Rules] | None:
    edited = plan.watched.look() if plan.watched is not None else None
    if edited is None:
        return None
    assert isinstance(plan.policy, ElasticPolicy), "a file goes with its policy"
    plan.policy.adopt(edited.scaling())
    if isinstance(samples, PrometheusSamples):
        samples.ask(_asked(edited, loads=samples.gives_loads))
    return plan.policy, rules_of(edited, plan.rules)


def _cost_of(plan: Plan) -> Callable[[str], float]:
    policy = plan.policy
    if isinstance(policy, ElasticPolicy):
        return lambda model: policy.settings.policy_of(model).cost_per_replica_s
    return lambda _model: 1.0


def _obey_signals(loop: Loop, *, child: bool) -> None:
    """SIGTERM stops. So does SIGINT, but not for a child: a terminal sends it to the whole
    group, and the server still needs replicas to finish what it admitted."""

    def stop(_signal: int, _frame: FrameType | None) -> None:
        loop.stop()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN if child else stop)
