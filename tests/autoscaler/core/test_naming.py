import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tideserve.autoscaler.core.fleet import ModelKey
from tideserve.autoscaler.core.naming import lowest_free, number_of, replica_id

DIGITS = ModelKey("digits", 3, "g1")


def test_a_name_tells_model_version_and_number() -> None:
    assert re.fullmatch(r"digits-3-2-[0-9a-f]{8}", replica_id(DIGITS, 2, life=1, serial=5))


@pytest.mark.parametrize(
    ("life", "serial", "generation"), [(2, 5, "g1"), (1, 6, "g1"), (1, 5, "g2")]
)
def test_another_start_has_another_name(life: int, serial: int, generation: str) -> None:
    other = replica_id(ModelKey("digits", 3, generation), 2, life=life, serial=serial)
    assert other != replica_id(DIGITS, 2, life=1, serial=5)


@given(
    name=st.text(min_size=1, max_size=300),
    version=st.integers(min_value=1, max_value=2**62),
    number=st.integers(min_value=0, max_value=99_999),
)
def test_any_model_name_gives_a_file_name_with_its_number(
    name: str, version: int, number: int
) -> None:
    made = replica_id(ModelKey(name, version, "g"), number, life=1, serial=0)
    assert re.fullmatch(r"[A-Za-z0-9_.-]{1,120}", made)
    assert number_of(made) == number


@pytest.mark.parametrize("name", ["", "hand-made", "a-b-c", "x", "--"])
def test_other_names_count_as_number_zero(name: str) -> None:
    assert number_of(name) == 0


def test_the_lowest_free_number_is_taken() -> None:
    assert lowest_free(set()) == 0
    assert lowest_free({0, 1, 3}) == 2
