"""What every test shares."""

import os
import shutil

import pytest
from hypothesis import HealthCheck, settings

# The machine's speed is no property of the library, and a run must be repeatable.
settings.register_profile(
    "pyrosplice", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
settings.load_profile("pyrosplice")


@pytest.fixture(scope="session")
def working_directory(tmp_path_factory):
    """An empty folder that all tests run in, so that a file of relative name is seen, and is in nobody's way."""
    folder, before = tmp_path_factory.mktemp("working_directory"), os.getcwd()
    os.chdir(folder)
    yield folder
    os.chdir(before)


@pytest.fixture(autouse=True)
def _nothing_is_left_in_the_working_directory(working_directory):
    yield
    left = sorted(entry.name for entry in working_directory.iterdir())
    for entry in working_directory.iterdir():  # so that the next test does not answer for it
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    assert not left, f"the test left {left} in the working directory; write to tmp_path"
