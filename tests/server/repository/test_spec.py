"""From complete configurations to specs."""

from math import prod
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tideserve.server.core.settings import BatchingMode
from tideserve.server.errors import ModelConfigError
from tideserve.server.model_spec import DATATYPE_BYTES, ModelSpec, TensorSpec
from tideserve.server.padding import Padding
from tideserve.server.repository.config_file import parse_config
from tideserve.server.repository.found import FoundModel, FoundVersion
from tideserve.server.repository.spec import build_spec, check_config, instance_count, is_complete
from tideserve.v1.model_config_pb2 import DataType, ModelConfig

TENSORS = """
input { name: "x" data_type: TYPE_FP32 dims: 4 }
output { name: "y" data_type: TYPE_FP32 dims: 2 }
"""
VERSION = FoundVersion(3, "g1")


def _found(backend: str = "onnxruntime", error: str | None = None) -> FoundModel:
    return FoundModel("m", "/r/m", ModelConfig(), (VERSION,), backend, error)


def _build(text: str, backend: str = "onnxruntime") -> ModelSpec:
    return build_spec(_found(backend), VERSION, parse_config(text, "m"))


@pytest.mark.parametrize(
    ("text", "complete"),
    [
        (TENSORS, True),
        ("", False),
        ('input { name: "x" data_type: TYPE_FP32 dims: 4 }', False),
        (TENSORS + 'output { name: "z" dims: 2 }', False),
        (TENSORS + 'output { name: "z" data_type: TYPE_FP32 }', False),
    ],
)
def test_a_config_is_complete_with_types_and_dims_of_inputs_and_outputs(
    text: str, complete: bool
) -> None:
    assert is_complete(parse_config(text, "m")) is complete


def test_a_spec_has_all_that_the_config_says() -> None:
    spec = _build(
        """
        max_batch_size: 8
        input { name: "x" data_type: TYPE_STRING dims: [-1, 4] reshape { shape: [-1, 2, 2] } }
        input { name: "mask" data_type: TYPE_BOOL dims: 4 optional: true }
        output { name: "x" data_type: TYPE_BF16 dims: 1 reshape {} }
        dynamic_batching { max_queue_delay_microseconds: 100 }
        instance_group { count: 2 kind: KIND_GPU gpus: [0, 1] }
        instance_group { kind: KIND_CPU }
        """
    )
    assert spec == ModelSpec(
        name="m",
        version=3,
        generation="g1",
        path="/r/m",
        platform="onnxruntime_onnx",
        backend="onnxruntime",
        max_batch_size=8,
        inputs=(
            TensorSpec("x", "BYTES", (-1, 4), (-1, 2, 2)),
            TensorSpec("mask", "BOOL", (4,), optional=True),
        ),
        outputs=(TensorSpec("x", "BF16", (1,), ()),),
        config=ModelConfig(),
        settings=spec.settings,
    )
    assert spec.settings.batch.mode is BatchingMode.WINDOW
    assert spec.settings.batch.max_batch_rows == 8
    assert (spec.config.name, spec.config.backend) == ("m", "onnxruntime")
    assert len(spec.config.input) == 2


def test_the_config_given_is_left_as_it_was() -> None:
    config = parse_config(TENSORS, "m")
    before = config.SerializeToString()
    spec = build_spec(_found(), VERSION, config)
    assert config.SerializeToString() == before
    assert spec.config is not config


@pytest.mark.parametrize(
    ("backend", "platform"),
    [
        ("onnxruntime", "onnxruntime_onnx"),
        ("pytorch", "pytorch_libtorch"),
        ("python", "python"),
    ],
)
def test_platforms_are_tritons(backend: str, platform: str) -> None:
    assert _build(TENSORS, backend).platform == platform


