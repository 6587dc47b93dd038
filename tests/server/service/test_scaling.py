"""Pins and decisions that the frontend keeps."""

import math

import pytest

from tideserve.server.errors import InvalidRequestError
from tideserve.server.models import ModelKey
from tideserve.server.service.scaling import MAX_PIN_S, STALE_S, ScalingBoard
from tideserve.v1.control_pb2 import (
    Decision,
    ModelDecision,
    ModelSnapshot,
    ReportDecisionsRequest,
)

KEY, NEWER, OTHER = ModelKey("m", 1, "a"), ModelKey("m", 1, "b"), ModelKey("o", 1, "a")


def report(
    *keys: ModelKey, desired: int = 2, limit: str = "", http: str = ""
) -> ReportDecisionsRequest:
    decision = Decision(desired=desired, reason="because", limited_by=limit, inputs={"rate": 1.5})
    return ReportDecisionsRequest(
        autoscaler_http=http,
        decisions=[
            ModelDecision(
                model_name=k.name,
                model_version=k.version,
                generation=k.generation,
                decision=decision,
            )
            for k in keys
        ],
    )


def shown(board: ScalingBoard, key: ModelKey, now_s: float) -> ModelSnapshot:
    message = ModelSnapshot()
    board.show(message, key, now_s)
    return message


def test_the_newest_decision_is_shown_with_its_age_until_it_is_old() -> None:
    board = ScalingBoard()
    board.report(report(KEY, OTHER, http="h:1"), 10.0)
    board.report(report(KEY, desired=3), 11.0)
    message = shown(board, KEY, 12.5)
    assert (message.decision.desired, message.decision.age_s) == (3, 1.5)
    assert dict(message.decision.inputs) == {"rate": 1.5}
    assert not shown(board, OTHER, 12.5).HasField("decision")
    assert not shown(board, KEY, 11.0 + STALE_S + 0.1).HasField("decision")
    assert board.autoscaler_http(12.5) == ""


def test_what_a_limit_keeps_at_zero_is_known_until_it_is_old() -> None:
    board = ScalingBoard()
    for desired, limit, kept in (
        (0, "max: 0", {KEY: "max: 0"}),
        (0, "", {}),  # nobody asks
        (1, "max: 1", {}),
    ):
        board.report(report(KEY, desired=desired, limit=limit), 10.0)
        assert board.kept_at_zero(10.0 + STALE_S) == kept
        assert board.kept_at_zero(10.0 + STALE_S + 0.1) == {}


def test_an_autoscaler_that_no_longer_reports_is_not_named() -> None:
    board = ScalingBoard()
    assert board.autoscaler_http(0.0) == ""
    board.report(report(KEY, http="h:1"), 10.0)
    assert board.autoscaler_http(10.0 + STALE_S) == "h:1"
    assert board.autoscaler_http(10.0 + STALE_S + 0.1) == ""


def test_a_pin_is_by_version_outlives_a_reload_and_ends_by_the_clock() -> None:
    board = ScalingBoard()
    board.pin([KEY], 3, 60.0, 100.0)
    assert (
        shown(board, NEWER, 130.0).pin.replicas,
        shown(board, NEWER, 130.0).pin.remaining_s,
    ) == (3, 30.0)
    assert not shown(board, OTHER, 130.0).HasField("pin")
    assert not shown(board, KEY, 160.0).HasField("pin")
    before = board.changes
    board.expire([KEY], 159.0)
    assert board.changes == before
    board.expire([KEY], 160.0)
    assert board.changes == before + 1


def test_a_pin_of_zero_replicas_is_a_pin_and_zero_seconds_end_it() -> None:
    board = ScalingBoard()
    board.pin([KEY], 0, 60.0, 0.0)
    assert shown(board, KEY, 1.0).HasField("pin")
    board.pin([KEY], 0, 0.0, 1.0)
    assert not shown(board, KEY, 1.0).HasField("pin")
    assert board.changes == 2


def test_a_pin_of_a_version_that_is_gone_is_forgotten() -> None:
    board = ScalingBoard()
    board.pin([KEY], 3, 60.0, 0.0)
    board.expire([OTHER], 1.0)
    assert not shown(board, KEY, 1.0).HasField("pin")


@pytest.mark.parametrize("duration_s", [-1.0, MAX_PIN_S + 1, math.nan, math.inf])
def test_a_time_out_of_range_is_refused(duration_s: float) -> None:
    with pytest.raises(InvalidRequestError, match="duration_s: expected 0 to 86400 seconds"):
        ScalingBoard().pin([KEY], 1, duration_s, 0.0)


def test_too_many_replicas_are_refused() -> None:
    with pytest.raises(InvalidRequestError, match="expected at most 4096, got 5000"):
        ScalingBoard().pin([KEY], 5000, 1.0, 0.0)
