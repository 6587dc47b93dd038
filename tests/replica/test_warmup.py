"""The first batches: synthetic ones by size, configured ones as config.pbtxt says."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.replica.batches import Array, Arrays, FunctionBackend, config, runner_of
from tideserve.replica.errors import LoadError
from tideserve.replica.warmup import Point, warm_up
from tideserve.v1.model_config_pb2 import TYPE_FP32, TYPE_STRING, ModelConfig, ModelWarmup

NOWHERE = Path("nowhere")


@pytest.fixture(autouse=True)
def _steady_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A millisecond passes between two looks at the clock."""
    looks = iter(range(1_000_000))
    monkeypatch.setattr("tideserve.replica.warmup.perf_counter", lambda: next(looks) / 1e3)


def identity(
    datatype: str = "FP32", dims: tuple[int, ...] = (2,), max_batch_size: int = 8
) -> ModelConfig:
    return config({"IN": (datatype, dims)}, {"OUT": (datatype, dims)}, max_batch_size)


def echo(inputs: Arrays) -> Arrays:
    return {"OUT": inputs["IN"]}


def warmed(
    made: ModelConfig, function: Any = echo, path: Path = NOWHERE, *, synthetic: bool = True
) -> tuple[tuple[Point, ...], FunctionBackend]:
    runner, backend, io = runner_of(made, function)
    return warm_up(runner, made, io, path, synthetic=synthetic), backend


def given_to(backend: FunctionBackend) -> list[Array]:
    return [inputs["IN"] for inputs, _ in backend.requests]


# --- synthetic --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("max_batch_size", "rows"),
    [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8])],
)
def test_batches_grow_by_powers_of_two_to_the_largest(max_batch_size: int, rows: list[int]) -> None:
    points, backend = warmed(identity(max_batch_size=max_batch_size))
    assert [point.rows for point in points] == rows
    assert [len(array) for array in given_to(backend)] == [size for size in rows for _ in "12"]
    assert all(point.latency_s == pytest.approx(0.001) for point in points)


def test_a_model_without_batching_is_run_in_its_own_shape() -> None:
    points, backend = warmed(identity(dims=(3, 2), max_batch_size=0))
    assert [point.rows for point in points] == [1]
    assert [array.shape for array in given_to(backend)] == [(3, 2)] * 2


def test_text_is_warmed_with_empty_elements() -> None:
    _, backend = warmed(identity("BYTES", (2,), 1))
    assert given_to(backend)[0].tolist() == [[b"", b""]]


@pytest.mark.parametrize(("dims", "synthetic"), [((-1,), True), ((2,), False)])
def test_unknown_sizes_and_side_effects_are_not_guessed_at(
    dims: tuple[int, ...], synthetic: bool
) -> None:
    points, backend = warmed(identity(dims=dims), synthetic=synthetic)
    assert points == ()
    assert backend.requests == []


