"""The example models can be made anew, and what is checked in is what the scripts make."""

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray

from examples.train.digits import ACCURACY_MIN, write_digits
from examples.train.export import write_identity_onnx
from examples.train.split import Split, split

CHECKED_IN = Path(__file__).resolve().parents[2] / "examples" / "models"
MODEL_FILE_BYTES_MAX = 200_000


@pytest.fixture(scope="module")
def digits() -> Split:
    return split()


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every model file, made anew."""
    folder = tmp_path_factory.mktemp("models")
    write_identity_onnx(folder / "identity" / "1" / "model.onnx")
    assert write_digits(folder) >= ACCURACY_MIN
    return folder


def onnx_scores(path: Path, images: NDArray[np.float32]) -> NDArray[np.float32]:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    scores: NDArray[np.float32] = session.run(["scores"], {"image": images})[0]
    return scores


def torch_scores(path: Path, images: NDArray[np.float32]) -> NDArray[np.float32]:
    model = torch.jit.load(path)
    scores: NDArray[np.float32] = model(torch.from_numpy(images)).numpy()
    return scores


def test_the_split_is_the_same_every_time_and_shares_no_image(digits: Split) -> None:
    again = split()
    assert np.array_equal(again.held_out.images, digits.held_out.images)
    assert len(digits.train.labels) == 1437
    assert len(digits.held_out.labels) == 360
    assert digits.held_out.images.shape == (360, 1, 8, 8)
    # A few scans occur twice in the data; the split itself never deals one image twice.
    assert len(digits.train.labels) + len(digits.held_out.labels) == 1797


def test_held_out_digits_keep_every_class_in_proportion(digits: Split) -> None:
    counts = np.bincount(digits.held_out.labels, minlength=10)
    assert counts.min() >= 34
    assert counts.max() <= 38


def test_checked_in_digits_onnx_is_accurate_on_held_out_digits(digits: Split) -> None:
    scores = onnx_scores(CHECKED_IN / "digits_onnx" / "1" / "model.onnx", digits.held_out.images)
    assert np.mean(scores.argmax(axis=1) == digits.held_out.labels) >= ACCURACY_MIN
    assert np.allclose(scores.sum(axis=1), 1.0, atol=1e-5)


def test_digits_made_anew_predict_what_the_checked_in_ones_predict(
    repository: Path, digits: Split
) -> None:
    file = Path("digits_onnx") / "1" / "model.onnx"
    new = onnx_scores(repository / file, digits.held_out.images)
    old = onnx_scores(CHECKED_IN / file, digits.held_out.images)
    # Another processor may round other sums during training; the classes all but agree.
    assert np.mean(new.argmax(axis=1) == old.argmax(axis=1)) >= 0.98


@pytest.mark.filterwarnings("ignore:`torch.jit.load` is:DeprecationWarning")
def test_torchscript_and_onnx_give_the_same_scores(repository: Path, digits: Split) -> None:
    for folder in (repository, CHECKED_IN):
        onnx = onnx_scores(folder / "digits_onnx" / "1" / "model.onnx", digits.held_out.images)
        script = torch_scores(folder / "digits_torch" / "1" / "model.pt", digits.held_out.images)
        assert np.allclose(onnx, script, atol=1e-5)
        assert np.array_equal(onnx.argmax(axis=1), script.argmax(axis=1))


def test_batches_of_any_size_give_the_rows_of_single_calls(digits: Split) -> None:
    path = CHECKED_IN / "digits_onnx" / "1" / "model.onnx"
    images = digits.held_out.images[:7]
    together = onnx_scores(path, images)
    for row in range(7):
        assert np.allclose(onnx_scores(path, images[row : row + 1])[0], together[row], atol=1e-5)


def test_identity_made_anew_is_the_checked_in_file(repository: Path) -> None:
    file = Path("identity") / "1" / "model.onnx"
    assert (repository / file).read_bytes() == (CHECKED_IN / file).read_bytes()


def test_checked_in_model_files_are_small() -> None:
    files = [path for path in CHECKED_IN.rglob("1/model.*") if path.is_file()]
    assert len(files) == 5
    assert all(path.stat().st_size < MODEL_FILE_BYTES_MAX for path in files)
