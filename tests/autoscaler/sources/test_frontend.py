"""The Watch and the calls against a real gRPC server."""

import threading
from collections.abc import Callable, Iterator

import grpc
import pytest

from tests.autoscaler.fake_control import TOKEN, FakeControl
from tests.autoscaler.waiting import eventually
from tideserve.autoscaler.core.actions import Report
from tideserve.autoscaler.core.decision import Decision
from tideserve.autoscaler.core.fleet import Model, ModelKey, Replica, ReplicaState, Snapshot
from tideserve.autoscaler.errors import (
    CallRefusedError,
    FrontendRefusedError,
    FrontendUnavailableError,
    SupersededError,
)
from tideserve.autoscaler.sources.frontend import (
    FrontendControl,
    FrontendSettings,
    FrontendWatch,
    open_channel,
)
from tideserve.autoscaler.sources.reading import snapshot_of
from tideserve.v1 import control_pb2

DIGITS = ModelKey("digits", 1, "g1")


class Link:
    """A watch and a control on one channel."""

    def __init__(self, settings: FrontendSettings) -> None:
        self.changed = threading.Semaphore(0)
        self.now_s = 0.0
        self.channel = open_channel(settings)
        self.watch = FrontendWatch(
            self.channel, settings, self.changed.release, clock=lambda: self.now_s
        )
        self.control = FrontendControl(self.channel, settings)

    def close(self) -> None:
        self.watch.close()
        self.channel.close()


Connect = Callable[..., Link]


@pytest.fixture
def frontend() -> Iterator[FakeControl]:
    control = FakeControl()
    yield control
    control.stop()


@pytest.fixture
def connect(frontend: FakeControl) -> Iterator[Connect]:
    links: list[Link] = []

    def connect_one(token: str = TOKEN, generation: int = 5, address: str = "") -> Link:
        link = Link(FrontendSettings(address or frontend.address, token, generation))
        links.append(link)
        return link

    yield connect_one
    for link in links:
        link.close()


def test_a_snapshot_comes_at_once_and_each_change_is_told(
    frontend: FakeControl, connect: Connect
) -> None:
    link = connect()
    link.watch.start()
    assert link.changed.acquire(timeout=5)
    assert link.watch.latest() == Snapshot(epoch=1)
    frontend.serve_model("digits")
    assert link.changed.acquire(timeout=5)
    assert link.watch.latest() == Snapshot(1, (Model(DIGITS, backend="python"),))
    (request,) = frontend.said("Watch")
    assert (request.autoscaler_generation, request.interval_s) == (5, 0.25)


def test_a_replica_keeps_all_that_decides_its_fate() -> None:
    message = control_pb2.Snapshot(frontend_epoch=3, stopping=True)
    message.replicas.add(
        id="a",
        model="digits",
        version=1,
        generation="g1",
        state=control_pb2.LOST,
        pid=7,
        device="gpu:0",
        leases=2,
        reason="hung",
        state_age_s=1.5,
        was_ready=True,
        death_attributed=True,
    )
    message.replicas.add(id="spare", state=control_pb2.STANDBY)
    message.replicas.add(id="odd", state=control_pb2.REPLICA_STATE_UNSPECIFIED)
    assert snapshot_of(message) == Snapshot(
        epoch=3,
        replicas=(
            Replica("a", DIGITS, ReplicaState.LOST, 1.5, 7, "gpu:0", 2, True, True, "hung"),
            Replica("spare", None, ReplicaState.STANDBY, device=""),
        ),
        stopping=True,
    )


def test_without_a_frontend_there_is_no_snapshot_and_calls_say_unavailable(
    frontend: FakeControl, connect: Connect
) -> None:
    link = connect()
    link.watch.start()
    assert link.changed.acquire(timeout=5)
    frontend.stop()
    eventually(lambda: link.watch.latest() is None)
    with pytest.raises(FrontendUnavailableError):
        link.control.drain("a")


def test_a_restarted_frontend_is_watched_again(frontend: FakeControl, connect: Connect) -> None:
    link = connect()
    link.watch.start()
    assert link.changed.acquire(timeout=5)
    frontend.stop()
    eventually(lambda: link.watch.latest() is None)
    again = FakeControl(frontend.port, epoch=2)
    try:
        assert eventually(link.watch.latest, timeout_s=4.0).epoch == 2
    finally:
        again.stop()