def test_zeros_that_a_model_cannot_take_are_logged_and_forgotten(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def choosy(inputs: Arrays) -> Arrays:
        if len(inputs["IN"]) > 2:
            raise ValueError("too many")
        return echo(inputs)

    with caplog.at_level(logging.WARNING, "tideserve.replica"):
        points, _ = warmed(identity(), choosy)
    assert [point.rows for point in points] == [1, 2]
    assert "warm-up with 4 rows of zeros failed, going on without: ValueError" in caplog.text


def test_a_device_that_is_lost_while_warming_up_is_a_load_error() -> None:
    def broken(inputs: Arrays) -> Arrays:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(LoadError, match=r"device failed while warming up: .*illegal memory access"):
        warmed(identity(), broken)


def test_a_slow_model_is_warmed_with_few_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = iter(range(1_000))
    monkeypatch.setattr("tideserve.replica.warmup.perf_counter", lambda: next(looks) * 0.3)
    points, _ = warmed(identity())
    assert [point.rows for point in points] == [1]


# --- configured -------------------------------------------------------------------------------


def sample(**fields: Any) -> ModelWarmup.Input:
    kind = fields.pop("data_type", TYPE_FP32)
    return ModelWarmup.Input(data_type=kind, dims=fields.pop("dims", [2]), **fields)


def text_from(**source: Any) -> ModelWarmup.Input:
    return sample(data_type=TYPE_STRING, **source)


def with_warmup(made: ModelConfig, *settings: ModelWarmup) -> ModelConfig:
    made.model_warmup.extend(settings)
    return made


def test_configured_batches_replace_the_synthetic_ones() -> None:
    made = with_warmup(
        identity(),
        ModelWarmup(name="four", batch_size=4, count=3, inputs={"IN": sample(zero_data=True)}),
        ModelWarmup(name="one", inputs={"IN": sample(random_data=True)}),
    )
    points, backend = warmed(made, synthetic=False)
    assert [point.rows for point in points] == [1, 4]
    assert [array.shape for array in given_to(backend)] == [(4, 2)] * 3 + [(1, 2)]
    assert not given_to(backend)[0].any()
    assert given_to(backend)[-1].all()


@pytest.mark.parametrize("name", ["BOOL", "INT8", "UINT64", "FP16", "BF16", "FP64"])
def test_random_data_has_the_inputs_type(name: str) -> None:
    made = identity(name, (64,))
    setting = ModelWarmup(
        name="w",
        inputs={"IN": sample(data_type=made.input[0].data_type, dims=[64], random_data=True)},
    )
    _, backend = warmed(with_warmup(made, setting))
    (given,) = given_to(backend)
    assert len(np.unique(given)) > 1


def test_data_comes_from_a_file_of_the_warmup_folder(tmp_path: Path) -> None:
    (tmp_path / "warmup").mkdir()
    row = np.array([1.5, -2.5], np.float32)
    (tmp_path / "warmup" / "row").write_bytes(row.tobytes())
    setting = ModelWarmup(name="w", batch_size=2, inputs={"IN": sample(input_data_file="row")})
    _, backend = warmed(with_warmup(identity(), setting), path=tmp_path)
    assert given_to(backend)[0].tolist() == [[1.5, -2.5]] * 2


def test_text_comes_from_a_file_and_random_text_is_empty(tmp_path: Path) -> None:
    (tmp_path / "warmup").mkdir()
    (tmp_path / "warmup" / "text").write_bytes(b"\x02\0\0\0hi\0\0\0\0")
    settings = [
        ModelWarmup(name="file", inputs={"IN": text_from(input_data_file="text")}),
        ModelWarmup(name="random", inputs={"IN": text_from(random_data=True)}),
    ]
    _, backend = warmed(with_warmup(identity("BYTES"), *settings), path=tmp_path)
    assert [array.tolist() for array in given_to(backend)] == [[[b"hi", b""]], [[b"", b""]]]


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        (ModelWarmup(batch_size=9, inputs={"IN": sample()}), "batch_size of at most 8"),
        (ModelWarmup(inputs={"IN": ModelWarmup.Input(dims=[2])}), "'IN' has no data_type"),
        (ModelWarmup(inputs={"IN": sample(dims=[-1])}), r"expected dims of 0 or more, got \[-1\]"),
        (
            ModelWarmup(inputs={"IN": sample(input_data_file="gone")}),
            "gone cannot be read: No such",
        ),
        (ModelWarmup(inputs={"IN": sample(input_data_file="short")}), "short: expected 8 bytes"),
        (ModelWarmup(inputs={"X": sample()}), "failed: expected inputs of IN, the lease has 'X'"),
    ],
)
def test_a_configured_batch_that_cannot_run_is_a_load_error(
    setting: ModelWarmup, sentence: str, tmp_path: Path
) -> None:
    (tmp_path / "warmup").mkdir()
    (tmp_path / "warmup" / "short").write_bytes(b"1234")
    setting.name = "first"
    with pytest.raises(LoadError, match=f"model_warmup 'first'.*{sentence}"):
        warmed(with_warmup(identity(), setting), path=tmp_path)


def test_what_the_model_raises_in_a_configured_batch_is_a_load_error() -> None:
    def broken(inputs: Arrays) -> Arrays:
        raise ValueError("no weights")

    setting = ModelWarmup(name="first", inputs={"IN": sample()})
    with pytest.raises(LoadError, match="'first' failed: ValueError: no weights"):
        warmed(with_warmup(identity(), setting), broken)