@pytest.mark.parametrize(
    ("named", "platform"),
    [("torch_export", "torch_export"), ("onnxruntime_onnx", "pytorch_libtorch")],
)
def test_a_platform_of_the_backend_that_the_config_names_is_kept(named: str, platform: str) -> None:
    assert _build(TENSORS + f'platform: "{named}"', "pytorch").platform == platform


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", 1),
        ("instance_group {}", 1),
        ("instance_group { count: 2 gpus: [0, 1] } instance_group { kind: KIND_CPU }", 5),
    ],
)
def test_instances_are_those_of_all_groups(text: str, expected: int) -> None:
    assert instance_count(parse_config(TENSORS + text, "m")) == expected


def test_more_instances_than_can_be_are_refused() -> None:
    with pytest.raises(ModelConfigError, match="expected at most 4096 instances in all, got 4097"):
        _build(TENSORS + "instance_group { count: 4000 } instance_group { count: 97 }")


def test_every_data_type_has_its_name_on_the_client_plane() -> None:
    names = set()
    for value in DataType.DESCRIPTOR.values:
        if value.number != DataType.TYPE_INVALID:
            names.add(_build(TENSORS.replace("TYPE_FP32", value.name)).inputs[0].datatype)
    assert names == set(DATATYPE_BYTES)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "expected at least one input, got none: neither config.pbtxt nor the model file"),
        ('input { name: "x" data_type: TYPE_FP32 }', "expected at least one output, got none"),
        (TENSORS + 'input { name: "z" }', "input 'z': expected data_type and dims, got none"),
        (
            TENSORS + 'output { name: "z" data_type: TYPE_FP32 reshape { shape: 1 } }',
            "output 'z': expected dims, got none: neither config.pbtxt nor the model file tells it",
        ),
        (TENSORS + 'name: "other"', "name: expected 'm' or none, got 'other'"),
        (TENSORS + "sequence_batching {}", "sequence_batching is not supported"),
        (
            TENSORS + "dynamic_batching { preferred_batch_size: 2 }",
            "dynamic_batching.preferred_batch_size: expected none, because max_batch_size is 0",
        ),
    ],
)
def test_what_a_completed_config_lacks_is_said(text: str, sentence: str) -> None:
    with pytest.raises(ModelConfigError) as refused:
        _build(text)
    assert str(refused.value).startswith(f"/r/m version 3: {sentence}")


def test_a_model_with_an_error_has_no_spec() -> None:
    with pytest.raises(ModelConfigError, match=r"^broken$"):
        build_spec(_found(error="broken"), VERSION, parse_config(TENSORS, "m"))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("input { data_type: TYPE_FP32 }", "input: name: expected one in each, got none"),
        (
            'output { name: "y" } output { name: "y" }',
            "output 'y': expected each name once, got it again",
        ),
        (
            'input { name: "x" dims: [4, 0] }',
            "input 'x': dims: expected sizes of 1 or more, or -1 for any size, got 0",
        ),
        (
            'input { name: "x" dims: -2 }',
            "input 'x': dims: expected sizes of 1 or more, or -1 for any size, got -2",
        ),
        (
            'input { name: "x" dims: 4 reshape { shape: [4, 0] } }',
            "input 'x': reshape: expected sizes of 1 or more, or -1 for any size, got 0",
        ),
        (
            'input { name: "x" dims: [2, -1] reshape { shape: [-1, 2] } }',
            "input 'x': reshape: expected as many elements as dims [2, -1] has, before, between and after each -1, got [-1, 2]",
        ),
        (
            'output { name: "y" dims: 2 reshape {} }',
            "output 'y': reshape: expected as many elements as dims [2] has, before, between and after each -1, got []",
        ),
        (
            "instance_group { kind: KIND_CPU gpus: 1 }",
            "instance_group[0]: gpus: expected none with KIND_CPU, got [1]",
        ),
    ],
)
def test_what_is_wrong_is_said_before_a_replica_starts(text: str, sentence: str) -> None:
    with pytest.raises(ModelConfigError) as refused:
        check_config(parse_config(text, "m"), "m")
    assert str(refused.value) == f"m: {sentence}"


