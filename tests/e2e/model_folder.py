"""Models written for a test: a repository's folders."""

from pathlib import Path

from tests.e2e.server import EXAMPLES


def write_model(
    repository: Path, name: str, config: str, source: str | bytes, file_name: str = "model.py"
) -> Path:
    """One version of a model; its model file."""
    folder = repository / name / "1"
    folder.mkdir(parents=True)
    (repository / name / "config.pbtxt").write_text(config)
    file = folder / file_name
    file.write_bytes(source.encode() if isinstance(source, str) else source)
    return file


def link_example(repository: Path, name: str) -> None:
    """A model of examples/models under its own name."""
    (repository / name).symlink_to(EXAMPLES / name)
