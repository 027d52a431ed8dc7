"""The tutorials run from top to bottom on this version of the library."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from traitlets.config import Config

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).resolve().parents[1] / "tutorials"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def test_there_are_tutorials():
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_tutorial_runs(path, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    # sockets that are files: two kernels that start at once may take the same free ports
    own = Config(KernelManager={"transport": "ipc", "ip": str(tmp_path / "kernel")})
    place = {"metadata": {"path": tmp_path}}
    # the time is for cells that never end: on a busy machine others take minutes
    NotebookClient(notebook, timeout=900, kernel_name="python3", resources=place, config=own).execute()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stored_tutorial_was_run_and_is_small(path):
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not [output for cell in cells for output in cell.outputs if output.output_type == "error"]
    assert path.stat().st_size < 1_500_000