def test_a_data_type_that_no_one_knows_is_refused() -> None:
    config = parse_config(TENSORS, "m")
    config.ParseFromString(config.SerializeToString().replace(b"\x10\x0b", b"\x10\x63", 1))
    assert config.input[0].data_type == 99
    with pytest.raises(ModelConfigError, match=r"input 'x': data_type: expected one .* got 99$"):
        build_spec(_found(), VERSION, config)


def test_what_a_replica_may_complete_is_not_asked_for_before() -> None:
    for text in ("", 'input { name: "x" }', "dynamic_batching { preferred_batch_size: 2 }"):
        check_config(parse_config(text, "m"), "m")


@pytest.mark.parametrize(
    "reshape",
    [
        "dims: [2, 4, -1, 6] reshape { shape: [8, -1, 1, 6] }",
        "dims: [-1, -1] reshape { shape: [1, -1, -1, 1] }",
    ],
)
def test_a_reshape_may_regroup_the_sizes_between_any_sizes(reshape: str) -> None:
    spec = _build(TENSORS.replace("dims: 4", reshape))
    assert spec.inputs[0].model_dims is not None
    with pytest.raises(ModelConfigError, match="reshape: expected as many elements"):
        _build(TENSORS.replace("dims: 4", reshape.replace("-1, 1", "-1, 3")))


@given(st.lists(st.integers(1, 6), max_size=4), st.lists(st.integers(1, 6), max_size=4))
def test_a_reshape_keeps_the_number_of_elements(dims: list[int], shape: list[int]) -> None:
    config = parse_config(TENSORS, "m")
    config.input[0].dims[:] = [*dims, 1]
    config.input[0].reshape.shape[:] = shape
    if prod(dims) == prod(shape):
        assert build_spec(_found(), VERSION, config).inputs[0].model_dims == tuple(shape)
    else:
        with pytest.raises(ModelConfigError, match="reshape: expected as many elements"):
            build_spec(_found(), VERSION, config)


# --- tideserve.pad ------------------------------------------------------------------------------


def _padded(pad: str, *, x: str = "dims: [-1, 4]", rows: int = 8) -> ModelSpec:
    return _build(
        f"""
        max_batch_size: {rows}
        input {{ name: "x" data_type: TYPE_INT32 {x} }}
        input {{ name: "n" data_type: TYPE_FP32 dims: 1 }}
        output {{ name: "y" data_type: TYPE_FP32 dims: [-1, 2] }}
        output {{ name: "s" data_type: TYPE_STRING dims: -1 }}
        parameters {{ key: "tideserve.pad" value {{ string_value: "{pad}" }} }}
        """
    )


def test_what_is_padded_and_cut_is_what_leaves_the_dimension_open() -> None:
    spec = _padded("dim=0,edges=4/8,value.x=7,cost=32")
    assert spec.padding == Padding(0, (4, 8), {"x": b"\x07\0\0\0"}, frozenset({"y", "s"}))
    assert spec.settings.batch.max_batch_cost == 32


@pytest.mark.parametrize(
    ("pad", "options", "said"),
    [
        ("dim=1,edges=4", {}, "expected an input whose dims[1] is -1, got 'x' [-1, 4], 'n' [1]"),
        ("dim=0,edges=4", {"rows": 0}, "expected a max_batch_size of 1 or more with it, got 0"),
        ("dim=0,edges=4,value.n=1", {}, "value.n: expected a padded input, x"),
        ("dim=0,edges=4,value=0.5", {}, "input 'x': expected a value that it has, got INT32"),
        (
            "dim=0,edges=4",
            {"x": "dims: [-1, 4] reshape { shape: [-1, 2, 2] }"},
            "expected an input whose dims[0] is -1",
        ),
    ],
)
def test_padding_that_cannot_be_is_refused(pad: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelConfigError) as refused:
        _padded(pad, **options)
    assert "parameters: tideserve.pad: " in str(refused.value)
    assert said in str(refused.value)
