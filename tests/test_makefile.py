"""What `make` takes for out of date."""

import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCES = ".cache/wheel.sources"


def make(folder: Path, target: str) -> None:
    subprocess.run(["make", "-s", target], cwd=folder, check=True)


def test_the_wheel_is_out_of_date_when_a_source_came_or_went(tmp_path: Path) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    for folder in ("proto", "server", "autoscaler", "clients"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "one.py").touch()
    make(tmp_path, SOURCES)
    first = (tmp_path / SOURCES).stat()

    make(tmp_path, SOURCES)
    assert (tmp_path / SOURCES).stat().st_mtime_ns == first.st_mtime_ns

    (tmp_path / "server" / "one.py").rename(tmp_path / "server" / "another.py")
    make(tmp_path, SOURCES)
    renamed = (tmp_path / SOURCES).read_text()
    assert (tmp_path / SOURCES).stat().st_mtime_ns > first.st_mtime_ns
    assert "server/another.py" in renamed
    assert "server/one.py" not in renamed
    rules = (tmp_path / "Makefile").read_text()
    assert f".cache/wheel/stamp: $(WHEEL_SOURCES) {SOURCES}" in rules
