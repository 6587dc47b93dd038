"""The models there are and what becomes of them: loaded, serving, replaced, unloaded.

One entry a (model, version, generation of its files). A version's new generation is loaded
beside the old one and takes over when it is READY, so that no request is dropped (15.5).
Pure: it is told what a scan found and what replicas report, and says what binds.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Final, NamedTuple

from tideserve.server.errors import ModelConfigError, NotFoundError, UnavailableError
from tideserve.server.model_spec import ModelSpec
from tideserve.server.repository.scan import FoundModel, FoundVersion
from tideserve.server.repository.spec import build_spec
from tideserve.server.stats import ModelStats
from tideserve.v1.model_config_pb2 import ModelConfig


class ModelKey(NamedTuple):
    """Names a queue and the replicas that serve it."""

    name: str
    version: int
    generation: str

    def __str__(self) -> str:
        return f"{self.name} version {self.version}"


MAX_GONE_STATS: Final = 1000


class ModelState(Enum):
    """LOADING: wanted, no replica was READY yet. READY: requests bind to it. RETIRING: what
    was admitted is answered, nothing new binds. UNAVAILABLE: the reason says why."""

    LOADING = "LOADING"
    READY = "READY"
    RETIRING = "RETIRING"
    UNAVAILABLE = "UNAVAILABLE"


@dataclass(slots=True, eq=False)
class ModelEntry:
    """`spec` is known once the configuration is complete: the first replica's report.
    `hopeless`: UNAVAILABLE, and another replica would change nothing, so none is wanted.
    `held_back`: UNAVAILABLE by a limit that people set, which is no fault of the server's."""

    key: ModelKey
    found: FoundModel
    version: FoundVersion
    state: ModelState
    stats: ModelStats
    reason: str = ""
    config: ModelConfig | None = None
    spec: ModelSpec | None = None
    hopeless: bool = False
    held_back: bool = False

    def enter(
        self,
        state: ModelState,
        reason: str = "",
        *,
        hopeless: bool = False,
        held_back: bool = False,
    ) -> None:
        """Changes the state."""
        self.state = state
        self.reason = reason
        self.hopeless = hopeless
        self.held_back = held_back


