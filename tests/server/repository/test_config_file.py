"""config.pbtxt: everything Triton documents parses, everything else is refused with its place."""

import os
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from google.protobuf.message import Message
from hypothesis import example, given
from hypothesis import strategies as st

from tests.server.repository.conftest import EveryField
from tideserve.server.errors import ModelConfigError
from tideserve.server.repository.config_file import MAX_CONFIG_BYTES, parse_config, read_config
from tideserve.v1.model_config_pb2 import DataType, ModelConfig


@pytest.mark.parametrize("choice", range(6))
def test_a_config_that_sets_every_field_parses_to_what_it_says(
    every_field: EveryField, choice: int
) -> None:
    config = every_field(choice)
    text = text_format.MessageToString(config)
    assert parse_config(text, "config.pbtxt") == config


def test_the_choices_together_set_every_field_of_every_message(
    every_field: EveryField,
) -> None:
    met = {path for choice in range(6) for path in _set_fields(every_field(choice))}
    assert met == _all_fields(ModelConfig.DESCRIPTOR)
    assert len(met) > 150


def test_the_forms_that_triton_files_use_parse() -> None:
    config = parse_config(
        """
        # A comment
        name: "resnet" , platform: 'onnxruntime_onnx';
        max_batch_size: 8
        input [ { name: "x" data_type: TYPE_FP32 dims: [ 3, -1, 224 ] },
                { name: "y", data_type: TYPE_STRING, dims: 1, dims: 2 } ]
        output: < name: "out" data_type: TYPE_BF16 dims: [ 0x10 ] >
        version_policy: { all { }}
        parameters: { key: "tideserve.retryable" value: { string_value: "fal" "se" } }
        dynamic_batching { }
        """,
        "config.pbtxt",
    )
    assert [list(tensor.dims) for tensor in config.input] == [[3, -1, 224], [1, 2]]
    assert config.output[0].data_type == DataType.TYPE_BF16
    assert list(config.output[0].dims) == [16]
    assert config.HasField("dynamic_batching")
    assert config.version_policy.WhichOneof("policy_choice") == "all"
    assert config.parameters["tideserve.retryable"].string_value == "false"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('\n\ninpt { name: "x" }', "m:3:1: ModelConfig has no field 'inpt': did you mean 'input'?"),
        (
            'input {\n  name: "x"\n  data_typ: TYPE_FP32\n}',
            "m:3:3: ModelInput has no field 'data_typ': did you mean 'data_type'?",
        ),
        (
            "version_policy { zzz {} }",
            "m:1:18: ModelVersionPolicy has no field 'zzz': expected one of latest, all, specific",
        ),
        (
            "dynamic_batching { default_queue_policy { timeout_action: KILL } }",
            "m:1:59: expected one of REJECT, DELAY, got KILL",
        ),
        (
            "instance_group { kind: 77 }",
            "m: instance_group.kind: expected one of KIND_AUTO, KIND_GPU, KIND_CPU, KIND_MODEL, got 77",
        ),
        (
            "batch_output { kind: 9 }",
            "m: batch_output.kind: expected one of BATCH_SCATTER_WITH_INPUT_SHAPE, got 9",
        ),
        (
            "dynamic_batching { priority_queue_policy { key: 1 value { timeout_action: 9 } } }",
            "m: dynamic_batching.priority_queue_policy.timeout_action: expected one of REJECT, DELAY, got 9",
        ),
        ("max_batch_size: many", "m:1:17: expected an integer, got many"),
        ("max_batch_size: 1.5", "m:1:17: expected an integer, got 1.5"),
        (
            "max_batch_size: 3000000000",
            "m:1:17: expected an integer in the field's range, got 3000000000",
        ),
        ("name: resnet", "m:1:7: expected a string in quotes, got resnet"),
        ('name: "resnet', 'm:1:7: expected a closing quote on the same line, got "resnet'),
        ('name: "\\777"', "m:1:8: expected an escape that C has, got \\777"),
        ('\nname: "a" platform: "\\d"', "m:2:22: expected an escape that C has, got \\d"),
        ('name: "\\377"', "m:1:13: expected UTF-8 text and valid escapes in the string"),
        (
            'name: "\\xzz"',
            'm:1:7: expected UTF-8 text and valid escapes in the string, got "\\xzz"',
        ),
        ('name "x"', 'm:1:6: expected ":", got "x"'),
        ('name: "a"\nname: "b"', "m:2:7: expected 'name' once, got it a second time"),
        ('input {\n  name: "x"', 'm:2:9: expected "}", got the end of the file'),
        ("input [", 'm:1:8: expected "{", got the end of the file'),
        ("}", "m:1:1: expected the name of a field, got }"),
        ("\0", "m:1:1: expected the name of a field, got '\\x00'"),
        (
            "dynamic_batching { preserve_ordering: maybe }",
            'm:1:39: expected "true" or "false", got maybe',
        ),
        (
            "dynamic_batching {}\nsequence_batching {}",
            "m:2:1: expected one of 'dynamic_batching' and 'sequence_batching', got both",
        ),
    ],
)
def test_a_broken_config_is_refused_with_line_column_expected_and_got(
    text: str, sentence: str
) -> None:
    with pytest.raises(ModelConfigError) as refused:
        parse_config(text, "m")
    assert str(refused.value) == sentence


