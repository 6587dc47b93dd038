"""What a file says laid over what config.pbtxt says."""

import pytest

from tests.replica.batches import config
from tideserve.replica.completion import DEFAULT_MAX_BATCH_SIZE, FileTensor, complete
from tideserve.replica.errors import LoadError
from tideserve.replica.model_io import TensorIo, model_io
from tideserve.v1.model_config_pb2 import TYPE_FP32, ModelConfig

IN = FileTensor("IN", "FP32", (-1, 3, -1))
OUT = FileTensor("OUT", "INT64", (-1, 1))
FULL = config({"IN": ("FP32", [3, -1])}, {"OUT": ("INT64", [1])}, DEFAULT_MAX_BATCH_SIZE)


def test_an_empty_configuration_takes_everything_from_the_file() -> None:
    assert complete(ModelConfig(), [IN], [OUT]) == FULL


def test_what_is_given_is_left_alone_and_the_rest_filled() -> None:
    given = ModelConfig(name="m", max_batch_size=4)
    given.input.add(name="IN", data_type=TYPE_FP32, dims=[3, 7])
    completed = complete(given, [IN], [OUT])
    assert completed.name == "m"
    assert completed.max_batch_size == 4
    assert list(completed.input[0].dims) == [3, 7]
    assert completed.output == FULL.output
    assert not given.output, "the configuration given is not changed"


def test_completing_twice_changes_nothing() -> None:
    once = complete(ModelConfig(), [IN], [OUT])
    assert complete(once, [IN], [OUT]) == once


@pytest.mark.parametrize("shape", [(2, 3), (), (3,)])
def test_one_tensor_without_an_open_first_dimension_means_no_batching(
    shape: tuple[int, ...],
) -> None:
    completed = complete(ModelConfig(), [IN], [FileTensor("OUT", "FP32", shape)])
    assert completed.max_batch_size == 0
    assert list(completed.input[0].dims) == [-1, 3, -1]


def test_a_configured_input_without_max_batch_size_is_not_batched() -> None:
    given = config({"IN": ("FP32", [-1, 3, -1])}, {}, 0)
    assert complete(given, [IN], [OUT]).max_batch_size == 0


def test_a_scalar_is_one_element_to_callers() -> None:
    completed = complete(ModelConfig(), [FileTensor("IN", "FP32", ())], [OUT])
    (tensor,) = model_io(completed).inputs
    assert (tensor.dims, tensor.model_dims) == ((1,), ())
    completed = complete(ModelConfig(), [FileTensor("IN", "FP32", (-1,))], [OUT])
    (tensor,) = model_io(completed).inputs
    assert (tensor.dims, tensor.model_dims) == ((1,), ())


def test_a_size_that_the_file_leaves_open_may_be_fixed_but_not_the_reverse() -> None:
    complete(config({"IN": ("FP32", [3, 7])}, {"OUT": ("INT64", [1])}), [IN], [OUT])
    with pytest.raises(
        LoadError, match=r"'IN': .* \[-1, -1, 7\], the model file has \[-1, 3, -1\]"
    ):
        complete(config({"IN": ("FP32", [-1, 7])}, {"OUT": ("INT64", [1])}), [IN], [OUT])


def test_a_reshape_is_held_against_the_file() -> None:
    given = config({"IN": ("FP32", [21])}, {"OUT": ("INT64", [1])})
    given.input[0].reshape.shape.extend([3, 7])
    assert complete(given, [IN], [OUT]) == given
    given.input[0].reshape.shape[:] = [7, 3]
    with pytest.raises(LoadError, match=r"\[-1, 7, 3\]"):
        complete(given, [IN], [OUT])


def test_outputs_may_be_left_out_but_inputs_may_not() -> None:
    other = FileTensor("OTHER", "FP32", (-1, 2))
    assert complete(FULL, [IN], [OUT, other]) == FULL
    with pytest.raises(LoadError, match="lacks the model's input 'OTHER'"):
        complete(FULL, [IN, other], [OUT])


def test_an_input_with_a_default_may_be_left_out() -> None:
    assert complete(FULL, [IN], [OUT], [FileTensor("SCALE", "FP32", (1,))]) == FULL


def test_a_fixed_batch_dimension_is_refused_where_batching_is_configured() -> None:
    with pytest.raises(LoadError, match=r"first dimension of 'IN' is fixed: .* \[2, 3\]"):
        complete(ModelConfig(max_batch_size=4), [FileTensor("IN", "FP32", (2, 3))], [OUT])


def test_variable_sizes_are_carried_through_a_reshape_in_order() -> None:
    tensor = TensorIo("IN", "FP32", dims=(-1, 4, -1), model_dims=(2, -1, 2, -1))
    assert tensor.reshaped
    assert tensor.to_model((5, 4, 6)) == (2, 5, 2, 6)
    assert tensor.to_caller((2, 5, 2, 6)) == (5, 4, 6)
