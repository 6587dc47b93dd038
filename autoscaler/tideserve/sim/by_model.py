"""Options that hold for all models of a run, or for one that they name: VALUE or MODEL=VALUE."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from tideserve.sim.errors import SimulationError

# The values have : = and , themselves, but none of them before their first letters.
_NAMED: Final = re.compile(r"([^:=,/]+)=(.+)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class ByModel:
    """`every`: for models that are not in `named`; None: nothing was given for them."""

    option: str
    every: str | None = None
    named: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, option: str, values: Iterable[str]) -> "ByModel":
        """Raises `SimulationError` for what was given twice."""
        every: str | None = None
        named: dict[str, str] = {}
        for value in values:
            match = _NAMED.fullmatch(value)
            if match is None and every is None:
                every = value
            elif match is not None and match[1] not in named:
                named[match[1]] = match[2]
            else:
                raise SimulationError(f"{option}: expected one for each model, got '{value}' too")
        return cls(option, every, named)

    def __bool__(self) -> bool:
        return self.every is not None or bool(self.named)

    def get(self, model: str) -> str | None:
        """What was given for it."""
        return self.named.get(model, self.every)

    def check(self, models: Iterable[str]) -> None:
        """Raises `SimulationError` for a name that none of these has."""
        known = sorted(models)
        for name in self.named:
            if name not in known:
                raise SimulationError(
                    f"{self.option}: there is no model '{name}' in this run, but {', '.join(known)}"
                )
