"""dynamic_batching and `tideserve.*` as the core's settings."""

import pytest

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
from tideserve.server.repository.config_file import parse_config
from tideserve.server.repository.settings import MAX_PRIORITY_LEVELS, model_settings


def _settings(text: str, complete: bool = True) -> ModelSettings:
    return model_settings(parse_config(text, "m"), "m", complete)


def test_an_empty_config_has_the_cores_defaults_and_no_batching() -> None:
    assert _settings("") == ModelSettings()
    assert _settings("").batch.max_batch_rows == 0


def test_a_max_batch_size_without_dynamic_batching_is_eager() -> None:
    batch = _settings("max_batch_size: 8").batch
    assert batch == BatchSettings(mode=BatchingMode.EAGER, max_batch_rows=8)


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("dynamic_batching {}", BatchingMode.EAGER),
        ("dynamic_batching { max_queue_delay_microseconds: 1 }", BatchingMode.WINDOW),
        ("dynamic_batching { preferred_batch_size: 4 }", BatchingMode.WINDOW),
        (
            'parameters { key: "tideserve.batching" value { string_value: "window" } }',
            BatchingMode.WINDOW,
        ),
        (
            'dynamic_batching { preferred_batch_size: 4 } parameters { key: "tideserve.batching" value { string_value: "eager" } }',
            BatchingMode.EAGER,
        ),
    ],
)
def test_the_mode_follows_dynamic_batching_unless_said(text: str, mode: BatchingMode) -> None:
    assert _settings(f"max_batch_size: 8 {text}").batch.mode is mode


def test_every_field_of_dynamic_batching_arrives() -> None:
    settings = _settings(
        """
        max_batch_size: 16
        dynamic_batching {
          preferred_batch_size: [ 8, 4, 8 ]
          max_queue_delay_microseconds: 2500
          priority_levels: 3
          default_priority_level: 2
          default_queue_policy {
            timeout_action: DELAY default_timeout_microseconds: 1500000 max_queue_size: 7
          }
          priority_queue_policy { key: 3 value { max_queue_size: 1 } }
          priority_queue_policy {
            key: 1 value { allow_timeout_override: true default_timeout_microseconds: 1 }
          }
        }
        """
    )
    assert settings.batch == BatchSettings(
        mode=BatchingMode.WINDOW,
        max_batch_rows=16,
        preferred_rows=(4, 8),
        max_queue_delay_s=0.0025,
    )
    assert settings.queue == QueueSettings(
        priority_levels=3,
        default_priority=2,
        default_policy=QueuePolicy(
            timeout_action=TimeoutAction.DELAY,
            timeout_s=1.5,
            allow_timeout_override=False,
            max_queue_requests=7,
        ),
        priority_policies=(
            (1, QueuePolicy(timeout_s=1e-6, allow_timeout_override=True)),
            (3, QueuePolicy(allow_timeout_override=False, max_queue_requests=1)),
        ),
    )


def test_a_callers_timeout_counts_unless_a_queue_policy_says_otherwise() -> None:
    without = _settings("dynamic_batching {}").queue.default_policy
    silent = _settings("dynamic_batching { default_queue_policy {} }").queue.default_policy
    assert without.allow_timeout_override
    assert not silent.allow_timeout_override


def test_order_is_preserved_where_asked() -> None:
    batching = "dynamic_batching { preserve_ordering: true priority_levels: 1"
    assert _settings(batching + " default_priority_level: 1 }").batch.preserve_ordering
    assert not _settings("dynamic_batching {}").batch.preserve_ordering


def test_without_levels_there_is_one_and_its_policies_do_not_count() -> None:
    queue = _settings(
        "dynamic_batching { default_priority_level: 5 priority_queue_policy { key: 5 value {} } }"
    ).queue
    assert (queue.priority_levels, queue.default_priority, queue.priority_policies) == (1, 1, ())


