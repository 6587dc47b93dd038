"""Version policies."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tideserve.server.repository.versions import select_versions
from tideserve.v1.model_config_pb2 import ModelVersionPolicy

Latest = ModelVersionPolicy.Latest
Specific = ModelVersionPolicy.Specific


@pytest.mark.parametrize(
    ("policy", "selected"),
    [
        (None, (7,)),
        (ModelVersionPolicy(), (1, 3, 7)),
        (ModelVersionPolicy(all=ModelVersionPolicy.All()), (1, 3, 7)),
        (ModelVersionPolicy(latest=Latest(num_versions=1)), (7,)),
        (ModelVersionPolicy(latest=Latest(num_versions=2)), (3, 7)),
        (ModelVersionPolicy(latest=Latest(num_versions=9)), (1, 3, 7)),
        (ModelVersionPolicy(latest=Latest()), ()),
        (ModelVersionPolicy(specific=Specific(versions=[7, 2, 1, 7])), (1, 7)),
        (ModelVersionPolicy(specific=Specific()), ()),
    ],
)
def test_a_policy_selects_ascending(
    policy: ModelVersionPolicy | None, selected: tuple[int, ...]
) -> None:
    assert select_versions(policy, [3, 7, 1, 3]) == selected


def test_of_no_versions_none_is_selected() -> None:
    assert select_versions(None, []) == ()


@given(st.sets(st.integers(1, 2**63 - 1)), st.integers(0, 5))
def test_latest_takes_the_largest(available: set[int], count: int) -> None:
    policy = ModelVersionPolicy(latest=Latest(num_versions=count))
    selected = select_versions(policy, available)
    assert len(selected) == min(count, len(available))
    assert list(selected) == sorted(available)[len(available) - len(selected) :]
