"""RepositoryIndex, ModelLoad and ModelUnload, and the repository's polls.

Files are read on one worker thread; its findings come back to the dispatcher's thread by
`post`, so the tables have one owner.
"""

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from tideserve.server.errors import (
    InvalidRequestError,
    ModelConfigError,
    NotFoundError,
    RepositoryError,
    TideserveError,
    UnavailableError,
    UnsupportedError,
)
from tideserve.server.front import Call, Front
from tideserve.server.models import ModelKey, ModelState, ModelTable
from tideserve.server.repository.scan import FoundModel, RepositoryScan, scan, scan_model
from tideserve.server.service.messages import parse, status_of
from tideserve.v1.inference_pb2 import (
    RepositoryIndexRequest,
    RepositoryIndexResponse,
    RepositoryModelLoadRequest,
    RepositoryModelLoadResponse,
    RepositoryModelUnloadRequest,
    RepositoryModelUnloadResponse,
)

logger = logging.getLogger(__name__)

T = TypeVar("T")


class ModelControl(Enum):
    """NONE: what the repository has at the start. POLL: what it has now. EXPLICIT: what is
    asked for by RepositoryModelLoad."""

    NONE = "none"
    POLL = "poll"
    EXPLICIT = "explicit"


class RepositoryService:
    """Owns the worker thread and the loads that callers wait for."""

    def __init__(
        self,
        root: Path,
        control: ModelControl,
        models: ModelTable,
        front: Front,
        post: Callable[[Callable[[], None]], None],
    ) -> None:
        self._root = root
        self._control = control
        self._models = models
        self._front = front
        self._post = post
        self._waiting: dict[int, str] = {}
        self._indexes: list[tuple[int, bool]] = []
        self._indexing = False
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="repository")
        self._polling = False
        self._warned: set[tuple[str, str]] = set()

    def load_at_start(self, load_models: tuple[str, ...]) -> None:
        """The first scan. Raises `RepositoryError`; a model that is wrong is only reported."""
        found = scan(self._root)
        if self._control is ModelControl.EXPLICIT:
            by_name = {model.name: model for model in found.models}
            for name in load_models:
                if name not in by_name:
                    raise RepositoryError(
                        f"--load-model {name}: not in {self._root}, which has: "
                        f"{', '.join(by_name) or 'none'}"
                    )
                self._load(by_name[name])
            return
        self._want(found)

    def poll(self) -> None:
        """Looks for changes, in mode POLL, unless the last look is still under way."""
        if self._control is not ModelControl.POLL or self._polling:
            return
        self._polling = True
        self._worker.submit(self._poll)

    def close(self) -> None:
        """Ends the worker."""
        self._worker.shutdown(wait=True, cancel_futures=True)

    # --- calls in -------------------------------------------------------------------------

    def on_index(self, call: Call, _: float) -> None:
        """Every model version there is, with its state."""
        message = parse(RepositoryIndexRequest, call.payload)
        self._indexes.append((call.call_id, message.ready))
        if not self._indexing:
            self._start_index()

    def on_load(self, call: Call, _: float) -> None:
        """Loads a model, or loads it anew; answered when it is READY or cannot be."""
        message = parse(RepositoryModelLoadRequest, call.payload)
        name = message.model_name
        self._check_explicit("load", name)
        if message.parameters:
            raise UnsupportedError(
                f"model '{name}': loading with parameters "
                f"({', '.join(sorted(message.parameters))}) is not supported: "
                "change the files in the repository"
            )
        self._in_background(
            call.call_id,
            lambda: scan_model(self._root, name),
            lambda found: self._start_load(call.call_id, name, found),
        )

    def on_unload(self, call: Call, _: float) -> None:
        """Takes a model away: what was admitted is still answered."""
        message = parse(RepositoryModelUnloadRequest, call.payload)
        self._check_explicit("unload", message.model_name)
        if not self._models.unload(message.model_name):
            raise NotFoundError(f"model '{message.model_name}' is not loaded")
        self._front.respond(call.call_id, RepositoryModelUnloadResponse().SerializeToString())

    def on_cancel(self, call_id: int) -> None:
        """The caller is gone; the load goes on."""
        self._waiting.pop(call_id, None)

    def on_models_changed(self) -> None:
        """Answers the loads that have ended: with the newest files, should they have changed
        again meanwhile."""
        for call_id, name in list(self._waiting.items()):
            keys = self._models.wanted(name)
            if not self._models.is_resolved(keys):
                continue
            del self._waiting[call_id]
            failed = [
                f"{key}: {entry.reason}"
                for key in keys
                if (entry := self._models.entries.get(key)) is not None
                and entry.state is ModelState.UNAVAILABLE
            ]
            if failed or not keys:
                why = "; ".join(failed) or "it was unloaded meanwhile"
                kind = ModelConfigError if failed else UnavailableError
                error = kind(f"model '{name}' could not be loaded: {why}")
                self._front.fail(call_id, status_of(error))
            else:
                answer = RepositoryModelLoadResponse()
                self._front.respond(call_id, answer.SerializeToString())

    # --- inside ---------------------------------------------------------------------------

    def _in_background(
        self, call_id: int, work: Callable[[], T], then: Callable[[T], None]
    ) -> None:
        """Runs `work` on the worker and `then` with its result on the dispatcher's thread;
        what is raised in either is the call's answer."""
        self._submit(work, lambda result: self._finish(call_id, result, then))

    def _finish(self, call_id: int, result: Callable[[], T], then: Callable[[T], None]) -> None:
        try:
            then(result())
        except TideserveError as error:
            self._front.fail(call_id, status_of(error))
        except Exception:
            # The boundary of one call, as the dispatcher's.
            logger.exception("a call of the repository failed inside the server")
            self._front.fail(call_id, status_of(TideserveError(_SEE_LOG)))

    def _submit(self, work: Callable[[], T], finish: Callable[[Callable[[], T]], None]) -> None:
        """Runs `work` on the worker, then `finish` on the dispatcher's thread, with what gives the
        result or raises what went wrong."""

        def run() -> None:
            future: Future[T] = Future()
            try:
                future.set_result(work())
            except Exception as error:  # noqa: BLE001 - raised where it is answered
                future.set_exception(error)
            self._post(lambda: finish(future.result))

        self._worker.submit(run)

    def _start_index(self) -> None:
        """One scan for all calls that wait. Those that come while it is under way wait for the
        next: it may have passed what they ask about."""
        calls, self._indexes = self._indexes, []
        self._indexing = True

        def finish(found: Callable[[], RepositoryScan]) -> None:
            self._indexing = False
            for call_id, ready_only in calls:
                answer = partial(self._index, call_id, ready_only=ready_only)
                self._finish(call_id, found, answer)
            if self._indexes:
                self._start_index()

        self._submit(lambda: scan(self._root), finish)

    def _start_load(self, call_id: int, name: str, found: FoundModel | None) -> None:
        if found is None:
            raise NotFoundError(f"model '{name}' is not in the repository {self._root}")
        if found.error is not None:
            self._models.load(found)
            raise InvalidRequestError(f"model '{name}' cannot be loaded: {found.error}")
        self._models.retry(self._load(found))
        self._waiting[call_id] = name
        self.on_models_changed()

    def _poll(self) -> None:
        try:
            found = scan(self._root)
        except RepositoryError as error:
            # What is served goes on; the next poll tries again.
            logger.warning("the repository could not be read: %s", error)
        except Exception:
            logger.exception("a poll of the repository failed inside the server")
        else:
            self._post(lambda: self._want(found))
        self._post(self._end_poll)

    def _end_poll(self) -> None:
        self._polling = False

    def _want(self, found: RepositoryScan) -> None:
        for model in found.models:
            self._report(model)
        self._models.want(found.models)

    def _load(self, model: FoundModel) -> frozenset[ModelKey]:
        self._report(model)
        return self._models.load(model)

    def _report(self, model: FoundModel) -> None:
        """Says once what is wrong with a model and what of its configuration is ignored."""
        remarks = [f"the field {name} is not supported and ignored" for name in model.unsupported]
        remarks += model.warnings
        if model.error is not None:
            remarks.append(model.error)
        for remark in remarks:
            if len(self._warned) >= MAX_REMARKS:
                self._warned.clear()
            if (model.name, remark) not in self._warned:
                self._warned.add((model.name, remark))
                logger.warning("model '%s': %s", model.name, remark)

    def _index(self, call_id: int, found: RepositoryScan, *, ready_only: bool) -> None:
        answer = RepositoryIndexResponse()
        rows = self._rows()
        for (name, version), (state, reason) in rows.items():
            if not ready_only or state is ModelState.READY:
                answer.models.add(
                    name=name, version=str(version), state=_INDEX_STATES[state], reason=reason
                )
        if not ready_only:
            listed = {name for name, _ in rows}
            for model in found.models:
                if model.name not in listed:
                    reason = model.error or "not loaded"
                    answer.models.add(name=model.name, state="UNAVAILABLE", reason=reason)
        self._front.respond(call_id, answer.SerializeToString())

    def _rows(self) -> dict[tuple[str, int], tuple[ModelState, str]]:
        """One state a model version, whatever generations it has: that of the one that
        serves, with the reason why newer files do not."""
        rows: dict[tuple[str, int], tuple[ModelState, str]] = {}
        order = list(_INDEX_STATES)
        entries = sorted(self._models.entries.values(), key=lambda entry: order.index(entry.state))
        for name, version, state, reason in (
            (entry.key.name, entry.key.version, entry.state, entry.reason) for entry in entries
        ):
            serving, _ = rows.setdefault((name, version), (state, reason))
            if serving is ModelState.READY and state is ModelState.UNAVAILABLE:
                rows[name, version] = (serving, _NEWER_BROKEN.format(reason))
        for name, version in rows:
            state, _ = rows[name, version]
            if name in self._models.broken and state is not ModelState.RETIRING:
                rows[name, version] = (state, _NEWER_BROKEN.format(self._models.broken[name]))
        return rows

    def _check_explicit(self, verb: str, name: str) -> None:
        if not name:
            raise InvalidRequestError(f"expected the name of a model to {verb}, got ''")
        if self._control is not ModelControl.EXPLICIT:
            raise UnavailableError(
                f"cannot {verb} model '{name}': model control is '{self._control.value}'; start "
                "the server with --model-control explicit"
            )


_NEWER_BROKEN: Final = "the files as they are now cannot be served: {}"
_SEE_LOG: Final = "the server failed on this call; see its log"
# Remembered, to say each once.
MAX_REMARKS: Final = 4096
# The first of a version's generations in this order stands for it.
_INDEX_STATES: Final = {
    ModelState.READY: "READY",
    ModelState.LOADING: "LOADING",
    ModelState.UNAVAILABLE: "UNAVAILABLE",
    ModelState.RETIRING: "UNLOADING",
}