def test_the_parameters_of_tideserve_arrive() -> None:
    values = {
        "retryable": "false",
        "max_batch_time": "9",
        "max_queue_requests": "11",
        "max_queue_rows": "12",
        "max_queue_bytes": "13",
        "max_lease_bytes": "14",
    }
    settings = _settings(
        "".join(
            f'parameters {{ key: "tideserve.{key}" value {{ string_value: "{value}" }} }}'
            for key, value in values.items()
        )
    )
    assert settings.lease == LeaseSettings(retryable=False, max_batch_time_s=9.0)
    assert settings.batch.max_lease_bytes == 14
    assert settings.queue == QueueSettings(max_requests=11, max_rows=12, max_bytes=13)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("max_batch_size: -1", "max_batch_size: expected 0 (no batching) or more, got -1"),
        (
            "max_batch_size: 4 dynamic_batching { preferred_batch_size: 5 }",
            "dynamic_batching.preferred_batch_size: expected rows from 1 to max_batch_size, 4, got 5",
        ),
        (
            "max_batch_size: 4 dynamic_batching { preferred_batch_size: 0 }",
            "dynamic_batching.preferred_batch_size: expected rows from 1 to max_batch_size, 4, got 0",
        ),
        (
            "dynamic_batching { preferred_batch_size: 1 }",
            "dynamic_batching.preferred_batch_size: expected none, because max_batch_size is 0, got 1",
        ),
        (
            f"dynamic_batching {{ priority_levels: {2**64 - 1} default_priority_level: 1 }}",
            f"dynamic_batching.priority_levels: expected 0 to {MAX_PRIORITY_LEVELS}, got {2**64 - 1}",
        ),
        (
            "dynamic_batching { priority_levels: 3 }",
            "dynamic_batching.default_priority_level: expected a level from 1 to priority_levels, 3, got 0",
        ),
        (
            "dynamic_batching { priority_levels: 3 default_priority_level: 4 }",
            "dynamic_batching.default_priority_level: expected a level from 1 to priority_levels, 3, got 4",
        ),
        (
            "dynamic_batching { priority_levels: 3 default_priority_level: 1 priority_queue_policy { key: 4 value {} } }",
            "dynamic_batching.priority_queue_policy: expected keys from 1 to priority_levels, 3, got 4",
        ),
        (
            "dynamic_batching { preserve_ordering: true priority_levels: 2 default_priority_level: 1 }",
            "dynamic_batching.preserve_ordering: expected at most one priority level with it, got 2",
        ),
        (
            "dynamic_batching { preserve_ordering: true default_queue_policy { timeout_action: DELAY default_timeout_microseconds: 1 } }",
            "dynamic_batching.preserve_ordering: expected queue policies that REJECT with it, got timeout_action DELAY",
        ),
    ],
)
def test_what_contradicts_itself_is_refused(text: str, sentence: str) -> None:
    with pytest.raises(ModelConfigError) as refused:
        _settings(text)
    assert str(refused.value) == f"m: {sentence}"


def test_preferred_sizes_wait_for_a_max_batch_size_that_a_replica_may_give() -> None:
    text = "dynamic_batching { preferred_batch_size: 4 }"
    assert _settings(text, complete=False).batch.preferred_rows == (4,)


_TARGET = 'parameters { key: "tideserve.latency_target" value { string_value: "0.025" } }'
_SLO = 'parameters { key: "tideserve.batching" value { string_value: "slo" } }'


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        (_TARGET, BatchingMode.SLO),
        (_TARGET + "dynamic_batching {}", BatchingMode.SLO),
        (_TARGET + "dynamic_batching { max_queue_delay_microseconds: 1 }", BatchingMode.WINDOW),
        (_TARGET + "dynamic_batching { preserve_ordering: true }", BatchingMode.EAGER),
        (
            _TARGET + _SLO + "dynamic_batching { max_queue_delay_microseconds: 1 }",
            BatchingMode.SLO,
        ),
        (_TARGET + _SLO.replace("slo", "eager"), BatchingMode.EAGER),
    ],
)
def test_a_latency_target_means_slo_unless_something_else_is_asked_for(
    text: str, mode: BatchingMode
) -> None:
    settings = _settings("max_batch_size: 8 " + text)
    assert settings.batch.mode is mode
    assert settings.batch.target_s == (0.025 if mode is BatchingMode.SLO else None)
    assert settings.batch.on_late is OnLate.SERVE


def test_late_requests_may_be_dropped() -> None:
    drop = 'parameters { key: "tideserve.on_late" value { string_value: "drop" } }'
    assert _settings(_TARGET + drop).batch.on_late is OnLate.DROP


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (_SLO, "slo needs tideserve.latency_target"),
        (_TARGET + _SLO + "dynamic_batching { preserve_ordering: true }", "out of order"),
    ],
)
def test_slo_is_refused_where_it_cannot_work(text: str, words: str) -> None:
    with pytest.raises(ModelConfigError, match=words):
        _settings(text)
