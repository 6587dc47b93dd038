"""The example of docs/python-models.md loads and answers as the page says."""

import re
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import text_format

from tests.replica.batches import MAX_MESSAGE_BYTES, lease, outputs_of, read_outcome
from tideserve.replica.loading import Assignment, Loaded, NotLoaded, load
from tideserve.replica.settings import Device
from tideserve.v1.model_config_pb2 import ModelConfig

PAGE = (Path(__file__).parents[2] / "docs" / "python-models.md").read_text()


def block(language: str) -> str:
    """The page's only block in this language."""
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert isinstance(found, str)
    return found


@pytest.fixture
def model(tmp_path: Path) -> Assignment:
    version = tmp_path / "scale" / "1"
    version.mkdir(parents=True)
    (version / "model.py").write_text(block("python"))
    np.save(version / "weights.npy", np.array([1.0, 10.0, 100.0], np.float32))
    config = text_format.Parse(block("protobuf"), ModelConfig())
    return Assignment("scale", 1, "g1", tmp_path / "scale", config)


def test_the_example_answers_rows_in_order(model: Assignment) -> None:
    loaded = load(model, Device(), 1, lambda _: None)
    assert isinstance(loaded, Loaded), loaded
    assert [point.rows for point in loaded.profile] == [1], "its model_warmup ran"
    values = np.array([[1, 2, 3], [4, 5, 6]], np.float32)
    outcome = read_outcome(loaded.runner.run(lease({"values": values}, 2), MAX_MESSAGE_BYTES))
    outputs = outputs_of(outcome)
    np.testing.assert_array_equal(outputs["scaled"], [[1, 20, 300], [4, 50, 600]])
    assert outputs["label"].tolist() == [[b"321.0 mm"], [b"654.0 mm"]]
    loaded.runner.close()


def test_what_load_raises_is_the_reason(model: Assignment) -> None:
    (model.path / "1" / "weights.npy").unlink()
    result = load(model, Device(), 1, lambda _: None)
    assert isinstance(result, NotLoaded)
    assert "model 'scale' version 1" in result.message
    assert "load raised FileNotFoundError" in result.message
    assert [phase.name for phase in result.phases] == ["import", "load"]


def test_a_triton_class_is_told_how_to_move(model: Assignment) -> None:
    (model.path / "1" / "model.py").write_text("class TritonPythonModel:\n    pass\n")
    result = load(model, Device(), 1, lambda _: None)
    assert isinstance(result, NotLoaded)
    assert "docs/python-models.md" in result.message