def test_a_wrong_data_type_is_refused_with_all_there_are() -> None:
    with pytest.raises(ModelConfigError, match=r"^m:1:20: ") as refused:
        parse_config("input { data_type: FP32 }", "m")
    for name in DataType.DESCRIPTOR.values_by_name:
        assert name in str(refused.value)


@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=60))
@example("input { dims: [" * 3)
@example("[type.googleapis.com/tideserve.v1.ModelConfig] { }")
@example("max_batch_size: " + "9" * 5000)
@example("model_metrics { metric_control { histogram_options { buckets: 1e999 } } }")
def test_no_text_gets_past_as_another_error(text: str) -> None:
    assert _refusal(text).startswith("m:")


_WORDS = (
    *("input", "name", "dims", "dynamic_batching", "parameters", "key", "value", "#", "\n"),
    *(
        "{",
        "}",
        "[",
        "]",
        "<",
        ">",
        ":",
        ",",
        ";",
        "'",
        '"x"',
        '"\\',
        "-1",
        "7",
        "1.5",
        "TYPE_FP32",
    ),
)


@given(st.lists(st.sampled_from(_WORDS), max_size=20).map(" ".join))
def test_no_mix_of_words_gets_past_as_another_error(text: str) -> None:
    assert _refusal(text).startswith("m:")


def test_a_file_error_names_the_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "config.pbtxt"
    path.write_text('name: "x"\nmax_batchsize: 4\n')
    with pytest.raises(ModelConfigError) as refused:
        read_config(path)
    assert str(refused.value) == (
        f"{path}:2:1: ModelConfig has no field 'max_batchsize': did you mean 'max_batch_size'?"
    )


def test_a_file_may_begin_with_a_byte_order_mark_and_end_lines_as_windows_does(
    tmp_path: Path,
) -> None:
    path = tmp_path / "config.pbtxt"
    path.write_bytes(b'\xef\xbb\xbfname: "x"\r\nmax_batch_size: 4\r\n')
    config = read_config(path)
    assert (config.name, config.max_batch_size) == ("x", 4)


def test_bytes_that_are_no_utf8_are_refused_with_their_place(tmp_path: Path) -> None:
    path = tmp_path / "config.pbtxt"
    path.write_bytes(b'max_batch_size: 4\nname: "\xff"')
    with pytest.raises(ModelConfigError) as refused:
        read_config(path)
    assert str(refused.value) == f"{path}:2:8: expected UTF-8 text, got byte 0xff"


def test_a_pipe_is_refused_without_waiting_for_its_writer(tmp_path: Path) -> None:
    path = tmp_path / "config.pbtxt"
    os.mkfifo(path)
    with pytest.raises(ModelConfigError, match="expected a regular file"):
        read_config(path)


def test_a_file_that_is_not_there_and_one_too_large_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.pbtxt"
    with pytest.raises(ModelConfigError, match="No such file"):
        read_config(path)
    path.write_bytes(b"#" * (MAX_CONFIG_BYTES + 1))
    with pytest.raises(ModelConfigError, match=f"expected at most {MAX_CONFIG_BYTES} bytes"):
        read_config(path)


def _refusal(text: str) -> str:
    """The error's message; that of a text that parses says so."""
    try:
        parse_config(text, "m")
    except ModelConfigError as error:
        return str(error)
    return "m: parses"


def _all_fields(descriptor: Any, prefix: str = "") -> set[str]:
    names: set[str] = set()
    for field in descriptor.fields:
        # An enum of one value cannot be told from an unset one.
        if field.enum_type is None or len(field.enum_type.values) > 1:
            names.add(prefix + field.name)
        if field.message_type is not None:
            names |= _all_fields(field.message_type, f"{prefix}{field.name}.")
    return names


def _set_fields(message: Message, prefix: str = "") -> set[str]:
    names: set[str] = set()
    for field, value in message.ListFields():
        path = prefix + field.name
        names.add(path)
        if field.message_type is None:
            continue
        if field.message_type.GetOptions().map_entry:
            names |= {f"{path}.key", f"{path}.value"}
            for child in value.values():
                if isinstance(child, Message):
                    names |= _set_fields(child, f"{path}.value.")
        elif isinstance(value, Message):
            names |= _set_fields(value, f"{path}.")
        else:
            for child in value:
                names |= _set_fields(child, f"{path}.")
    return names
