"""The life of models: loaded, serving, replaced, broken, unloaded (DESIGN 15.5)."""

import sys
import threading

import pytest

from tests.server.samples import make_config, make_found, serve
from tideserve.server.errors import ModelConfigError, NotFoundError, UnavailableError
from tideserve.server.models import ModelEntry, ModelKey, ModelState, ModelTable
from tideserve.v1.model_config_pb2 import ModelConfig

A1 = ModelKey("m", 1, "a")
B1 = ModelKey("m", 1, "b")
A2 = ModelKey("m", 2, "a")
B2 = ModelKey("m", 2, "b")


def bound(models: ModelTable, version: str = "", name: str = "m") -> ModelKey:
    return models.bind(name, version).key


def test_a_loaded_model_binds_once_a_replica_is_ready() -> None:
    models = ModelTable()
    assert models.load(make_found()) == {A1}
    with pytest.raises(UnavailableError, match="m version 1 is loading"):
        models.bind("m", "")
    assert not models.is_bindable("m", "")
    assert models.is_known("m", "")

    entry = models.ready(A1, make_config())

    assert entry.state is ModelState.READY
    assert entry.spec is not None
    assert entry.spec.inputs[0].name == "IN"
    assert bound(models) == bound(models, "1") == A1
    assert models.names() == ["m"]


def test_a_second_replica_that_is_ready_changes_nothing() -> None:
    models = ModelTable()
    serve(models, make_found())
    changes = models.changes

    models.ready(A1, make_config())

    assert models.changes == changes


@pytest.mark.parametrize(("name", "version"), [("x", ""), ("m", "2"), ("m", "01"), ("", "")])
def test_an_unknown_model_or_version_is_not_found_and_the_known_ones_are_named(
    name: str, version: str
) -> None:
    models = ModelTable()
    serve(models, make_found())

    with pytest.raises(NotFoundError, match="is not served; there are: m 1"):
        models.bind(name, version)
    assert not models.is_known(name, version)


def test_an_unversioned_request_binds_to_the_newest_ready_version() -> None:
    models = ModelTable()
    models.load(make_found(versions=[(1, "a"), (2, "a")]))
    models.ready(A1, make_config())
    assert bound(models) == A1
    models.ready(A2, make_config())

    assert bound(models) == A2
    assert bound(models, "1") == A1
    assert models.versions("m") == [1, 2]


def test_a_new_generation_takes_over_only_when_it_is_ready() -> None:
    models = ModelTable()
    serve(models, make_found())
    models.load(make_found(versions=[(1, "b")]))
    assert bound(models) == A1
    assert models.entries[A1].state is ModelState.READY

    models.ready(B1, make_config())

    assert bound(models) == bound(models, "1") == B1
    assert models.entries[A1].state is ModelState.RETIRING


def test_a_new_generation_that_fails_leaves_the_old_one_serving() -> None:
    models = ModelTable()
    serve(models, make_found())
    models.load(make_found(versions=[(1, "b")]))
    models.fail(B1, "no memory")

    assert bound(models) == A1
    assert models.entries[B1].state is ModelState.UNAVAILABLE
    assert models.is_resolved()


def test_while_several_versions_are_replaced_the_newest_ready_one_binds() -> None:
    models = ModelTable()
    serve(models, make_found(versions=[(1, "a"), (2, "a")]))
    models.load(make_found(versions=[(1, "b"), (2, "b")]))
    assert (bound(models), bound(models, "1"), bound(models, "2")) == (A2, A1, A2)

    models.ready(B1, make_config())
    assert (bound(models), bound(models, "1"), bound(models, "2")) == (A2, B1, A2)

    models.ready(B2, make_config())
    assert (bound(models), bound(models, "1"), bound(models, "2")) == (B2, B1, B2)
    assert {models.entries[key].state for key in (A1, A2)} == {ModelState.RETIRING}


def test_files_that_change_back_keep_the_old_generation() -> None:
    models = ModelTable()
    serve(models, make_found())
    models.load(make_found(versions=[(1, "b")]))
    models.load(make_found())

    assert bound(models) == A1
    assert models.entries[B1].state is ModelState.RETIRING


def test_after_unload_it_is_not_found_and_admitted_ones_still_have_their_entry() -> None:
    models = ModelTable()
    serve(models, make_found())

    assert models.unload("m")

    assert models.entries[A1].state is ModelState.RETIRING
    with pytest.raises(NotFoundError, match="there are: none"):
        models.bind("m", "")
    models.remove(A1)
    assert not models.entries
    assert not models.unload("m")
    assert models.all_ready()


def test_a_model_wanted_again_before_it_was_gone_serves_at_once() -> None:
    models = ModelTable()
    serve(models, make_found())
    models.unload("m")
    models.load(make_found())

    assert bound(models) == A1


def test_one_unloaded_while_loading_and_wanted_again_loads() -> None:
    models = ModelTable()
    models.load(make_found())
    models.unload("m")
    models.load(make_found())

    assert models.entries[A1].state is ModelState.LOADING
    assert not models.is_resolved([A1])


def test_a_broken_configuration_keeps_what_was_served_and_is_reported() -> None:
    models = ModelTable()
    serve(models, make_found())
    changes = models.changes
    assert models.load(make_found(error="config.pbtxt:3: no such field")) == frozenset()

    assert bound(models) == A1
    assert models.all_ready(), "the old files serve on"
    assert models.broken == {"m": "config.pbtxt:3: no such field"}
    assert models.changes > changes
    changes = models.changes
    models.load(make_found(error="config.pbtxt:3: no such field"))
    assert models.changes == changes
    models.load(make_found())
    assert models.all_ready()


