"""What Tideserve does not act on is named; what would change answers is refused."""

import pytest

from tests.server.repository.conftest import EveryField
from tideserve.server.errors import ModelConfigError
from tideserve.server.repository.config_file import parse_config
from tideserve.server.repository.unsupported import refuse_unservable, unsupported_fields

ACTED_ON = {
    "name",
    "platform",
    "backend",
    "version_policy",
    "max_batch_size",
    "input",
    "output",
    "dynamic_batching",
    "instance_group",
    "default_model_filename",
    "parameters",
    "model_warmup",
}


@pytest.mark.parametrize("choice", range(6))
def test_every_field_that_is_set_is_acted_on_or_named(every_field: EveryField, choice: int) -> None:
    config = every_field(choice)
    named = {name.split(".")[0] for name in unsupported_fields(config)}
    for field, _ in config.ListFields():
        assert field.name in ACTED_ON | named
    assert not {"name", "version_policy", "max_batch_size", "model_warmup"} & named


def test_all_that_is_named_of_a_config_with_every_field(every_field: EveryField) -> None:
    assert set(unsupported_fields(every_field(0))) == {
        "batch_input",
        "batch_output",
        "cc_model_filenames",
        "input.allow_ragged_batch",
        "input.format",
        "input.is_non_linear_format_io",
        "input.is_shape_tensor",
        "instance_group.gpus",
        "instance_group.host_policy",
        "instance_group.kind",
        "instance_group.passive",
        "instance_group.profile",
        "instance_group.rate_limiter",
        "instance_group.secondary_devices",
        "metric_tags",
        "model_metrics",
        "model_operations",
        "model_repository_agents",
        "model_transaction_policy.decoupled",
        "optimization.cuda",
        "optimization.eager_batching",
        "optimization.execution_accelerators",
        "optimization.gather_kernel_buffer_threshold",
        "optimization.graph",
        "optimization.input_pinned_memory",
        "optimization.output_pinned_memory",
        "optimization.priority",
        "output.is_non_linear_format_io",
        "output.is_shape_tensor",
        "output.label_filename",
        "response_cache",
        "runtime",
    }


def test_a_config_of_supported_fields_names_nothing() -> None:
    config = parse_config(
        """
        name: "m" platform: "onnxruntime_onnx" backend: "onnxruntime" max_batch_size: 8
        version_policy { all {} } default_model_filename: "m.onnx"
        input { name: "x" data_type: TYPE_FP32 dims: 4 reshape { shape: [2, 2] } optional: true }
        output { name: "y" data_type: TYPE_FP32 dims: 4 reshape { shape: [2, 2] } }
        dynamic_batching {
          preferred_batch_size: 4 max_queue_delay_microseconds: 9 preserve_ordering: true
          priority_levels: 1 default_priority_level: 1
          default_queue_policy { allow_timeout_override: true max_queue_size: 3 }
          priority_queue_policy { key: 1 value { default_timeout_microseconds: 5 } }
        }
        instance_group { name: "g" kind: KIND_CPU count: 2 }
        parameters { key: "tideserve.retryable" value { string_value: "true" } }
        model_warmup { name: "w" batch_size: 1 }
        model_transaction_policy { decoupled: false }
        """,
        "m",
    )
    assert unsupported_fields(config) == ()


def test_devices_are_not_the_models_to_choose() -> None:
    config = parse_config("instance_group { kind: KIND_GPU gpus: [0, 1] }", "m")
    assert set(unsupported_fields(config)) == {"instance_group.gpus", "instance_group.kind"}


def test_each_name_comes_once_however_often_it_is_set() -> None:
    config = parse_config(
        'input { name: "a" format: FORMAT_NHWC } input { name: "b" format: FORMAT_NCHW }', "m"
    )
    assert unsupported_fields(config) == ("input.format",)


def test_priorities_without_levels_are_named() -> None:
    config = parse_config(
        "dynamic_batching { default_priority_level: 2 priority_queue_policy { key: 2 value {} } }",
        "m",
    )
    assert unsupported_fields(config) == (
        "dynamic_batching.default_priority_level",
        "dynamic_batching.priority_queue_policy",
    )


def test_keys_of_tideserve_that_come_later_are_named() -> None:
    config = parse_config(
        'parameters { key: "tideserve.lease_seconds" value { string_value: "2" } }', "m"
    )
    assert unsupported_fields(config) == ("parameters.tideserve.lease_seconds",)


@pytest.mark.parametrize(
    ("backend", "named"),
    [("python", ()), ("onnxruntime", ("parameters.own",)), ("pytorch", ("parameters.own",))],
)
def test_a_models_own_parameters_are_named_where_no_model_reads_them(
    backend: str, named: tuple[str, ...]
) -> None:
    own = 'parameters { key: "own" value { string_value: "x" } }'
    assert unsupported_fields(parse_config(f'backend: "{backend}" {own}', "m")) == named


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sequence_batching {}", "sequence_batching is not supported"),
        ("ensemble_scheduling {}", "ensembles are not supported"),
        ('platform: "ensemble"', "ensembles are not supported"),
        (
            "model_transaction_policy { decoupled: true }",
            "model_transaction_policy.decoupled is not supported",
        ),
    ],
)
def test_what_would_change_answers_is_refused(text: str, words: str) -> None:
    with pytest.raises(ModelConfigError, match=f"^m: {words}.*; expected "):
        refuse_unservable(parse_config(text, "m"), "m")
