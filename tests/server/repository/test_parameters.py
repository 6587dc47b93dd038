"""`tideserve.*` parameters."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tideserve.server.core.settings import BatchingMode
from tideserve.server.errors import ModelConfigError
from tideserve.server.repository.parameters import (
    KEYS,
    LATER_KEYS,
    Pad,
    Parameters,
    read_parameters,
)
from tideserve.v1.model_config_pb2 import ModelParameter


def _read(**values: str) -> Parameters:
    return read_parameters(
        {f"tideserve.{key}": ModelParameter(string_value=value) for key, value in values.items()},
        "m",
    )


def test_every_key_is_read() -> None:
    read = _read(
        batching="window",
        retryable="False",
        max_batch_time=" 2.5 ",
        max_queue_requests="1",
        max_queue_rows="2",
        max_queue_bytes="3",
        max_lease_bytes="4",
        share_weights="true",
        pad="dim=1, edges=4/8, value=-1, value.a=0.5, cost=64",
    )
    assert read == Parameters(
        batching=BatchingMode.WINDOW,
        retryable=False,
        max_batch_time_s=2.5,
        max_queue_requests=1,
        max_queue_rows=2,
        max_queue_bytes=3,
        max_lease_bytes=4,
        share_weights=True,
        pad=Pad(1, (4, 8), -1.0, {"a": 0.5}, 64),
    )


@pytest.mark.parametrize(
    "value",
    [
        "dim=0",
        "edges=4",
        "dim=-1,edges=4",
        "dim=32,edges=4",
        "dim=0,edges=4/4",
        "dim=0,edges=8/4",
        "dim=0,edges=0/4",
        "dim=0,edges=4/",
        f"dim=0,edges={'/'.join(map(str, range(1, 66)))}",
        "dim=0,edges=4,value=x",
        "dim=0,edges=4,value.a=",
        "dim=0,edges=4,cost=0",
        "dim=0,edges=4,cost=x,value.cost=1",
        "dim=0,dim=1,edges=4",
        "dim=0,edges=4,other=1",
        "16,32",
    ],
)
def test_what_is_no_padding_is_refused_with_an_example(value: str) -> None:
    with pytest.raises(ModelConfigError) as refused:
        _read(pad=value)
    assert "tideserve.pad: expected such as dim=0,edges=16/32/64" in str(refused.value)
    assert str(refused.value).endswith(f"got {value!r}")


def test_the_models_own_keys_are_not_read() -> None:
    values = {"batching": ModelParameter(string_value="x"), "tide": ModelParameter()}
    assert read_parameters(values, "m") == Parameters()


def test_an_unknown_key_is_refused_with_the_nearest_known_one() -> None:
    with pytest.raises(ModelConfigError) as refused:
        _read(retriable="true")
    assert str(refused.value) == (
        "m: parameters: there is no key 'tideserve.retriable': did you mean 'tideserve.retryable'?"
    )


def test_a_key_like_no_other_is_refused_with_all_there_are() -> None:
    with pytest.raises(ModelConfigError) as refused:
        read_parameters({"tideserve.": ModelParameter()}, "m")
    for key in KEYS:
        assert key in str(refused.value)


@pytest.mark.parametrize("key", KEYS)
def test_an_empty_value_is_refused(key: str) -> None:
    with pytest.raises(ModelConfigError, match=f"^m: parameters: {key}: expected .*, got ''$"):
        read_parameters({key: ModelParameter()}, "m")


@pytest.mark.parametrize("key", LATER_KEYS)
def test_keys_that_come_later_are_accepted(key: str) -> None:
    assert read_parameters({key: ModelParameter(string_value="x")}, "m") == Parameters()


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("batching", "late", "eager or window or slo"),
        ("batching", "WINDOW", "eager or window or slo"),
        ("on_late", "reject", "serve or drop"),
        ("retryable", "yes", "true or false"),
        ("share_weights", "1", "true or false"),
        ("max_batch_time", "0", "seconds, more than 0 and at most 86400"),
        ("max_batch_time", "-1", "seconds, more than 0 and at most 86400"),
        ("max_batch_time", "86401", "seconds, more than 0 and at most 86400"),
        ("max_batch_time", "nan", "seconds, more than 0 and at most 86400"),
        ("max_batch_time", "inf", "seconds, more than 0 and at most 86400"),
        ("max_batch_time", "5s", "seconds, more than 0 and at most 86400"),
        ("max_queue_requests", "0", "an integer from 1 to 2147483647"),
        ("max_queue_requests", "2147483648", "an integer from 1 to 2147483647"),
        ("max_queue_rows", "1e3", "an integer from 1 to 2147483647"),
        ("max_queue_bytes", "1_000", "an integer from 1 to 1099511627776"),
        ("max_lease_bytes", "-5", "an integer from 1 to 2147483647"),
        ("max_lease_bytes", "9" * 5000, "an integer from 1 to 2147483647"),
    ],
)
def test_a_value_is_refused_with_key_value_and_range(key: str, value: str, expected: str) -> None:
    with pytest.raises(ModelConfigError) as refused:
        _read(**{key: value})
    assert str(refused.value) == (
        f"m: parameters: tideserve.{key}: expected {expected}, got {value!r}"
    )


@given(st.sampled_from(KEYS), st.text())
def test_any_value_is_read_or_refused(key: str, value: str) -> None:
    try:
        read = read_parameters({key: ModelParameter(string_value=value)}, "m")
    except ModelConfigError:
        return
    assert read != Parameters()