def test_an_old_snapshot_is_no_snapshot_and_the_watch_is_opened_anew(
    frontend: FakeControl, connect: Connect
) -> None:
    link = connect()
    link.watch.start()
    assert link.changed.acquire(timeout=5)
    link.now_s = 5.1
    assert link.watch.latest() is None
    assert eventually(link.watch.latest) == Snapshot(epoch=1)
    assert len(frontend.said("Watch")) == 2


def test_a_newer_autoscaler_ends_the_watch_for_good(
    frontend: FakeControl, connect: Connect
) -> None:
    frontend.generation = 6
    link = connect(generation=5)
    link.watch.start()
    assert link.changed.acquire(timeout=5)
    with pytest.raises(SupersededError, match="newer autoscaler"):
        link.watch.latest()
    with pytest.raises(SupersededError):
        link.control.drain("a")


def test_a_wrong_token_ends_the_watch_for_good(connect: Connect) -> None:
    link = connect(token="wrong")
    link.watch.start()
    assert link.changed.acquire(timeout=5)
    with pytest.raises(FrontendRefusedError, match="token"):
        link.watch.latest()


def test_the_calls_carry_what_they_are_given(frontend: FakeControl, connect: Connect) -> None:
    link = connect()
    link.control.announce([("a", DIGITS)])
    link.control.drain("a")
    link.control.report_exit(Report("a", "exit code 1", ("one", "two"), 3, "no more"))
    (announce,) = frontend.said("Announce")
    assert announce == control_pb2.AnnounceRequest(
        autoscaler_generation=5,
        replicas=[
            control_pb2.Announcement(
                replica_id="a", model_name="digits", model_version=1, generation="g1"
            )
        ],
    )
    assert frontend.said("DrainReplica") == [
        control_pb2.DrainReplicaRequest(autoscaler_generation=5, replica_id="a")
    ]
    assert frontend.said("ReportExit") == [
        control_pb2.ReportExitRequest(
            autoscaler_generation=5,
            replica_id="a",
            cause="exit code 1",
            log_tail=["one", "two"],
            failed_starts=3,
            give_up_reason="no more",
        )
    ]


def test_a_standby_is_announced_without_a_model_and_assigned_one(
    frontend: FakeControl, connect: Connect
) -> None:
    link = connect()
    link.control.announce([("s", None)])
    link.control.assign("s", DIGITS)
    (announce,) = frontend.said("Announce")
    assert list(announce.replicas) == [control_pb2.Announcement(replica_id="s")]
    assert frontend.said("AssignModel") == [
        control_pb2.AssignModelRequest(
            autoscaler_generation=5,
            replica_id="s",
            model_name="digits",
            model_version=1,
            generation="g1",
        )
    ]


def test_decisions_are_told_with_reason_limit_and_inputs(
    frontend: FakeControl, connect: Connect
) -> None:
    link = connect()
    link.control.report_decisions({DIGITS: Decision(3, "load", "slots", {"ready": 2.0})})
    (request,) = frontend.said("ReportDecisions")
    (told,) = request.decisions
    assert (told.model_name, told.model_version, told.generation) == ("digits", 1, "g1")
    assert told.decision == control_pb2.Decision(
        desired=3, reason="load", limited_by="slots", inputs={"ready": 2.0}
    )


def test_a_frontend_that_takes_no_decisions_is_no_reason_to_leave(
    frontend: FakeControl, connect: Connect
) -> None:
    frontend.takes_decisions = False
    link = connect()
    with pytest.raises(CallRefusedError, match="ReportDecisions"):
        link.control.report_decisions({})


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.NOT_FOUND, CallRefusedError),
        (grpc.StatusCode.INVALID_ARGUMENT, CallRefusedError),
        (grpc.StatusCode.UNAVAILABLE, FrontendUnavailableError),
        (grpc.StatusCode.FAILED_PRECONDITION, SupersededError),
        (grpc.StatusCode.UNAUTHENTICATED, FrontendRefusedError),
        (grpc.StatusCode.UNIMPLEMENTED, FrontendRefusedError),
    ],
)
def test_a_refused_call_names_the_call_and_the_frontend(
    frontend: FakeControl, connect: Connect, code: grpc.StatusCode, kind: type[Exception]
) -> None:
    frontend.fail_next = [code]
    with pytest.raises(kind, match=f"DrainReplica at {frontend.address}: {code.name}"):
        connect().control.drain("a")
