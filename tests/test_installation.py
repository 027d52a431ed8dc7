"""The library can be imported, and fits, where nothing can be written: a read-only installation without a home."""

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import pyrosplice

pytestmark = pytest.mark.slow

SCRIPT = """
import pathlib, torch
import pyrosplice
assert pathlib.Path(pyrosplice.__file__).is_relative_to({folder!r}), pyrosplice.__file__
from pyrosplice import MultinomGLM
from pyrosplice.spatial.car import CarCovariance
from pyrosplice.spatial._graph import knn_graph
space = CarCovariance(knn_graph(torch.cartesian_prod(torch.arange(4.), torch.arange(4.))))
model = MultinomGLM()
model.setup_data(torch.poisson(torch.full((1, 16, 2), 4.0)))
model.fit(quiet=True)
print("fitted", bool(torch.isfinite(model()).all()))
"""
NO_CACHE = """
import numba.core.caching as caching
for locator in caching.CacheImpl._locator_classes:
    locator.from_function = classmethod(lambda cls, py_func, py_file: None)
"""


def run(folder: Path, script: str) -> str:
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "LANG", "VIRTUAL_ENV")}
    own = {
        "PYTHONPATH": str(folder),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": str(folder / "none"),
        "OMP_NUM_THREADS": "1",
    }
    found = subprocess.run([sys.executable, "-c", script], env=kept | own, capture_output=True, text=True, cwd="/")
    assert found.returncode == 0, found.stderr
    return found.stdout


def read_only_copy(folder: Path) -> Path:
    source = Path(pyrosplice.__file__).parent
    target = folder / "site"
    shutil.copytree(source, target / "pyrosplice", ignore=shutil.ignore_patterns("__pycache__"))
    for path in (*target.rglob("*"), target):
        path.chmod(path.stat().st_mode & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))
    return target


def test_a_read_only_copy_without_a_home(tmp_path):
    folder = read_only_copy(tmp_path)
    try:
        assert "fitted True" in run(folder, SCRIPT.format(folder=str(folder)))
    finally:
        for path in (folder, *folder.rglob("*")):
            path.chmod(path.stat().st_mode | stat.S_IWUSR)


def test_where_numba_finds_no_place_for_its_cache(tmp_path):
    """For users who may write anywhere, such as root, of whom file modes say nothing."""
    folder = Path(pyrosplice.__file__).parents[1]
    assert "fitted True" in run(folder, NO_CACHE + SCRIPT.format(folder=str(folder)))
