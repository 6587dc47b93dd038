"""A configuration's scheduling part as the core's settings.

Triton's meaning (ModelDynamicBatching and ModelQueuePolicy in
https://github.com/triton-inference-server/common/blob/main/protobuf/model_config.proto)
with one default of our own: a model with a max_batch_size and no dynamic_batching is
batched eagerly, where Triton would not batch it.
"""

from dataclasses import replace
from typing import Final

from tideserve.server.core.settings import (
    BatchingMode,
    BatchSettings,
    LeaseSettings,
    ModelSettings,
    OnLate,
    QueuePolicy,
    QueueSettings,
    TimeoutAction,
)
from tideserve.server.errors import ModelConfigError
from tideserve.server.repository.parameters import Parameters, read_parameters
from tideserve.v1.model_config_pb2 import ModelConfig, ModelDynamicBatching, ModelQueuePolicy

# The queue keeps something for every level.
MAX_PRIORITY_LEVELS: Final = 1000


def model_settings(config: ModelConfig, source: str, complete: bool) -> ModelSettings:
    """Raises `ModelConfigError`. Unless `complete`, a max_batch_size of 0 may still change."""
    own = read_parameters(config.parameters, source)
    if config.max_batch_size < 0:
        raise ModelConfigError(
            f"{source}: max_batch_size: expected 0 (no batching) or more, "
            f"got {config.max_batch_size}"
        )
    batching = config.dynamic_batching
    if config.max_batch_size or complete:
        _check_preferred(batching, config.max_batch_size, source)
    _check_order(batching, source)
    mode = _mode(batching, own, source)
    target_s = own.latency_target_s if mode is BatchingMode.SLO else None
    return ModelSettings(
        queue=_queue_settings(batching, own, source),
        batch=replace(
            _batch_settings(batching, config.max_batch_size, own),
            mode=mode,
            target_s=target_s,
            on_late=own.on_late or OnLate.SERVE,
            max_batch_cost=None if own.pad is None else own.pad.cost,
            row_costs=() if own.pad is None else own.pad.edges,
        ),
        lease=LeaseSettings(
            retryable=own.retryable is not False, max_batch_time_s=own.max_batch_time_s
        ),
    )


def _mode(batching: ModelDynamicBatching, own: Parameters, source: str) -> BatchingMode:
    """What is asked for; else Triton's fields, else the latency target decide."""
    if own.batching is BatchingMode.SLO:
        if own.latency_target_s is None:
            raise ModelConfigError(
                f"{source}: parameters: tideserve.batching: slo needs tideserve.latency_target, "
                "which is not there"
            )
        if batching.preserve_ordering:
            raise ModelConfigError(
                f"{source}: parameters: tideserve.batching: expected eager or window with "
                "dynamic_batching.preserve_ordering, got slo, which answers out of order"
            )
    if own.batching is not None:
        return own.batching
    if batching.max_queue_delay_microseconds > 0 or batching.preferred_batch_size:
        return BatchingMode.WINDOW
    if own.latency_target_s is not None and not batching.preserve_ordering:
        return BatchingMode.SLO
    return BatchingMode.EAGER


def _queue_settings(batching: ModelDynamicBatching, own: Parameters, source: str) -> QueueSettings:
    levels = batching.priority_levels
    policies: tuple[tuple[int, QueuePolicy], ...] = ()
    if levels:
        _check_priorities(batching, source)
        policies = tuple(
            (level, _queue_policy(policy))
            for level, policy in sorted(batching.priority_queue_policy.items())
        )
    default = QueueSettings()
    return QueueSettings(
        max_requests=own.max_queue_requests or default.max_requests,
        max_rows=own.max_queue_rows or default.max_rows,
        max_bytes=own.max_queue_bytes or default.max_bytes,
        priority_levels=levels or 1,
        default_priority=batching.default_priority_level if levels else 1,
        default_policy=(
            _queue_policy(batching.default_queue_policy)
            if batching.HasField("default_queue_policy")
            else QueuePolicy()
        ),
        priority_policies=policies,
    )


def _queue_policy(policy: ModelQueuePolicy) -> QueuePolicy:
    """A zero timeout or size means none."""
    return QueuePolicy(
        timeout_action=(
            TimeoutAction.DELAY
            if policy.timeout_action == ModelQueuePolicy.DELAY
            else TimeoutAction.REJECT
        ),
        timeout_s=policy.default_timeout_microseconds / 1e6 or None,
        allow_timeout_override=policy.allow_timeout_override,
        max_queue_requests=policy.max_queue_size or None,
    )


def _batch_settings(
    batching: ModelDynamicBatching, max_batch_size: int, own: Parameters
) -> BatchSettings:
    settings = BatchSettings(
        max_batch_rows=max_batch_size,
        preferred_rows=tuple(sorted(set(batching.preferred_batch_size))),
        max_queue_delay_s=batching.max_queue_delay_microseconds / 1e6,
        preserve_ordering=batching.preserve_ordering,
    )
    if own.max_lease_bytes is not None:
        return replace(settings, max_lease_bytes=own.max_lease_bytes)
    return settings


def _check_preferred(batching: ModelDynamicBatching, max_batch_size: int, source: str) -> None:
    for rows in batching.preferred_batch_size:
        if not 1 <= rows <= max_batch_size:
            allowed = (
                f"rows from 1 to max_batch_size, {max_batch_size}"
                if max_batch_size
                else "none, because max_batch_size is 0"
            )
            raise ModelConfigError(
                f"{source}: dynamic_batching.preferred_batch_size: expected {allowed}, got {rows}"
            )


def _check_priorities(batching: ModelDynamicBatching, source: str) -> None:
    levels = batching.priority_levels
    if levels > MAX_PRIORITY_LEVELS:
        raise ModelConfigError(
            f"{source}: dynamic_batching.priority_levels: expected 0 to {MAX_PRIORITY_LEVELS}, "
            f"got {levels}"
        )
    if not 1 <= batching.default_priority_level <= levels:
        raise ModelConfigError(
            f"{source}: dynamic_batching.default_priority_level: expected a level from 1 to "
            f"priority_levels, {levels}, got {batching.default_priority_level}"
        )
    for level in sorted(batching.priority_queue_policy):
        if not 1 <= level <= levels:
            raise ModelConfigError(
                f"{source}: dynamic_batching.priority_queue_policy: expected keys from 1 to "
                f"priority_levels, {levels}, got {level}"
            )


def _check_order(batching: ModelDynamicBatching, source: str) -> None:
    """Priorities and delays answer out of order (Triton refuses the same)."""
    if not batching.preserve_ordering:
        return
    if batching.priority_levels > 1:
        raise ModelConfigError(
            f"{source}: dynamic_batching.preserve_ordering: expected at most one priority level "
            f"with it, got {batching.priority_levels}"
        )
    for policy in (batching.default_queue_policy, *batching.priority_queue_policy.values()):
        if policy.timeout_action == ModelQueuePolicy.DELAY and policy.default_timeout_microseconds:
            raise ModelConfigError(
                f"{source}: dynamic_batching.preserve_ordering: expected queue policies that "
                "REJECT with it, got timeout_action DELAY"
            )
