"""Tutorials as pages: they lie beside the package, where people look for them, and Sphinx reads below ``docs/``."""

from pathlib import Path

from sphinx.application import Sphinx


def write_if_changed(path: Path, content: bytes) -> None:
    """Write a file that Sphinx reads; one that is the same keeps its time, so that it is not read again."""
    if not path.exists() or path.read_bytes() != content:
        path.write_bytes(content)


def stage(app: Sphinx) -> None:
    """Copy the notebooks to ``docs/tutorials``, and take away those that are gone."""
    source, target = Path(app.srcdir).parent / "tutorials", Path(app.srcdir) / "tutorials"
    notebooks = {path.name: path for path in source.glob("*.ipynb")}
    for stale in target.glob("*.ipynb"):
        if stale.name not in notebooks:
            stale.unlink()
    for name, path in notebooks.items():
        write_if_changed(target / name, path.read_bytes())


def setup(app: Sphinx) -> dict[str, bool]:
    """Copy before pages are looked for."""
    app.connect("builder-inited", stage)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
