"""What the views compute from the server's numbers."""

from dataclasses import replace

import pytest

from tideserve.client.views import ModelStatus, status_of
from tideserve.v1.control_pb2 import Histogram, ModelSnapshot, Snapshot


def model(*counts: int) -> ModelStatus:
    snapshot = Snapshot(
        models=[ModelSnapshot(name="m", queue_wait_s=Histogram(bounds=[0.1, 0.2], counts=counts))]
    )
    return status_of(snapshot).models[0]


@pytest.mark.parametrize(
    ("counts", "quantile", "expected"),
    [
        ((0, 0, 0), 0.95, None),
        ((10, 0, 0), 0.5, 0.05),
        ((0, 10, 0), 1.0, 0.2),
        ((5, 5, 0), 0.75, 0.15),
        ((0, 0, 3), 0.5, 0.2),
    ],
)
def test_a_quantile_of_waits_lies_within_its_bucket(
    counts: tuple[int, ...], quantile: float, expected: float | None
) -> None:
    found = model(*counts).queue_wait_since(model(0, 0, 0), quantile)
    assert found == (None if expected is None else pytest.approx(expected))


def test_only_waits_since_the_earlier_look_count_and_a_restarted_server_counts_anew() -> None:
    assert model(10, 20, 0).queue_wait_since(model(10, 0, 0), 0.5) == pytest.approx(0.15)
    assert model(0, 4, 0).queue_wait_since(model(10, 0, 0), 0.5) == pytest.approx(0.15)
    never = replace(model(0, 0, 0), queue_wait_counts=())
    assert model(0, 4, 0).queue_wait_since(never, 0.5) == pytest.approx(0.15)
