"""The dashboard asks for series that are exported, by labels that they have."""

import json
import re
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
DASHBOARD: Final = ROOT / "examples/monitoring/grafana/dashboards/tideserve.json"
SUFFIXES: Final = ("_bucket", "_sum", "_count")


def expressions() -> list[str]:
    panels = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    return [target["expr"] for panel in panels for target in panel["targets"]]


def documented() -> set[str]:
    """tests/server/test_metrics.py and tests/autoscaler/test_metrics.py hold that page."""
    page = (ROOT / "docs/metrics.md").read_text(encoding="utf-8")
    names = set(re.findall(r"^\| `(tideserve_\w+)`", page, re.MULTILINE))
    return names | {name + suffix for name in names for suffix in SUFFIXES}


def test_every_series_of_the_dashboard_is_exported() -> None:
    named = {name for text in expressions() for name in re.findall(r"\btideserve_\w+", text)}
    assert len(named) >= 12
    assert named <= documented()


def test_panels_have_places_of_their_own() -> None:
    panels = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels]
    assert len(set(places)) == len(places)
    assert len({panel["id"] for panel in panels}) == len(panels)
