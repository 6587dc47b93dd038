"""The python models of the examples, called as a replica calls them."""

import importlib.util
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format

from tideserve.v1.model_config_pb2 import ModelConfig

MODELS = Path(__file__).resolve().parents[2] / "examples" / "models"


@dataclass
class Context:
    parameters: dict[str, str] = field(default_factory=dict)


def parameters_of(name: str) -> dict[str, str]:
    config = text_format.Parse((MODELS / name / "config.pbtxt").read_text(), ModelConfig())
    return {key: value.string_value for key, value in config.parameters.items()}


def load(name: str, parameters: dict[str, str] | None = None) -> Any:
    spec = importlib.util.spec_from_file_location(
        f"example_{name}", MODELS / name / "1" / "model.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.Model()
    model.load(Context(parameters_of(name) if parameters is None else parameters))
    return model


def test_every_config_parses_and_is_named_as_its_folder() -> None:
    folders = sorted(path for path in MODELS.iterdir() if path.is_dir())
    assert [folder.name for folder in folders] == [
        "accelerator_standin",
        "digits_onnx",
        "digits_torch",
        "identity",
        "text_python",
    ]
    for folder in folders:
        config = text_format.Parse((folder / "config.pbtxt").read_text(), ModelConfig())
        assert config.name in ("", folder.name)
        assert config.max_batch_size > 0


def test_text_is_normalized_row_by_row() -> None:
    model = load("text_python")
    texts = np.array(
        [["\ufb01ne  \uff34\uff25\uff38\uff34".encode()], ["  Straße\n".encode()], [b""]],
        dtype=object,
    )
    normalized = model.infer({"TEXT": texts})["NORMALIZED"]
    assert normalized.tolist() == [[b"fine text"], [b"strasse"], [b""]]
    model.unload()


def test_text_that_is_no_utf8_fails_no_row() -> None:
    texts = np.array([[b"\xff\xfe"], [b"Good"]], dtype=object)
    normalized = load("text_python").infer({"TEXT": texts})["NORMALIZED"]
    assert normalized.tolist() == [["\ufffd\ufffd".encode()], [b"good"]]


def test_an_unknown_normal_form_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="expected one of NFC, NFD, NFKC, NFKD, got NFX"):
        load("text_python", {"form": "NFX"})


def test_the_standin_sleeps_as_its_parameters_say(monkeypatch: pytest.MonkeyPatch) -> None:
    slept_s: list[float] = []
    monkeypatch.setattr("time.sleep", slept_s.append)
    model = load("accelerator_standin", {"a_ms": "2", "c_ms": "10"})
    rows = np.arange(48, dtype=np.float32).reshape(3, 16)
    assert np.array_equal(model.infer({"IN": rows})["OUT"], rows)
    assert slept_s == [pytest.approx(0.016)]


def test_the_standin_takes_its_parameters_from_its_config() -> None:
    model = load("accelerator_standin")
    assert model.a_ms == 0.5
    assert model.c_ms == 5.0


@pytest.mark.parametrize("text", ["fast", "-1", "nan", "inf", ""])
def test_the_standin_refuses_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="parameter a_ms: expected milliseconds, 0 or more"):
        load("accelerator_standin", {"a_ms": text, "c_ms": "1"})


def test_the_standin_names_a_missing_parameter() -> None:
    with pytest.raises(ValueError, match="parameter c_ms: expected milliseconds, 0 or more, got N"):
        load("accelerator_standin", {"a_ms": "1"})