def test_a_model_broken_from_the_start_is_unavailable_with_the_reason() -> None:
    models = ModelTable()
    models.load(make_found(error="config.pbtxt:3: no such field"))

    with pytest.raises(UnavailableError, match=r"config\.pbtxt:3: no such field"):
        models.bind("m", "")
    assert models.is_known("m", "")
    assert models.is_resolved()
    assert not models.all_ready()
    assert models.unload("m")
    with pytest.raises(NotFoundError):
        models.bind("m", "")


def test_want_unloads_what_is_not_wanted_any_more() -> None:
    models = ModelTable()
    models.want([make_found("m"), make_found("n"), make_found("bad", error="e")])
    models.ready(A1, make_config())
    models.want([make_found("n")])

    assert models.entries[A1].state is ModelState.RETIRING
    assert not models.broken
    with pytest.raises(UnavailableError, match="n version 1 is loading"):
        models.bind("n", "")


def test_a_version_that_the_policy_drops_leaves_when_the_others_serve() -> None:
    models = ModelTable()
    serve(models, make_found(versions=[(1, "a")]))
    models.load(make_found(versions=[(2, "a")]))
    assert bound(models) == A1
    models.ready(A2, make_config())

    assert bound(models) == A2
    with pytest.raises(NotFoundError, match="version '1'"):
        models.bind("m", "1")


def test_a_completed_configuration_that_cannot_be_served_makes_it_unavailable() -> None:
    models = ModelTable()
    models.load(make_found())

    with pytest.raises(ModelConfigError, match="expected at least one input"):
        models.ready(A1, ModelConfig(name="m"))

    assert models.entries[A1].state is ModelState.UNAVAILABLE
    with pytest.raises(UnavailableError, match=r"cannot be served: .*expected at least one input"):
        models.bind("m", "")


def test_ready_for_an_entry_that_is_gone_is_not_found() -> None:
    with pytest.raises(NotFoundError, match="not served any more"):
        ModelTable().ready(A1, make_config())


def test_ready_for_a_retiring_entry_does_not_bring_it_back() -> None:
    models = ModelTable()
    models.load(make_found())
    models.unload("m")
    models.ready(A1, make_config())

    assert models.entries[A1].state is ModelState.RETIRING
    assert not models.is_bindable("m", "")


def test_a_model_given_up_says_why_and_serves_again_when_a_replica_is_ready() -> None:
    models = ModelTable()
    serve(models, make_found())
    models.fail(A1, "5 starts failed: boom")
    with pytest.raises(UnavailableError, match="5 starts failed: boom"):
        models.bind("m", "1")

    models.ready(A1, make_config())

    assert bound(models) == A1
    assert models.entries[A1].reason == ""


def test_an_explicit_load_tries_one_that_was_given_up_again() -> None:
    models = ModelTable()
    keys = models.load(make_found())
    models.fail(A1, "boom")
    assert models.load(make_found()) == keys
    assert models.is_resolved(keys)

    models.retry(keys)

    assert not models.is_resolved(keys)
    assert models.entries[A1].state is ModelState.LOADING


def test_a_hopeless_one_is_so_until_it_is_tried_again() -> None:
    models = ModelTable()
    models.load(make_found())
    models.fail(A1, "torch is not installed", hopeless=True)
    assert models.is_resolved()
    assert models.hopeless() == [A1]

    models.retry(models.hopeless())

    assert models.entries[A1].state is ModelState.LOADING
    assert models.hopeless() == []
    models.fail(A1, "boom")
    assert models.hopeless() == []


def test_resolved_and_ready_differ() -> None:
    models = ModelTable()
    assert models.is_resolved()
    assert models.all_ready()
    models.load(make_found())
    assert not models.is_resolved()
    assert not models.all_ready()
    models.fail(A1, "boom")
    assert models.is_resolved()
    assert not models.all_ready()
    models.ready(A1, make_config())
    assert models.all_ready()


def test_who_asks_during_a_change_sees_what_was_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    models = ModelTable()
    serve(models, make_found())
    seen: list[tuple[bool, bool]] = []
    precedence = ModelTable._precedence

    def look(table: ModelTable, entry: ModelEntry) -> tuple[int, bool]:
        seen.append((table.all_ready(), table.is_bindable("m", "")))
        return precedence(table, entry)

    monkeypatch.setattr(ModelTable, "_precedence", look)
    serve(models, make_found(versions=[(1, "b")]))

    assert seen
    assert set(seen) == {(True, True)}


def test_another_thread_may_ask_while_models_come_and_go() -> None:
    models = ModelTable()
    for at in range(30):
        serve(models, make_found(f"n{at}"))
    failures: list[BaseException] = []
    stop = threading.Event()

    def ask() -> None:
        try:
            while not stop.is_set():
                models.all_ready()
        except BaseException as error:  # noqa: BLE001 - handed to the test
            failures.append(error)

    thread = threading.Thread(target=ask)
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    thread.start()
    try:
        for at in range(300):
            serve(models, make_found(f"x{at}"))
            models.load(make_found("bad", error="e"))
            models.unload("bad")
            models.unload(f"x{at}")
            models.remove(ModelKey(f"x{at}", 1, "a"))
    finally:
        stop.set()
        thread.join(30)
        sys.setswitchinterval(interval_s)
    assert failures == []


def test_every_change_that_binds_or_unbinds_is_counted() -> None:
    models = ModelTable()
    seen = [models.changes]
    for change in (
        lambda: models.load(make_found()),
        lambda: models.ready(A1, make_config()),
        lambda: models.fail(A1, "x"),
        lambda: models.retry([A1]),
        lambda: models.ready(A1, make_config()),
        lambda: models.unload("m"),
        lambda: models.remove(A1),
    ):
        change()
        seen.append(models.changes)

    assert seen == sorted(set(seen))