class ModelTable:
    """Owns the entries. `changes` counts every change that somebody may wait for."""

    def __init__(self) -> None:
        self.entries: dict[ModelKey, ModelEntry] = {}
        self.changes = 0
        # Models that the repository has but that cannot be entered at all, with the reason.
        self.broken: dict[str, str] = {}
        self._wanted: dict[str, frozenset[ModelKey]] = {}
        self._stats: dict[tuple[str, int], ModelStats] = {}
        # What an unversioned or versioned request binds to: made anew with every change and
        # then put here at once, because the HTTP thread reads it too.
        self._bindings: dict[tuple[str, str], ModelEntry] = {}

    # --- what should be there -------------------------------------------------------------

    def want(self, models: Iterable[FoundModel]) -> None:
        """These models, and no others, should be served (control modes none and poll)."""
        found = {model.name: model for model in models}
        for name in [name for name in (*self._wanted, *self.broken) if name not in found]:
            self.unload(name)
        for model in found.values():
            self.load(model)

    def load(self, model: FoundModel) -> frozenset[ModelKey]:
        """This model should be served as it was found: the keys to wait for. A model that
        cannot be read keeps what it serves and is reported."""
        if model.error is not None:
            if self.broken.get(model.name) != model.error:
                self.broken[model.name] = model.error
                self._changed()
            return frozenset()
        if self.broken.pop(model.name, None) is not None:
            self._changed()
        keys = frozenset(
            ModelKey(model.name, version.version, version.generation) for version in model.versions
        )
        if self._wanted.get(model.name) == keys:
            return keys
        self._wanted[model.name] = keys
        for version in model.versions:
            self._enter(model, version)
        self._retire_replaced(model.name)
        self._changed()
        return keys

    def retry(self, keys: Iterable[ModelKey]) -> None:
        """Gives up entries another chance (an explicit load, another autoscaler)."""
        for key in keys:
            entry = self.entries.get(key)
            if entry is not None and entry.state is ModelState.UNAVAILABLE:
                entry.enter(ModelState.LOADING)
                self._changed()

    def unload(self, name: str) -> bool:
        """Nothing binds to this model from now on; False if it was not there."""
        was_broken = self.broken.pop(name, None) is not None
        keys = self._wanted.pop(name, None)
        for entry in self.of_model(name):
            entry.enter(ModelState.RETIRING, "unloaded")
        self._changed()
        return was_broken or keys is not None

    def remove(self, key: ModelKey) -> None:
        """A retired entry has nothing left to answer."""
        del self.entries[key]
        self._changed()

    # --- what happened to it --------------------------------------------------------------

    def ready(self, key: ModelKey, config: ModelConfig) -> ModelEntry:
        """A replica of it is READY and completed the configuration. Raises
        `ModelConfigError` when the result cannot be served (the entry is UNAVAILABLE then)
        and `NotFoundError` for an entry that is gone."""
        entry = self.entries.get(key)
        if entry is None:
            raise NotFoundError(f"{key} is not served any more")
        if entry.spec is None:
            try:
                entry.spec = build_spec(entry.found, entry.version, config)
            except ModelConfigError as error:
                self.fail(key, str(error))
                raise
            entry.config = entry.spec.config
        if entry.state in (ModelState.LOADING, ModelState.UNAVAILABLE):
            entry.enter(ModelState.READY)
            self._retire_replaced(key.name)
            self._changed()
        return entry

    def fail(
        self, key: ModelKey, reason: str, *, hopeless: bool = False, held_back: bool = False
    ) -> None:
        """It cannot be served; an older generation that does goes on. `hopeless`: no replica
        is started for it until its files change or it is given another chance. `held_back`:
        none is allowed; the server is ready without it."""
        entry = self.entries.get(key)
        if entry is not None and entry.state is not ModelState.RETIRING:
            entry.enter(ModelState.UNAVAILABLE, reason, hopeless=hopeless, held_back=held_back)
            self._changed()

    def recover(self, key: ModelKey) -> None:
        """What kept a version that was READY before from being served is over."""
        entry = self.entries.get(key)
        if entry is None or entry.spec is None or entry.state is not ModelState.UNAVAILABLE:
            return
        entry.enter(ModelState.READY)
        self._retire_replaced(key.name)
        self._changed()

    # --- who asks -------------------------------------------------------------------------

    def bind(self, name: str, version: str) -> ModelEntry:
        """The entry that a request for this name and version ("" for the newest READY one)
        goes to. Raises `NotFoundError`, `UnavailableError`."""
        entry = self._bindings.get((name, version))
        if entry is None:
            raise self._no_binding(name, version)
        return entry

    def is_bindable(self, name: str, version: str) -> bool:
        """Whether `bind` gives an entry."""
        return (name, version) in self._bindings

    def is_known(self, name: str, version: str) -> bool:
        """Whether there is such a model, serving or not."""
        return (not version and name in self.broken) or any(
            version in ("", str(entry.key.version)) for entry in self.of_model(name)
        )

    def versions(self, name: str) -> list[int]:
        """Versions of a model that requests can bind to, ascending."""
        return sorted(int(text) for known, text in self._bindings if known == name and text)

    def of_model(self, name: str) -> list[ModelEntry]:
        """All entries of a model, by version."""
        entries = [entry for entry in self.entries.values() if entry.key.name == name]
        return sorted(entries, key=lambda entry: entry.key.version)

    def is_resolved(self, keys: Iterable[ModelKey] | None = None) -> bool:
        """Each wanted entry (or each of `keys`) is READY or known not to become so."""
        if keys is None:
            keys = [key for wanted in self._wanted.values() for key in wanted]
        return all(
            key not in self.entries or self.entries[key].state is not ModelState.LOADING
            for key in keys
        )

    def hopeless(self) -> list[ModelKey]:
        """The entries that no replica is started for."""
        return [entry.key for entry in self.entries.values() if entry.hopeless]

    def wanted(self, name: str) -> frozenset[ModelKey]:
        """The entries that should serve this model; none if it is not to be served."""
        return self._wanted.get(name, frozenset())

    def all_ready(self) -> bool:
        """Every model that should be served is; one whose new files are broken goes on with
        the old ones, one that is held back is not asked for."""
        # Other threads ask too: `list` of a dictionary is not interrupted by a change of it.
        bindings = self._bindings
        return all((name, "") in bindings for name in list(self.broken)) and all(
            (key.name, str(key.version)) in bindings or self._is_held_back(key)
            for wanted in list(self._wanted.values())
            for key in wanted
        )

    def _is_held_back(self, key: ModelKey) -> bool:
        entry = self.entries.get(key)
        return entry is not None and entry.held_back

    def names(self) -> list[str]:
        """Models that requests can bind to."""
        return sorted({name for name, _ in self._bindings})

    # --- inside ---------------------------------------------------------------------------

    def _enter(self, model: FoundModel, version: FoundVersion) -> None:
        key = ModelKey(model.name, version.version, version.generation)
        known = self.entries.get(key)
        if known is not None:
            # Wanted again before it was gone.
            state = ModelState.LOADING if known.spec is None else ModelState.READY
            if known.state is ModelState.RETIRING:
                known.enter(state)
            return
        stats = self._stats.setdefault((model.name, version.version), ModelStats())
        self.entries[key] = ModelEntry(
            key, model, version, ModelState.LOADING, stats, config=model.config
        )
        self._forget_stats()

    def _forget_stats(self) -> None:
        """Numbers outlive their version, for it may come back; of those that are gone only the
        last `MAX_GONE_STATS`."""
        here = {(key.name, key.version) for key in self.entries}
        gone = [known for known in self._stats if known not in here]
        for known in gone[:-MAX_GONE_STATS]:
            del self._stats[known]

    def _retire_replaced(self, name: str) -> None:
        """Entries that are no longer wanted leave once all that are wanted have taken over;
        those that serve nothing leave at once."""
        wanted = self.wanted(name)
        taken_over = all(self.entries[key].state is ModelState.READY for key in wanted)
        for entry in self.of_model(name):
            leaves = taken_over or entry.state is not ModelState.READY
            if leaves and entry.key not in wanted and entry.state is not ModelState.RETIRING:
                entry.enter(ModelState.RETIRING, "replaced by newer files")

    def _changed(self) -> None:
        self.changes += 1
        bindings: dict[tuple[str, str], ModelEntry] = {}
        # The newest version last, and of one version the generation that is wanted.
        for entry in sorted(self.entries.values(), key=self._precedence):
            if entry.state is ModelState.READY:
                name, version, _ = entry.key
                for text in ("", str(version)):
                    bindings[name, text] = entry
        self._bindings = bindings

    def _precedence(self, entry: ModelEntry) -> tuple[int, bool]:
        return entry.key.version, entry.key in self._wanted.get(entry.key.name, ())

    def _no_binding(self, name: str, version: str) -> NotFoundError | UnavailableError:
        entries = self.of_model(name)
        if name in self.broken:
            return UnavailableError(f"model '{name}' cannot be served: {self.broken[name]}")
        if version:
            entries = [entry for entry in entries if str(entry.key.version) == version]
        live = [entry for entry in entries if entry.state is not ModelState.RETIRING]
        if not live:
            what = f"model '{name}' version '{version}'" if version else f"model '{name}'"
            bound = sorted(f"{model} {text}".strip() for model, text in self._bindings if text)
            return NotFoundError(f"{what} is not served; there are: {', '.join(bound) or 'none'}")
        newest = live[-1]
        if newest.state is ModelState.UNAVAILABLE:
            return UnavailableError(f"{newest.key} cannot be served: {newest.reason}")
        return UnavailableError(f"{newest.key} is loading, try again in a moment")
